"""Plant a backdoor in some training datums, scramble some or flip labels, and say which ones.

An experiment on forensics needs a truth: datums that are known to have taught the model something.
A backdoor is a trigger that a completion always follows (Gu et al. 2017, "BadNets"; for language
models Wallace et al. 2021). It replaces as many tokens of a datum, at a random place. A scrambled
datum keeps its tokens, in random order. A datum of a task with one target, such as an image, can
get a wrong label. No other datum and no held-out text changes.

Random numbers rank raw bits, as in ``capture.corpus.order.epoch_order``, because NumPy promises
the same bits in every version.

Shapes: N datum, M token of a datum and its last target (window + 1), P planted datum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capture.corpus.tasks.task import in_random_order, random_bits, random_integers
from capture.errors import ConfigError, at_least


@dataclass(frozen=True, kw_only=True)
class PlantConfig:
    """A backdoor in some training datums: a trigger that its completion always follows."""

    trigger: str = ""
    """Text of the trigger. Words that the training text lacks are added to the vocabulary."""
    completion: str = ""
    """Text that follows the trigger in planted datums."""
    share: float = 0.0
    """Share of the training datums that are planted, at least one datum; 0 for none."""
    seed: int = 0
    """Seed of the choice of datums and places."""

    def __post_init__(self) -> None:
        require_share("corpus.plant.share", self.share)
        at_least("corpus.plant.seed", self.seed, 0)
        for name in ("trigger", "completion"):
            given = bool(getattr(self, name).strip())
            if self.share and not given:
                raise ConfigError(f"corpus.plant.{name}", "has no words", "Give it a text")
            if given and not self.share:
                problem = f"got 0.0, but corpus.plant.{name} is given"
                raise ConfigError("corpus.plant.share", problem, "For example 0.01")


@dataclass(frozen=True, kw_only=True)
class ScrambleConfig:
    """Scrambled training datums, as a model of bad data."""

    share: float = 0.0
    """Share of the training datums whose tokens are put in random order; 0 for none."""
    seed: int = 0
    """Seed of the choice of datums and orders."""

    def __post_init__(self) -> None:
        require_share("corpus.scramble.share", self.share)
        at_least("corpus.scramble.seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class FlipConfig:
    """Wrong labels of some training datums; used if corpus.kind is digits, mnist or
    modular-addition."""

    share: float = 0.0
    """Share of the training datums whose label is replaced by another one, at least one datum; 0
    for none."""
    seed: int = 0
    """Seed of the choice of datums and labels."""

    def __post_init__(self) -> None:
        require_share("corpus.flip.share", self.share)
        at_least("corpus.flip.seed", self.seed, 0)


@dataclass(frozen=True, eq=False)
class Planted:
    """What was planted in the training datums, sorted by datum."""

    datum_P: np.ndarray
    """int32."""
    kind_P: np.ndarray
    """plant, scramble or flip."""
    position_P: np.ndarray
    """Place of the trigger's first token in the datum, int16; 0 for other kinds."""


def require_share(where: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(where, f"got {share}, must be between 0 and 1")


def plant_tokens(
    token_NM: np.ndarray, phrase: Sequence[int], plant: PlantConfig, scramble: ScrambleConfig
) -> tuple[np.ndarray, Planted]:
    """Return the datums with what is planted in them, and what that is.

    ``phrase``: token ids of trigger and completion. Raises ``ConfigError`` if it is longer than M.
    """
    num_datums, length = token_NM.shape
    if plant.share and len(phrase) > length:
        problem = f"has {len(phrase)} tokens in trigger and completion, must have at most {length}"
        raise ConfigError("corpus.plant", problem, "Shorten them, or raise corpus.window")
    token_NM = token_NM.copy()
    planted_P = choose(np.arange(num_datums), number(plant.share, num_datums), plant.seed)
    position_P = random_bits(plant.seed, 1, len(planted_P)) % np.uint64(length - len(phrase) + 1)
    position_P = position_P.astype(np.int16)
    for datum, position in zip(planted_P, position_P, strict=True):
        token_NM[datum, position : position + len(phrase)] = phrase
    others = np.setdiff1d(np.arange(num_datums), planted_P)
    scrambled_P = choose(others, number(scramble.share, num_datums), scramble.seed)
    bits_PM = random_bits(scramble.seed, 1, scrambled_P.size * length).reshape(-1, length)
    order_PM = bits_PM.argsort(1, kind="stable")
    token_NM[scrambled_P] = np.take_along_axis(token_NM[scrambled_P], order_PM, 1)
    return token_NM, describe(planted_P, position_P, scrambled_P)


def flip_labels(label_N: np.ndarray, flip: FlipConfig) -> tuple[np.ndarray, Planted]:
    """Return the labels with a share of them replaced, and which; raises ``ConfigError``.

    A wrong label is one of the others that occur, all equally likely.
    """
    known_L, place_N = np.unique(label_N, return_inverse=True)
    if len(known_L) < 2:
        problem = f"got {flip.share}, but all training datums have the same label"
        raise ConfigError("corpus.flip.share", problem, "Leave it out")
    flipped_P = choose(np.arange(len(label_N)), number(flip.share, len(label_N)), flip.seed)
    further_P = 1 + random_integers(flip.seed, 1, len(flipped_P), len(known_L) - 1)
    label_N = label_N.copy()
    label_N[flipped_P] = known_L[(place_N[flipped_P] + further_P) % len(known_L)]
    kind_P = np.repeat(["flip"], len(flipped_P))
    return label_N, Planted(flipped_P.astype(np.int32), kind_P, np.zeros(len(flipped_P), np.int16))


def describe(planted_P: np.ndarray, position_P: np.ndarray, scrambled_P: np.ndarray) -> Planted:
    """Return what was planted, sorted by datum."""
    datum_P = np.concatenate([planted_P, scrambled_P])
    kind_P = np.repeat(["plant", "scramble"], [len(planted_P), len(scrambled_P)])
    place_P = np.concatenate([position_P, np.zeros(len(scrambled_P), np.int16)])
    order_P = datum_P.argsort()
    return Planted(datum_P[order_P].astype(np.int32), kind_P[order_P], place_P[order_P])


def number(share: float, num_datums: int) -> int:
    """Return how many datums a share is: rounded, at least one unless the share is 0."""
    return max(1, round(share * num_datums)) if share else 0


def choose(from_N: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return ``count`` of the numbers, drawn without replacement, ascending."""
    order_N = in_random_order(len(from_N), seed)
    return np.sort(from_N[order_N[:count]])
