"""Which tokens stand out in a sample of datums: the study's univariate heuristic.

A sample is a multiset of datums. Of the tokens that occur in it often enough, those that are most
over-represented against the training text as a whole are kept, and of these the most frequent ones.

Shapes: N datum, T position, K distinct datum of the sample, V token of the vocabulary,
J notable token.
"""

import numpy as np


def count_tokens(
    token_NT: np.ndarray, datum_K: np.ndarray, times_K: np.ndarray, num_tokens: int
) -> np.ndarray:
    """How often each token occurs in datums of which each is taken several times, int64 [V]."""
    token_KT = token_NT[datum_K]
    weight = np.repeat(times_K, token_NT.shape[1])
    # float64, which bincount adds in, is exact for whole numbers up to 2^53.
    return np.bincount(token_KT.ravel(), weight, minlength=num_tokens).astype(np.int64)


def notable_tokens(
    sample_V: np.ndarray,
    train_V: np.ndarray,
    *,
    min_count: int,
    most_frequent: int,
    most_counted: int,
) -> np.ndarray:
    """Ids of the notable tokens of a sample, most frequent first, [J].

    Tokens with ``min_count`` or more occurrences; of these the ``most_frequent`` of highest
    relative frequency (in the sample against the training text, ``train_V``); of these the
    ``most_counted`` of highest count. Ties go to the higher relative frequency, then to the lower
    id. Every token of the sample must occur in the training text.
    """
    token_J = np.flatnonzero(sample_V >= min_count)
    ratio_V = sample_V / np.maximum(train_V, 1)
    token_J = token_J[np.argsort(-ratio_V[token_J], kind="stable")][:most_frequent]
    order = np.lexsort((token_J, -ratio_V[token_J], -sample_V[token_J]))
    return token_J[order][:most_counted]
