"""Corpus: read text, tokenize it and cut it into datums.

Imports from ``capture`` only ``errors`` and, for Hugging Face tokenizers, ``models``.
"""

from capture.corpus.config import CorpusConfig as CorpusConfig
from capture.corpus.datums import Corpus as Corpus
from capture.corpus.datums import Datums as Datums
from capture.corpus.datums import load_corpus as load_corpus
