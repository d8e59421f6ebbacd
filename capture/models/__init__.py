"""Models: the study's transformer, and causal language models of Hugging Face's transformers.

The package transformers is loaded when such a model is built, never on import. Imports torch and
``capture.errors`` alone.
"""

from capture.models.transformer import LanguageModel as LanguageModel
from capture.models.transformer import ModelConfig as ModelConfig
from capture.models.transformer import build_model as build_model
