"""The text that metrics use: held-out windows, the training text, and random repeated tokens.

Shapes: N datum or sequence, T position, V vocabulary, P token of a repeated block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from analysis.run.run import Run
from analysis.run.stored_run import Split
from analysis.trajectory.config import SplitChoice, TrajectoryConfig
from analysis.trajectory.observed.concept import (
    Concept,
    Encode,
    library_encoder,
    read_concept,
    word_encoder,
)
from analysis.trajectory.observed.dependencies import (
    Sentence,
    Words,
    read_dependencies,
    words_of_library,
    words_of_run,
)
from capture.corpus.datums import WORDS
from capture.corpus.tokenizer import HFTokenizer
from capture.errors import ConfigError, RunError

Result = TypeVar("Result")
MOST_SEQUENCES = 100
LEAST_REPEATED_WINDOW = 8
"""Shortest window in which repeated blocks of random length make sense."""
MOST_REPEATED_WINDOW = 256
"""Longest sequence of random tokens; longer ones cost more and show no more."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Inputs and targets, int64 [N, T]."""

    token_NT: np.ndarray
    target_NT: np.ndarray

    def spread(self, most: int) -> "Windows":
        """Return at most so many of the windows, evenly spread."""
        count = len(self.token_NT)
        chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
        return Windows(self.token_NT[chosen], self.target_NT[chosen])


@dataclass(frozen=True, eq=False)
class Repeated:
    """Random tokens that end in a block that occurs twice; the length of the block varies."""

    token_NT: np.ndarray
    """int64 [N, T]."""
    length_N: np.ndarray
    """Tokens of the block of each sequence: positions T − P to T − 1 repeat T − 2P to T − P − 1."""


@dataclass(frozen=True, eq=False)
class Text:
    """What metrics read."""

    num_tokens: int
    """Size of the vocabulary."""
    window: int
    """Tokens of a window."""
    held_out: Windows | None
    """Windows to predict; None if there is no text."""
    training: Windows | None
    """Windows that the model was trained on; None if they are not known."""
    tokens: list[str]
    """The vocabulary, indexed by token id; empty if it is not known."""
    datums: int = 200
    seed: int = 0
    concept: Concept = field(default_factory=Concept)
    """Examples of the user's; empty if there are none."""
    modulus: int | None = None
    """p, if the task is addition modulo p."""
    paths: Sequence[str] = ()
    """Pairs of components whose direct paths are patched, as in ``L0H1:L1H2``; empty for all."""
    sentences: Sequence[Sentence] = ()
    """Sentences with their dependencies; empty if there are none."""
    learned: bool = False
    """Whether ``held_out`` is training text, because there is no other or it was asked for."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What metrics compute from the text once for all checkpoints; see ``remember``."""

    def remember(self, name: str, compute: Callable[[], Result]) -> Result:
        """Return what ``compute`` returned under this name the first time."""
        if name not in self.memory:
            self.memory[name] = compute()
        return self.memory[name]

    @cached_property
    def repeated(self) -> Repeated:
        """Random sequences, the same at every checkpoint; see ``repeated_tokens``."""
        window = min(self.window, MOST_REPEATED_WINDOW)
        count = min(self.datums, MOST_SEQUENCES)
        return repeated_tokens(count, window, self.num_tokens, self.seed)


def text_of_run(run: Run, config: TrajectoryConfig) -> Text:
    """Return the text of a run.

    Raises ``ConfigError`` if it has no such split, what ``read_concept`` raises, and ``RunError``
    for a custom loop whose datums are not known, or differ in length.
    """
    if run.length_N is not None:
        problem = "has datums of different length; metrics need windows of one length"
        raise RunError(run.uri, problem, "Record datums of one length")
    split = held_out_split(run, config.split)
    held_out = windows_of(run, split)
    corpus = run.config.corpus
    modulus = corpus.modular.modulus if corpus.kind == "modular-addition" else None
    window, concept = held_out.token_NT.shape[1], Concept()
    if config.concept is not None:
        concept = read_concept(config.concept, encoder_of(run), window, config.shots)
    sentences: Sequence[Sentence] = ()
    if config.dependencies is not None:
        sentences = read_dependencies(config.dependencies, words_of(run), window)
    return Text(
        run.num_tokens,
        window,
        held_out.spread(config.datums),
        windows_of(run, "train"),
        run.tokens,
        config.datums,
        config.seed,
        concept,
        modulus,
        config.paths,
        sentences,
        learned=split == "train",
    )


def encoder_of(run: Run) -> Encode:
    """Return the encoder of a run's text; raises ``ConfigError`` if the tokenizer is away."""
    tokenizer = run.config.corpus.tokenizer
    if tokenizer == WORDS:
        return word_encoder(run.tokens)
    return library_encoder(HFTokenizer(tokenizer))


def words_of(run: Run) -> Words:
    """Return the encoder of the words of a run; raises ``ConfigError`` if the tokenizer is away."""
    tokenizer = run.config.corpus.tokenizer
    return (
        words_of_run(run.tokens) if tokenizer == WORDS else words_of_library(HFTokenizer(tokenizer))
    )


def held_out_split(run: Run, wanted: SplitChoice) -> Split:
    """Return the wanted split; by default validation, else test, else train."""
    kept = {file.key for file in run.start.files_of("corpus")}
    splits: tuple[Split, ...] = ("validation", "test", "train")
    there: list[Split] = [
        name for name in splits if name == "train" or f"corpus/{name}.parquet" in kept
    ]
    if not wanted:
        return there[0]
    if wanted not in there:
        problem = f"got {wanted}, but the run has {', '.join(there)}"
        raise ConfigError("--split", problem, "Choose one of these")
    return wanted


def windows_of(run: Run, split: Split) -> Windows:
    """Return all windows of a split of a run, whose datums all have the window's length."""
    table = run.datum_table(split)
    token_NT = table["tokens"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    last_N1 = table["last_target"].to_numpy()[:, None]
    joined = np.hstack([token_NT, last_N1]).astype(np.int64)
    return Windows(joined[:, :-1], joined[:, 1:])


def repeated_tokens(count: int, window: int, num_tokens: int, seed: int) -> Repeated:
    """Return sequences of random tokens, each ending in a block that occurs twice.

    The block's length is drawn for each sequence, from a quarter to half of the window: at a fixed
    length, attention to a fixed distance would pass for induction. Tokens of a sequence do not
    repeat otherwise where the vocabulary is large enough. Id 0 is left out (``<unk>``).

    Raises ``ConfigError`` for a window below 8 tokens, or fewer than 4 tokens in the vocabulary.
    """
    if window < LEAST_REPEATED_WINDOW or num_tokens < 4:
        problem = f"need windows of {LEAST_REPEATED_WINDOW} tokens, the model has {window}"
        raise ConfigError("repeated random tokens", problem)
    rng = np.random.default_rng(seed)
    longest = window // 2
    length_N = rng.integers(max(2, window // 4), longest + 1, size=count)
    token_NT = np.empty((count, window), np.int64)
    for row, length in enumerate(length_N):
        fresh = window - length
        enough = num_tokens - 1 >= fresh
        drawn = rng.choice(num_tokens - 1, fresh, replace=not enough) + 1
        token_NT[row] = np.concatenate([drawn, drawn[-length:]])
    return Repeated(token_NT, length_N)
