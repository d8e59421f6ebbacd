"""The text of files, tokenized for models of Hugging Face's transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.observed.concept import Concept, library_encoder, read_concept
from analysis.trajectory.observed.dependencies import (
    Sentence,
    read_dependencies,
    words_of_library,
)
from analysis.trajectory.observed.text import Text, Windows
from capture.corpus.text import read_path
from capture.corpus.tokenizer import HFTokenizer
from capture.errors import CorpusError, at_least

LONGEST_DEFAULT = 128
"""Window of a model that takes longer ones."""
LONGEST_CONCEPT = 4096
"""Longest example for a model without a limit."""


@dataclass(frozen=True, kw_only=True)
class FileTexts:
    """Which text to measure stored checkpoints on. Without any, metrics of text are left out."""

    place: str
    """The folder of checkpoints, or the hub id with revisions."""
    text: str | None = None
    """UTF-8 file, or folder of .txt files, that the model was not trained on."""
    training_text: str | None = None
    """Text that it was trained on."""
    window: int | None = None
    """Tokens of a window; by default what the model takes, at most 128."""

    def __post_init__(self) -> None:
        if self.window is not None:
            at_least("--window", self.window, 2)


def text_of_files(
    texts: FileTexts,
    tokenizer: str,
    *,
    num_tokens: int,
    longest: int | None,
    config: TrajectoryConfig,
) -> Text:
    """Read and cut the texts into windows.

    ``longest`` is the largest window that the model takes. Raises ``ConfigError`` without a
    tokenizer, and ``CorpusError`` for a text that cannot be read, is shorter than two windows, or
    has tokens that the model lacks.
    """
    window = texts.window or min(longest or LONGEST_DEFAULT, LONGEST_DEFAULT)
    if longest is not None and window > longest:
        problem = f"got {window}, but the model takes {longest} tokens"
        raise CorpusError("--window", problem, "Shorten the window")
    paths = [texts.text, texts.training_text]
    read = any(paths) or config.concept or config.dependencies
    own = HFTokenizer(tokenizer) if read else None
    held_out, training = (
        cut(own, Path(path).expanduser(), window, num_tokens) if own and path else None
        for path in paths
    )
    shown = held_out.spread(config.datums) if held_out else None
    names, concept = own.names if own else [], Concept()
    if own and config.concept:
        most = longest or LONGEST_CONCEPT
        concept = read_concept(config.concept, library_encoder(own), most, config.shots)
    sentences: Sequence[Sentence] = ()
    if own and config.dependencies:
        most = longest or LONGEST_CONCEPT
        sentences = read_dependencies(config.dependencies, words_of_library(own), most)
    more = {"paths": config.paths, "sentences": sentences}
    sizes = config.datums, config.seed
    return Text(num_tokens, window, shown, training, names, *sizes, concept, **more)


def cut(tokenizer: HFTokenizer, path: Path, window: int, num_tokens: int) -> Windows:
    """Return the windows of a text, each one's targets the tokens one later."""
    text = read_path(path)
    ids = {name: number for number, name in enumerate(tokenizer.names)}
    token_M = np.array([ids[name] for name in tokenizer.tokens(text.content)], np.int64)
    count = (len(token_M) - 1) // window
    if count < 2:
        problem = f"has {len(token_M)} tokens, wanted at least {2 * window + 1}"
        raise CorpusError(text.where, problem, "Give more text, or a smaller --window")
    if token_M.max() >= num_tokens:
        problem = f"has token {token_M.max()}, but the model embeds {num_tokens}"
        raise CorpusError(text.where, problem, "Give the checkpoints' own tokenizer.json")
    end = count * window
    inputs, targets = token_M[:end], token_M[1 : end + 1]
    return Windows(inputs.reshape(-1, window), targets.reshape(-1, window))
