"""Scores from text alone: BM25, and the number of tokens in common with the query.

Both say how alike datum and query are. A datum that is like the text of a query should raise its
log-probability and lower its loss, so the sign is that of what a user prefers (``Query.better``).

Shapes: Q query, D datum, M token of a datum and its last target, V vocabulary, W token of a query.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy.sparse import csr_array

from analysis.influence.queries.query import Query
from analysis.influence.queries.scored_text import weighted_log_probability
from analysis.run.run import Run

K1, B = 1.5, 0.75
"""BM25's saturation of counts and share of length normalization, with their usual values."""
ABOUT_A_TOKEN = ("token", "effect")
"""Kinds of queries whose text is their token: their positions are spread over a whole split."""


def bm25(run: Run, queries: Sequence[Query]) -> np.ndarray:
    """Return BM25 of every datum for every query's text, [Q, D]; NaN for a query without text."""
    count_DV = token_counts(run)
    return text_scores(run, queries, lambda token_W: bm25_of(count_DV, token_W))


def common_tokens(run: Run, queries: Sequence[Query]) -> np.ndarray:
    """Return how many of the query's distinct tokens every datum has, [Q, D]; NaN without text."""
    count_DV = token_counts(run)
    return text_scores(run, queries, lambda token_W: common_of(count_DV, token_W))


def text_scores(
    run: Run, queries: Sequence[Query], score: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return each query's score of datums with the sign of what a user prefers, [Q, D]."""
    found = np.full((len(queries), run.num_datums), np.nan)
    for row, query in enumerate(queries):
        token_W = query_tokens(run, query)
        if len(token_W):
            found[row] = (-1.0 if query.better == "lower" else 1.0) * score(token_W)
    return found


def bm25_of(count_DV: csr_array, token_W: np.ndarray) -> np.ndarray:
    """Return BM25 of datums for a query, [D]; a token of the query counts as often as it has it.

    Robertson & Zaragoza 2009, equation 3.15, with Lucene's inverse document frequency, which is
    never negative.
    """
    length_D = count_DV.sum(1)
    norm_D = K1 * (1 - B + B * length_D / length_D.mean())
    token_U, times_U = np.unique(token_W, return_counts=True)
    count_DU = count_DV[:, token_U].toarray().astype(np.float64)
    having_U = (count_DU > 0).sum(0)
    rarity_U = np.log1p((len(length_D) - having_U + 0.5) / (having_U + 0.5))
    return (count_DU * (K1 + 1) / (count_DU + norm_D[:, None])) @ (rarity_U * times_U)


def common_of(count_DV: csr_array, token_W: np.ndarray) -> np.ndarray:
    """Return how many distinct tokens of the query each datum has, [D]."""
    return (count_DV[:, np.unique(token_W)].toarray() > 0).sum(1).astype(np.float64)


def token_counts(run: Run) -> csr_array:
    """Return how often each datum has each token, as input or last target, [D, V]."""
    token_DM = np.column_stack([run.token_NT, run.target_NT[:, -1]])
    start_D = np.arange(len(token_DM) + 1) * token_DM.shape[1]
    ones = np.ones(token_DM.size, np.int64)
    found = csr_array((ones, token_DM.ravel(), start_D), shape=(len(token_DM), run.num_tokens))
    found.sum_duplicates()
    return found


def query_tokens(run: Run, query: Query) -> np.ndarray:
    """Return the token ids of a query's text, inputs and scored targets; empty if it has none."""
    if query.description.get("kind") in ABOUT_A_TOKEN:
        return np.array([run.tokens.index(query.description["token"])])
    found = [np.empty(0, np.int64)]
    for part in query.parts:
        if isinstance(part, partial) and part.func is weighted_log_probability:
            token_NT, target_NT, weight_NT = (own.numpy() for own in part.args[1:4])
            # Inputs up to the last scored position are read, and of the targets only scored ones
            # are new: others are inputs too.
            seen_NT = np.maximum.accumulate(weight_NT[:, ::-1] != 0, axis=1)[:, ::-1]
            last_NT = seen_NT & ~np.pad(seen_NT[:, 1:], ((0, 0), (0, 1)))
            found += [token_NT[seen_NT], target_NT[last_NT]]
    return np.concatenate(found)
