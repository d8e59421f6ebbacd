"""Evidence from outlier rows, as ``TokenEvidence`` and as ``TokenDetails``.

The rows of a group are not independent observations: a site of the text moves many weights of a
neuron at once, and again in every epoch. So a site counts as one observation, whose weight w is
its sum over the rows of the group. Kish's effective number of observations is (Σ w)² / Σ w². In
long texts Σ w² is estimated from every n-th datum (``collect.DATUMS_IN_DETAIL``). A token has no
more observations in a group than it has sites. Where the evidence is whole windows, a datum counts
as T observations.

Shapes: N datum, T position, V token of the vocabulary, G group, F family, J chosen (group, token),
W window of training.
"""

from functools import partial

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from analysis.attribution.collect import Collected
from analysis.attribution.row_passes import OutlierRows
from analysis.attribution.sparse_sums import SparseSums, count_tokens, token_matrix
from analysis.attribution.token_evidence import TokenDetails, TokenEvidence, expected_by_window
from analysis.attribution.token_history import TokenHistory
from analysis.levels import Groups

# --- TokenEvidence --------------------------------------------------------------------------------


def evidence_from_rows(rows: OutlierRows, groups: Groups, collected: Collected) -> TokenEvidence:
    """Return the evidence of the named groups and of their families."""
    run, num_groups = rows.run, groups.num_groups
    named, datums = np.s_[: groups.num_named], collected.datums
    seen = rows.datums_with_rows(collected.rows_N)
    if rows.whole_windows:
        by_datum_GN = datums.matrix(num_groups, datums.value_CK[-1])
        origins = None
        token_NV = token_matrix(rows.token_NT, run.num_tokens)
        if rows.reader.length_N is not None:
            token_NV = csr_array(token_NV.multiply(rows.is_token_V))
        sample = partial(sample_windows, by_datum_GN, token_NV)
        family_FV = (family_membership(groups) @ by_datum_GN @ token_NV).toarray()
    else:
        tokens = collected.tokens
        by_token_GV = tokens.matrix(num_groups, tokens.value_CK[0])
        sample = partial(dense_rows, by_token_GV)
        origins = partial(dense_rows, tokens.matrix(num_groups, tokens.origins_K))
        family_FV = (family_membership(groups) @ by_token_GV).toarray()
    return TokenEvidence(
        weight_G=token_sums(rows, datums, num_groups, -1)[named],
        family_G=groups.family_G[named],
        sample=sample,
        origins=origins,
        family_FV=family_FV,
        train_V=count_tokens(rows.token_NT, seen, np.ones_like(seen), run.num_tokens)
        * rows.is_token_V,
        effective_G=(
            effective_number(collected, num_groups) * tokens_each(rows, datums, num_groups)
        )[named],
        counts_G=None if len(datums.value_CK) == 1 else token_sums(rows, datums, num_groups)[named],
    )


def token_sums(
    rows: OutlierRows, datums: SparseSums, num_groups: int, value: int = 0
) -> np.ndarray:
    """Return sums over the rows of each group, times the tokens that a row is evidence for, [G]."""
    reader = rows.reader
    if not rows.whole_windows:
        return group_sums(datums, num_groups, value)
    if reader.length_N is None:
        return group_sums(datums, num_groups, value) * reader.window
    return datums.matrix(num_groups, datums.value_CK[value]) @ reader.length_N


def tokens_each(rows: OutlierRows, datums: SparseSums, num_groups: int) -> np.ndarray:
    """Return the mean number of tokens that a row of each group is evidence for, [G]."""
    rows_G = group_sums(datums, num_groups)
    tokens_G = token_sums(rows, datums, num_groups)
    return np.divide(tokens_G, rows_G, out=np.ones(num_groups), where=rows_G > 0)


def sample_windows(by_datum_GN: csr_array, token_NV: csr_array, first: int, end: int) -> np.ndarray:
    """Return the tokens of the windows of these groups' datums, float64 [end - first, V]."""
    return (by_datum_GN[first:end] @ token_NV).toarray()


def dense_rows(by_token_GV: csr_array, first: int, end: int) -> np.ndarray:
    return by_token_GV[first:end].toarray()


def family_membership(groups: Groups) -> csr_array:
    """Return a matrix that is 1 where a group belongs to a family, [F, G]."""
    ones, numbers = np.ones(groups.num_groups), np.arange(groups.num_groups)
    return csr_array((ones, (groups.family_G, numbers)), (groups.num_families, groups.num_groups))


def group_sums(sums: SparseSums, num_groups: int, value: int = 0) -> np.ndarray:
    return np.bincount(sums.group_K, sums.value_CK[value], num_groups)


def effective_number(collected: Collected, num_groups: int) -> np.ndarray:
    """Return Kish's effective number of observations of each group, [G].

    Sites split datums further, so their effective number is at least that of datums. Where sums by
    site exist for too few datums to estimate it, the effective number of datums is returned.
    """
    weight_G = group_sums(collected.datums, num_groups, -1)
    datums_G = effective_sample_size(weight_G, collected.datums)
    return np.maximum(datums_G, effective_sample_size(weight_G, collected.sites) / collected.stride)


def effective_sample_size(weight_G: np.ndarray, parts: SparseSums) -> np.ndarray:
    """Return (Σ w)² / Σ w² of each group, with w the weights of its parts; 0 without parts, [G]."""
    squares_G = np.bincount(parts.group_K, parts.value_CK[-1] ** 2, len(weight_G))
    return np.divide(weight_G**2, squares_G, out=np.zeros(len(weight_G)), where=squares_G > 0)


# --- TokenDetails ---------------------------------------------------------------------------------


def details_from_rows(
    rows: OutlierRows,
    groups: Groups,
    chosen: pd.DataFrame,
    found: TokenHistory,
    train_V: np.ndarray,
) -> TokenDetails:
    """Return details of the chosen (group, token) from the second pass, ``found``."""
    weight_J = found.weight_WJ.sum(0)
    bounds = rows.window_steps
    return TokenDetails(
        count_J=found.rows_J,
        up_J=found.up_J,
        down_J=weight_J - found.up_J,
        strengthened_J=found.strengthened_J,
        weakened_J=weight_J - found.strengthened_J,
        weight_WJ=found.weight_WJ,
        expected_WJ=expected_weights(rows, groups, chosen, found, train_V),
        first_steps=bounds[:-1],
        end_steps=bounds[1:],
    )


def expected_weights(
    rows: OutlierRows,
    groups: Groups,
    chosen: pd.DataFrame,
    found: TokenHistory,
    train_V: np.ndarray,
) -> np.ndarray:
    """Return the weight that the background would give each (group, token) by window, [W, J]."""
    group_J, token_J = chosen["group"].to_numpy(), chosen["token_id"].to_numpy()
    group_WJ = found.group_WG[:, group_J]
    if rows.config.background == "train":
        return group_WJ * (train_V[token_J] / train_V.sum())
    family_J = groups.family_G[group_J]
    column_J = np.searchsorted(np.unique(token_J), token_J)
    families_WF = (family_membership(groups) @ found.group_WG.T).T
    return expected_by_window(
        found.weight_WJ, group_WJ, found.family_WFS[:, family_J, column_J], families_WF[:, family_J]
    )
