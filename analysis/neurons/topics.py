"""What a neuron is about, and whether that is one thing or several.

1. A neuron's *own tokens* are targets that stand out in its outlier rows against those of the
   unit's other neurons (``analysis.measures.selection``, method odds). Rows of one datum are not
   independent: a neuron's weight counts as (Σ w)² / Σ w² observations, w its weight per datum.
2. Two tokens are alike if the same neurons have them: if the cosine of their associations with all
   neurons (``analysis.measures.association``) is at least a half. Pairs of own tokens of models of
   WikiText and of Python's reference reach that in 2 to 5 of 100 cases.
3. A neuron's own tokens are joined by average linkage as long as they are alike. A group of at
   least three is a *topic*; a neuron with several topics is polysemantic. How many would be so if
   all own tokens were dealt out anew to the neurons says how far to trust that.

Shapes: G neuron, N datum, V token of the vocabulary, U token that some neuron owns, C cluster,
J token of one neuron.
"""

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from analysis.measures.association import associations
from analysis.measures.selection import SelectionConfig, choose, others
from analysis.neurons.clustering import joined_by_average

Topics = list[list[int]]
"""A neuron's topics, each the ids of its tokens."""

OWN_TOKENS = SelectionConfig(most=20)
"""At most so many own tokens a neuron; of these at most 5 % are there by chance."""
LABEL = SelectionConfig(most=10, min_observations=2)
"""A cluster's tokens; an observation is a neuron that owns the token."""
TOPIC_TOKENS = 3
ALIKE = 0.5
"""Least mean cosine of the tokens of a topic."""


def own_tokens(token_GV: csr_array, datum_GN: csr_array, unit_G: np.ndarray) -> pd.DataFrame:
    """Tokens that stand out for each neuron among its unit's: group, token_id, rank from 0.

    ``group`` is the neuron's row. A unit's rows are worked on together, as float64 [neurons, V].
    """
    effective_G = independent(datum_GN)
    pieces = [pd.DataFrame({"group": [0], "token_id": [0], "rank": [0]}).iloc[:0]]
    for unit in np.unique(unit_G):
        rows = np.flatnonzero(unit_G == unit)
        sample_GV = token_GV[rows].toarray()
        found = choose("odds", sample_GV, others(sample_GV), OWN_TOKENS, effective_G[rows])
        group = rows[found["group"].to_numpy(np.int64)]
        pieces.append(found[["token_id", "rank"]].assign(group=group))
    return pd.concat(pieces).sort_values(["group", "rank"], ignore_index=True)


def independent(datum_GN: csr_array) -> np.ndarray:
    """To how many independent observations each neuron's weights amount (Kish), [G]."""
    square_G = datum_GN.power(2).sum(1)
    return datum_GN.sum(1) ** 2 / np.where(square_G > 0, square_G, 1)


def cluster_tokens(own: pd.DataFrame, label_G: np.ndarray, num_tokens: int) -> list[list[int]]:
    """Tokens that the neurons of each cluster own more often than all do, best first."""
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
    return by_group(choose("odds", count_CV, all_V, LABEL), num_clusters)


def by_group(tokens: pd.DataFrame, num_groups: int) -> list[list[int]]:
    """The token ids of each group, in their order."""
    found = tokens.groupby("group")["token_id"].agg(list)
    return [[int(token) for token in found.get(group, [])] for group in range(num_groups)]


def find_topics(own: pd.DataFrame, token_GV: csr_array) -> list[Topics]:
    """The topics of each neuron as lists of token ids; largest first, then by strongest token."""
    token_U, place_M = np.unique(own["token_id"].to_numpy(np.int64), return_inverse=True)
    if not len(token_U):
        return [[] for _ in range(token_GV.shape[0])]
    profile_UG = associations(csr_array(token_GV.T)).tocsr()[token_U].toarray()
    places = by_group(own.assign(token_id=place_M), token_GV.shape[0])
    return [
        [token_U[topic].tolist() for topic in topics_of(np.array(place_J, int), profile_UG)]
        for place_J in places
    ]


def dealt_anew(own: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same own tokens, given to neurons at random; each neuron keeps its number of them."""
    order = np.random.default_rng(seed).permutation(len(own))
    return own.assign(token_id=own["token_id"].to_numpy()[order])


def topics_of(place_J: np.ndarray, profile_UG: np.ndarray) -> list[np.ndarray]:
    """A neuron's own tokens (places in the profiles, strongest first), grouped."""
    if len(place_J) < TOPIC_TOKENS:
        return []
    profile_JG = profile_UG[place_J]
    distance_JJ = np.clip(1 - profile_JG @ profile_JG.T, 0, None)
    label_J = joined_by_average(distance_JJ, farthest=1 - ALIKE)
    groups = [place_J[label_J == label] for label in pd.unique(label_J)]
    return sorted((g for g in groups if len(g) >= TOPIC_TOKENS), key=len, reverse=True)
