"""Where a model's layers, MLP neurons, heads, embedding and unembedding are, for any model.

The parts are found by structure, from one forward pass, or named by the user (``ModelParts``).
``Parted`` runs a model with states kept or replaced. Nothing in the model is changed for good.
"""

from capture.parts.head_rows import head_blocks as head_blocks
from capture.parts.model_parts import ModelParts as ModelParts
from capture.parts.parted import KnownModel as KnownModel
from capture.parts.parted import Parted as Parted
from capture.parts.parted import parted as parted
