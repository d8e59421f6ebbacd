"""Evidence of all groups by token, from any source, and its comparison with a background.

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
"""Largest dense array of groups × tokens: 64 MB."""


@dataclass(frozen=True, eq=False)
class TokenEvidence:
    """Weight of evidence by group and token, with what statistics need to know of it."""

    weight_G: np.ndarray
    """Total weight of each group, over all tokens."""
    family_G: np.ndarray
    sample: Callable[[int, int], np.ndarray]
    """Returns the weights by token of groups [first, end), float64 [end - first, V]."""
    origins: Callable[[int, int], np.ndarray] | None
    """Returns the number of sites that these weights come from, [end - first, V]; None: unknown."""
    family_FV: np.ndarray
    """Weight of each family, summed over its groups."""
    train_V: np.ndarray
    """Occurrences of each token in the text that the evidence comes from."""
    effective_G: np.ndarray
    """Effective number of independent observations behind the weights of each group."""
    counts_G: np.ndarray | None
    """Number of observations behind them; None if the weights are counts."""


@dataclass(frozen=True, eq=False)
class TokenDetails:
    """Details of each chosen (group, token): counts, signs, and weight by window of training."""

    count_J: np.ndarray
    """Number of rows or positions behind the weight."""
    up_J: np.ndarray
    down_J: np.ndarray
    """Weight of shifts above zero, and of the others; NaN where the evidence has no direction."""
    strengthened_J: np.ndarray
    weakened_J: np.ndarray
    """Weight of shifts away from zero, and of the others; NaN likewise."""
    weight_WJ: np.ndarray
    expected_WJ: np.ndarray
    """Weight that the background would give in each window."""
    first_steps: np.ndarray
    """First step of each window."""
    end_steps: np.ndarray
    """One past the last step of each window."""


def choose_tokens(
    evidence: TokenEvidence, method: Method, background: Background, config: SelectionConfig
) -> pd.DataFrame:
    """Choose the tokens of all groups, in slices of groups that bound the memory needed.

    Returns the columns of ``selection.choose``. The study's method tests counts, all others test
    the effective number of observations.
    """
    at_once = max(1, CELLS_AT_ONCE // len(evidence.train_V))
    num_groups = len(evidence.weight_G)
    pieces = [
        choose_in_groups(evidence, slice(first, first + at_once), method, background, config)
        for first in range(0, max(1, num_groups), at_once)
    ]
    return pd.concat(pieces, ignore_index=True)


def choose_in_groups(
    evidence: TokenEvidence,
    own: slice,
    method: Method,
    background: Background,
    config: SelectionConfig,
) -> pd.DataFrame:
    """Like ``choose_tokens``, for the groups of a slice."""
    sample_GV = evidence.sample(own.start, min(own.stop, len(evidence.weight_G)))
    against = background_of(evidence, own, sample_GV, background)
    token_U = np.flatnonzero((np.atleast_2d(against) > 0).any(0) | (sample_GV > 0).any(0))
    most_GU, observations_G = None, evidence.counts_G
    if method != "study":
        observations_G = evidence.effective_G
        most_GU = weight_limits(evidence, own)[:, token_U]
    observed_G = None if observations_G is None else observations_G[own]
    found = choose(
        method, sample_GV[:, token_U], against[..., token_U], config, observed_G, most_GU
    )
    group_J = found["group"].to_numpy(np.int64)
    token_J = token_U[found["token_id"]]
    return found.assign(group=group_J + own.start, token_id=token_J)


def weight_limits(evidence: TokenEvidence, own: slice) -> np.ndarray:
    """Return the most that a token may weigh in each group, [G, V].

    A token has no more observations in a group than it has sites there: one site that moved a
    neuron very often says much about that site, but little about the token.
    """
    weight_G, effective_G = evidence.weight_G[own], evidence.effective_G[own]
    if evidence.origins is None:
        return np.full((len(weight_G), len(evidence.train_V)), np.inf)
    origins_GV = evidence.origins(own.start, own.start + len(weight_G))
    # The weight of one independent observation.
    each_G = weight_G / np.where(effective_G > 0, effective_G, 1)
    return np.where(origins_GV > 0, origins_GV, np.inf) * np.where(each_G > 0, each_G, 1)[:, None]


def background_of(
    evidence: TokenEvidence, own: slice, sample_GV: np.ndarray, background: Background
) -> np.ndarray:
    """Return the training text, [V], or the rest of each group's family, [G, V]."""
    if background == "train":
        return evidence.train_V.astype(np.float64)
    return rest_of(evidence.family_FV[evidence.family_G[own]], sample_GV)


def rest_of(family_GV: np.ndarray, own_GV: np.ndarray) -> np.ndarray:
    """Return a sum without one of its summands; remainders as small as rounding become zero."""
    rest_GV = family_GV - own_GV
    rest_GV[rest_GV <= ROUNDING * family_GV] = 0
    return rest_GV


def expected_by_window(
    weight_WJ: np.ndarray,
    group_WJ: np.ndarray,
    family_WJ: np.ndarray,
    families_WJ: np.ndarray,
) -> np.ndarray:
    """Return the weight expected from the rest of the family, by window and (group, token), [W, J].

    ``group_WJ`` is the weight of the group over all tokens, ``family_WJ`` that of its family for
    the token, ``families_WJ`` that of its family over all tokens. NaN where the rest of the family
    has no evidence in a window.
    """
    rest_WJ = rest_of(families_WJ, group_WJ)
    share_WJ = np.full(weight_WJ.shape, np.nan)
    np.divide(rest_of(family_WJ, weight_WJ), rest_WJ, out=share_WJ, where=rest_WJ > 0)
    return group_WJ * share_WJ
