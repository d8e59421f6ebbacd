"""The evidence of all groups, whatever it comes from, laid beside what it is compared with.

Shapes: G named group, F family, V token of the vocabulary, U token that is compared, J chosen
(group, token).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.attribution.config import Background
from analysis.measures.selection import Method, SelectionConfig, choose
from analysis.measures.token_scores import ROUNDING

CELLS_AT_ONCE = 2**23
"""Groups × tokens that are dense at once: 64 MB an array."""


@dataclass(frozen=True, eq=False)
class Material:
    """Weights of evidence by group and token."""

    weight_G: np.ndarray
    """Of each group, all tokens."""
    family_G: np.ndarray
    sample: Callable[[int, int], np.ndarray]
    """Weights of groups first to end, float64 [end - first, V]."""
    origins: Callable[[int, int], np.ndarray] | None
    """How many places of the text these weights come from, [end - first, V]; None: unknown."""
    family_FV: np.ndarray
    """Weights of all groups of each family together."""
    train_V: np.ndarray
    """How often each token occurs in the text that the evidence may speak of."""
    effective_G: np.ndarray
    """How many independent observations the weights of each group amount to."""
    counts_G: np.ndarray | None
    """How many observations they count; None: the weights are counts."""


@dataclass(frozen=True, eq=False)
class Told:
    """What is known of each lesson (chosen group and token) beside its weight."""

    count_J: np.ndarray
    """Rows or positions behind it."""
    up_J: np.ndarray
    down_J: np.ndarray
    strengthened_J: np.ndarray
    weakened_J: np.ndarray
    """Parts of the weight; NaN where the evidence has no such sign."""
    weight_WJ: np.ndarray
    expected_WJ: np.ndarray
    first_steps: np.ndarray
    """Of each window."""
    end_steps: np.ndarray


def choose_tokens(
    material: Material, method: Method, background: Background, config: SelectionConfig
) -> pd.DataFrame:
    """``selection.choose`` over all groups, some at a time.

    The study's method looks at counts, all others at independent observations.
    """
    at_once = max(1, CELLS_AT_ONCE // len(material.train_V))
    num_groups = len(material.weight_G)
    pieces = [
        choose_some(material, slice(first, first + at_once), method, background, config)
        for first in range(0, max(1, num_groups), at_once)
    ]
    return pd.concat(pieces, ignore_index=True)


def choose_some(
    material: Material,
    own: slice,
    method: Method,
    background: Background,
    config: SelectionConfig,
) -> pd.DataFrame:
    """The same for some groups."""
    sample_GV = material.sample(own.start, min(own.stop, len(material.weight_G)))
    against = background_of(material, own, sample_GV, background)
    token_U = np.flatnonzero((np.atleast_2d(against) > 0).any(0) | (sample_GV > 0).any(0))
    most_GU, observations_G = None, material.counts_G
    if method != "study":
        observations_G = material.effective_G
        most_GU = most_weight(material, own)[:, token_U]
    observed_G = None if observations_G is None else observations_G[own]
    found = choose(
        method, sample_GV[:, token_U], against[..., token_U], config, observed_G, most_GU
    )
    group_J = found["group"].to_numpy(np.int64)
    token_J = token_U[found["token_id"]]
    return found.assign(group=group_J + own.start, token_id=token_J)


def most_weight(material: Material, own: slice) -> np.ndarray:
    """What a token may weigh in each group, [G, V]: as many observations as it has origins.

    One place that moved a neuron very often says much of that place, not of the token.
    """
    weight_G, effective_G = material.weight_G[own], material.effective_G[own]
    if material.origins is None:
        return np.full((len(weight_G), len(material.train_V)), np.inf)
    origins_GV = material.origins(own.start, own.start + len(weight_G))
    each_G = weight_G / np.where(effective_G > 0, effective_G, 1)
    return np.where(origins_GV > 0, origins_GV, np.inf) * np.where(each_G > 0, each_G, 1)[:, None]


def background_of(
    material: Material, own: slice, sample_GV: np.ndarray, background: Background
) -> np.ndarray:
    """The training text, [V], or the rest of each group's family, [G, V]."""
    if background == "train":
        return material.train_V.astype(np.float64)
    return rest_of(material.family_FV[material.family_G[own]], sample_GV)


def rest_of(family_GV: np.ndarray, own_GV: np.ndarray) -> np.ndarray:
    """What remains of a sum without one summand; what is only rounding is zero."""
    rest_GV = family_GV - own_GV
    rest_GV[rest_GV <= ROUNDING * family_GV] = 0
    return rest_GV


def expected_by_window(
    weight_WJ: np.ndarray,
    group_WJ: np.ndarray,
    family_WJ: np.ndarray,
    families_WJ: np.ndarray,
) -> np.ndarray:
    """What the rest of the family would give each chosen (group, token), window by window.

    ``group_WJ`` is the weight of the group over all tokens, ``family_WJ`` that of its family for
    the token, ``families_WJ`` that of its family over all tokens. NaN where the rest of the family
    has no evidence in a window.
    """
    rest_WJ = rest_of(families_WJ, group_WJ)
    share_WJ = np.full(weight_WJ.shape, np.nan)
    np.divide(rest_of(family_WJ, weight_WJ), rest_WJ, out=share_WJ, where=rest_WJ > 0)
    return group_WJ * share_WJ
