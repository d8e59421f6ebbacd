"""Evidence from outlier rows, as ``Material`` and as ``Told``.

How many independent observations are a group's rows? What moves a weight of a neuron at some place
of the text moves many of its weights at once, and again in every epoch, so a place of the text is
one observation, of more or less weight. Kish's effective number of them is (Σ w)² / Σ w² with w the
weight of each place in the group. In long texts Σ w² is estimated from some of the datums
(``samples.DATUMS_IN_DETAIL``). A token has no more observations in a group than it has places.
Where the evidence is whole windows, a datum is T observations.

Shapes: N datum, T position, V token of the vocabulary, G group, F family, J lesson, W window of
training.
"""

from functools import partial

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from analysis.attribution.collect import Collected
from analysis.attribution.row_passes import OutlierRows
from analysis.attribution.sparse_sums import Sums, count_tokens, token_matrix
from analysis.attribution.token_evidence import Material, Told, expected_by_window
from analysis.attribution.token_history import Lessons
from analysis.levels import Groups

# --- as material ----------------------------------------------------------------------------------


def material_of(rows: OutlierRows, groups: Groups, collected: Collected) -> Material:
    """The evidence of the named groups and their families."""
    run, num_groups = rows.run, groups.num_groups
    named, datums = np.s_[: groups.num_named], collected.datums
    seen = rows.seen(collected.rows_N)
    if rows.whole_windows:
        tokens_each, origins = rows.reading.window, None
        by_datum_GN = datums.matrix(num_groups, datums.value_CK[-1])
        token_NV = token_matrix(rows.token_NT, run.num_tokens)
        sample = partial(windows_sample, by_datum_GN, token_NV)
        family_FV = (members(groups) @ by_datum_GN @ token_NV).toarray()
    else:
        tokens_each, tokens = 1, collected.tokens
        by_token_GV = tokens.matrix(num_groups, tokens.value_CK[0])
        sample = partial(dense, by_token_GV)
        origins = partial(dense, tokens.matrix(num_groups, tokens.origins_K))
        family_FV = (members(groups) @ by_token_GV).toarray()
    rows_G = group_sums(datums, num_groups)[named] * tokens_each
    return Material(
        weight_G=group_sums(datums, num_groups, -1)[named] * tokens_each,
        family_G=groups.family_G[named],
        sample=sample,
        origins=origins,
        family_FV=family_FV,
        train_V=count_tokens(rows.token_NT, seen, np.ones_like(seen), run.num_tokens),
        effective_G=effective_number(collected, num_groups)[named] * tokens_each,
        counts_G=None if len(datums.value_CK) == 1 else rows_G,
    )


def windows_sample(by_datum_GN: csr_array, token_NV: csr_array, first: int, end: int) -> np.ndarray:
    """The tokens of the windows of some groups' datums, float64 [end - first, V]."""
    return (by_datum_GN[first:end] @ token_NV).toarray()


def dense(by_token_GV: csr_array, first: int, end: int) -> np.ndarray:
    return by_token_GV[first:end].toarray()


def members(groups: Groups) -> csr_array:
    """1 where a group belongs to a family, [F, G]."""
    ones, places = np.ones(groups.num_groups), np.arange(groups.num_groups)
    return csr_array((ones, (groups.family_G, places)), (groups.num_families, groups.num_groups))


def group_sums(sums: Sums, num_groups: int, value: int = 0) -> np.ndarray:
    return np.bincount(sums.group_K, sums.value_CK[value], num_groups)


def effective_number(collected: Collected, num_groups: int) -> np.ndarray:
    """Kish's effective number of observations behind each group, [G].

    Places are never fewer than datums, so where too few of them were told apart for an estimate,
    the effective number of datums stands.
    """
    weight_G = group_sums(collected.datums, num_groups, -1)
    datums_G = kish(weight_G, collected.datums)
    return np.maximum(datums_G, kish(weight_G, collected.places) / collected.stride)


def kish(weight_G: np.ndarray, parts: Sums) -> np.ndarray:
    """(Σ w)² / Σ w² with the weight of each group and of its parts, 0 where there are none."""
    squares_G = np.bincount(parts.group_K, parts.value_CK[-1] ** 2, len(weight_G))
    return np.divide(weight_G**2, squares_G, out=np.zeros(len(weight_G)), where=squares_G > 0)


# --- as told --------------------------------------------------------------------------------------


def told_by_rows(
    rows: OutlierRows, groups: Groups, lessons: pd.DataFrame, found: Lessons, train_V: np.ndarray
) -> Told:
    """What the second pass found, with expectations by window."""
    weight_J = found.weight_WJ.sum(0)
    bounds = rows.window_steps
    return Told(
        count_J=found.rows_J,
        up_J=found.up_J,
        down_J=weight_J - found.up_J,
        strengthened_J=found.strengthened_J,
        weakened_J=weight_J - found.strengthened_J,
        weight_WJ=found.weight_WJ,
        expected_WJ=expected(rows, groups, lessons, found, train_V),
        first_steps=bounds[:-1],
        end_steps=bounds[1:],
    )


def expected(
    rows: OutlierRows, groups: Groups, lessons: pd.DataFrame, found: Lessons, train_V: np.ndarray
) -> np.ndarray:
    """The weight that the background would give each lesson in each window, [W, J]."""
    group_J, token_J = lessons["group"].to_numpy(), lessons["token_id"].to_numpy()
    group_WJ = found.group_WG[:, group_J]
    if rows.config.background == "train":
        return group_WJ * (train_V[token_J] / train_V.sum())
    family_J = groups.family_G[group_J]
    column_J = np.searchsorted(np.unique(token_J), token_J)
    families_WF = (members(groups) @ found.group_WG.T).T
    return expected_by_window(
        found.weight_WJ, group_WJ, found.family_WFS[:, family_J, column_J], families_WF[:, family_J]
    )
