"""Repeated random sequences, the task on which induction heads form.

A datum is a random sequence of random length that is repeated until the window is full. In the
first pass no token can be foretold; afterwards every token can, by looking for the last occurrence
of the present token and copying what followed. Lengths are random because a fixed length can be
solved by always looking the same number of positions back, which takes no induction head.

A share of the datums can be windows of a text instead. The tokens are then the most frequent words
of the text and ``<unk>`` for all others, and the random sequences are made of the same words.

Source: Olsson et al. 2022, "In-context learning and induction heads".
Shapes: N datum, K datum of text, L place in a sequence, M token of a datum and its last target.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capture.corpus.tasks.task import TaskDatums, random_bits, random_integers
from capture.corpus.text import basic_english, python_reference, read_path
from capture.errors import ConfigError, CorpusError, at_least, at_most

UNKNOWN = "<unk>"


@dataclass(frozen=True, kw_only=True)
class RepeatedConfig:
    """Repeated sequences; used if corpus.kind is repeated."""

    datums: int = 8192
    """Number of datums."""
    tokens: int = 64
    """Number of distinct tokens, all equally frequent but in text."""
    shortest: int = 6
    """Shortest sequence that is repeated."""
    longest: int = 24
    """Longest sequence that is repeated."""
    text_share: float = 0.0
    """Share of the datums that are windows of a text: of corpus.path, or of Python's language
    reference."""
    seed: int = 0
    """Seed of sequences, of lengths, and of which datums are text."""

    def __post_init__(self) -> None:
        for name, most in (("datums", 10**7), ("tokens", 10**5), ("shortest", self.longest)):
            at_least(f"corpus.repeated.{name}", getattr(self, name), 1)
            at_most(f"corpus.repeated.{name}", getattr(self, name), most)
        at_least("corpus.repeated.seed", self.seed, 0)
        if not 0 <= self.text_share <= 1:
            problem = f"got {self.text_share}, must be from 0 to 1"
            raise ConfigError("corpus.repeated.text_share", problem)

    def require_repetition(self, window: int) -> None:
        """Raise ``ConfigError`` unless every datum repeats its sequence at least once."""
        if 2 * self.longest > window + 1:
            problem = f"got {self.longest}, must be at most {(window + 1) // 2}, half of the "
            problem += "window and its last target"
            raise ConfigError("corpus.repeated.longest", problem, "Or raise corpus.window")


def repeated_sequences(config: RepeatedConfig, window: int, path: Path | None = None) -> TaskDatums:
    """Return the datums; each repeats a sequence of its own, or is a window of a text.

    ``path``: the text; None: Python's language reference. Raises ``CorpusError`` for a text with
    too few windows or words.
    """
    count, longest = config.datums, config.longest
    first = int(config.text_share > 0)  # sequences do not contain <unk>, which is number 0
    new_NL = random_integers(config.seed, 0, count * longest, config.tokens - first) + first
    new_NL = new_NL.reshape(count, longest)
    lengths = longest - config.shortest + 1
    length_N1 = config.shortest + random_integers(config.seed, 1, count, lengths)[:, None]
    token_NM = np.take_along_axis(new_NL, np.arange(window + 1) % length_N1, axis=1)
    if not first:
        names = [f"t{number}" for number in range(config.tokens)]
        return TaskDatums(names, {"train": token_NM.astype(np.int32)})
    # Datums are chosen at random: held-out ones are evenly spaced, and so would be of one kind.
    chosen_N = random_bits(config.seed, 2, count).argsort(kind="stable")
    chosen_K = chosen_N[: round(config.text_share * count)]
    names, token_NM[chosen_K] = windows_of_text(config, window, path, len(chosen_K))
    return TaskDatums(names, {"train": token_NM.astype(np.int32)})


def windows_of_text(
    config: RepeatedConfig, window: int, path: Path | None, wanted: int
) -> tuple[list[str], np.ndarray]:
    """Return the names of all tokens, and some windows of the text in random order, [K, M]."""
    text = python_reference() if path is None else read_path(path)
    words = basic_english(text.content)
    num_windows = max(len(words) - 1, 0) // window
    if num_windows < wanted:
        problem = f"has {num_windows} windows of {window} tokens, wanted {wanted}"
        remedy = "Lower corpus.repeated.text_share or datums, or give more text"
        raise CorpusError(text.where, problem, remedy)
    counter = Counter(word for word in words if word != UNKNOWN)
    if len(counter) < config.tokens - 1:
        problem = f"has {len(counter)} words, wanted {config.tokens - 1}"
        raise CorpusError(text.where, problem, "Lower corpus.repeated.tokens, or give more text")
    ranked = sorted(counter, key=lambda word: (-counter[word], word))
    names = [UNKNOWN, *ranked[: config.tokens - 1]]
    number = {name: n for n, name in enumerate(names)}
    id_S = np.array([number.get(word, 0) for word in words])
    order = random_bits(config.seed, 3, num_windows).argsort(kind="stable")
    start_K = order[:wanted] * window
    return names, id_S[start_K[:, None] + np.arange(window + 1)]
