"""The own tokens of neurons, their topics, and neurons that are polysemantic.

1. A neuron's *own tokens* are targets that are over-represented in its outlier rows, compared with
   the other neurons of its unit (``analysis.measures.selection``, method odds). Rows of one datum
   are not independent: a neuron counts as (Σ w)² / Σ w² observations, with w its weight per datum.
2. Two tokens are similar if the same neurons have them: if the cosine of their associations with
   all neurons (``analysis.measures.association``) is at least 0.5. Of all pairs of own tokens of
   models trained on WikiText and on Python's reference, 2 to 5 % are.
3. A neuron's own tokens are merged by average linkage while they are similar. A group of at least
   three is a *topic*; a neuron with several topics is polysemantic. The null is the number of such
   neurons after all own tokens are shuffled between neurons.

Shapes: G neuron, N datum, V token of the vocabulary, U token that some neuron owns, C cluster,
J token of one neuron.
"""

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from analysis.measures.association import associations
from analysis.measures.selection import SelectionConfig, choose, others
from analysis.neurons.clustering import average_linkage

Topics = list[list[int]]
"""A neuron's topics, each the ids of its tokens."""

OWN_TOKEN_SELECTION = SelectionConfig(most=20)
"""Selection of own tokens: at most 20 per neuron, at a false discovery rate of 5 %."""
LABEL_SELECTION = SelectionConfig(most=10, min_observations=2)
"""Selection of a cluster's tokens; an observation is a neuron that owns the token."""
MIN_TOPIC_TOKENS = 3
"""Least number of tokens of a topic."""
MIN_COSINE = 0.5
"""Least mean cosine between the tokens of a topic."""


def own_tokens(token_GV: csr_array, datum_GN: csr_array, unit_G: np.ndarray) -> pd.DataFrame:
    """Own tokens of each neuron; columns group (the neuron's row), token_id, rank from 0.

    All neurons of a unit are processed together, as a float64 matrix [neurons, V].
    """
    effective_G = effective_sample_size(datum_GN)
    pieces = [pd.DataFrame({"group": [0], "token_id": [0], "rank": [0]}).iloc[:0]]
    for unit in np.unique(unit_G):
        rows = np.flatnonzero(unit_G == unit)
        sample_GV = token_GV[rows].toarray()
        found = choose("odds", sample_GV, others(sample_GV), OWN_TOKEN_SELECTION, effective_G[rows])
        group = rows[found["group"].to_numpy(np.int64)]
        pieces.append(found[["token_id", "rank"]].assign(group=group))
    return pd.concat(pieces).sort_values(["group", "rank"], ignore_index=True)


def effective_sample_size(datum_GN: csr_array) -> np.ndarray:
    """Kish's effective sample size of each neuron's weights over datums, [G]."""
    square_G = datum_GN.power(2).sum(1)
    return datum_GN.sum(1) ** 2 / np.where(square_G > 0, square_G, 1)


def cluster_tokens(own: pd.DataFrame, label_G: np.ndarray, num_tokens: int) -> list[list[int]]:
    """Tokens that neurons of each cluster own more often than all neurons do, best first."""
    num_clusters = int(label_G.max(initial=-1)) + 1
    cluster_M = label_G[own["group"]]
    token_M = own["token_id"].to_numpy()
    inside = cluster_M >= 0
    key_M = cluster_M[inside].astype(np.int64) * num_tokens + token_M[inside]
    count_CV = np.bincount(key_M, minlength=num_clusters * num_tokens).astype(np.float64)
    count_CV = count_CV.reshape(num_clusters, num_tokens)
    if not num_clusters:
        return []
    all_V = np.bincount(token_M, minlength=num_tokens).astype(np.float64)
    return tokens_by_group(choose("odds", count_CV, all_V, LABEL_SELECTION), num_clusters)


def tokens_by_group(tokens: pd.DataFrame, num_groups: int) -> list[list[int]]:
    """The token ids of each group, in the order of the rows."""
    found = tokens.groupby("group")["token_id"].agg(list)
    return [[int(token) for token in found.get(group, [])] for group in range(num_groups)]


def find_topics(own: pd.DataFrame, token_GV: csr_array) -> list[Topics]:
    """Topics of each neuron as lists of token ids; largest first, then by strongest token."""
    token_U, row_M = np.unique(own["token_id"].to_numpy(np.int64), return_inverse=True)
    if not len(token_U):
        return [[] for _ in range(token_GV.shape[0])]
    profile_UG = associations(csr_array(token_GV.T)).tocsr()[token_U].toarray()
    rows_by_neuron = tokens_by_group(own.assign(token_id=row_M), token_GV.shape[0])
    return [
        [token_U[topic].tolist() for topic in group_tokens(np.array(row_J, int), profile_UG)]
        for row_J in rows_by_neuron
    ]


def shuffle_tokens(own: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Shuffle own tokens between neurons; each neuron keeps its number of tokens."""
    order = np.random.default_rng(seed).permutation(len(own))
    return own.assign(token_id=own["token_id"].to_numpy()[order])


def group_tokens(row_J: np.ndarray, profile_UG: np.ndarray) -> list[np.ndarray]:
    """Group a neuron's own tokens, given as rows of the profiles, strongest first."""
    if len(row_J) < MIN_TOPIC_TOKENS:
        return []
    profile_JG = profile_UG[row_J]
    distance_JJ = np.clip(1 - profile_JG @ profile_JG.T, 0, None)
    label_J = average_linkage(distance_JJ, max_distance=1 - MIN_COSINE)
    groups = [row_J[label_J == label] for label in pd.unique(label_J)]
    return sorted((g for g in groups if len(g) >= MIN_TOPIC_TOKENS), key=len, reverse=True)
