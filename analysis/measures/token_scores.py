"""Statistics that score how far each token stands out from a background.

Formulas and sources are in ``analysis.measures.selection``. The score of a token that a statistic
excludes has no meaning and may be NaN or infinite.

Shapes: G group, V token of the vocabulary, M entry.
"""

import numpy as np
from scipy import special

from analysis.measures.comparison import Evidence
from analysis.measures.multiple_testing import benjamini_hochberg

ROUNDING = 1e-12
"""A difference of sums below this share of the sum counts as rounding error."""


def log_product(evidence: Evidence) -> np.ndarray:
    return (1 + np.log(evidence.count_GV)) * (1 + np.log(evidence.relative_GV))


def mahalanobis(evidence: Evidence) -> np.ndarray:
    """Return the Mahalanobis distance of (count, relative frequency) from their mean.

    If the two are perfectly correlated, it is the distance along their line.
    """
    present_GV = evidence.weight_GV > 0
    count_GV = standardised(evidence.count_GV, present_GV)
    relative_GV = standardised(evidence.relative_GV, present_GV)
    num_G1 = np.maximum(present_GV.sum(1, keepdims=True), 1)
    r_G1 = (count_GV * relative_GV).sum(1, keepdims=True) / num_G1
    independent_G1 = np.maximum(1 - r_G1**2, ROUNDING)
    return np.sqrt(count_GV**2 + (relative_GV - r_G1 * count_GV) ** 2 / independent_G1)


def standardised(x_GV: np.ndarray, present_GV: np.ndarray) -> np.ndarray:
    """Return z-scores among each row's present cells; 0 elsewhere and if all are equal."""
    num_G1 = np.maximum(present_GV.sum(1, keepdims=True), 1)
    mean_G1 = np.where(present_GV, x_GV, 0).sum(1, keepdims=True) / num_G1
    away_GV = np.where(present_GV, x_GV - mean_G1, 0)
    deviation_G1 = np.sqrt((away_GV**2).sum(1, keepdims=True) / num_G1)
    equal_G1 = deviation_G1 <= ROUNDING * np.abs(mean_G1)
    return np.where(equal_G1, 0, away_GV / np.where(equal_G1, 1, deviation_G1))


def divergence_change(evidence: Evidence) -> np.ndarray:
    """Return KL(sample‖background) minus its value without the token, in nats.

    With s the sample's shares, removing v from both distributions leaves
    (KL − s_v log(s_v / π_v)) / (1 − s_v) + log((1 − π_v) / (1 − s_v)).
    """
    relative_GV, share_GV = evidence.relative_GV, evidence.share_GV
    sample_GV = relative_GV * share_GV
    term_GV = special.xlogy(sample_GV, relative_GV)
    divergence_G1 = term_GV.sum(1, keepdims=True)
    left_GV = 1 - sample_GV
    without_GV = (divergence_G1 - term_GV) / left_GV + np.log((1 - share_GV) / left_GV)
    return divergence_G1 - np.where(left_GV > ROUNDING, without_GV, 0)  # no other token: KL is 0


def log_odds(evidence: Evidence, prior: float, confidence: float) -> np.ndarray:
    """Return the lower bound of the shrunken log-odds ratio, in nats."""
    share_GV = evidence.share_GV
    token_GV = evidence.count_GV + prior * share_GV
    rest_GV = evidence.count_GV.sum(1, keepdims=True) + prior - token_GV
    deviation_GV = np.sqrt(1 / token_GV + 1 / rest_GV)
    estimate_GV = np.log(token_GV / rest_GV) - special.logit(share_GV)
    return estimate_GV - special.ndtri(confidence) * deviation_GV


def log_rate(evidence: Evidence, least: float) -> np.ndarray:
    """Return the log of the shrunken relative frequency, in nats."""
    expected_GV = evidence.count_GV.sum(1, keepdims=True) * evidence.share_GV
    return np.log((evidence.count_GV + least) / (expected_GV + least))


def binomial_tail(evidence: Evidence) -> np.ndarray:
    """Return P(at least the token's count | background); 1 if it is no more than expected."""
    count_GV, more_GV = evidence.count_GV, evidence.more_GV
    num_G1 = count_GV.sum(1, keepdims=True)
    share_GV = np.broadcast_to(evidence.share_GV, count_GV.shape)
    p_GV = np.ones(count_GV.shape)
    # P(X ≥ c) of n draws is the regularised incomplete beta function I_π(c, n − c + 1), which also
    # extends the binomial tail to fractional counts.
    rest_M = (num_G1 - count_GV)[more_GV]
    p_GV[more_GV] = special.betainc(count_GV[more_GV], rest_M + 1, share_GV[more_GV])
    return p_GV


def q_values(p_GV: np.ndarray, num_tokens_G: np.ndarray, max_q: float) -> np.ndarray:
    """Return Benjamini–Hochberg q-values within each group, exact up to ``max_q``, else 1.

    q is at least p, and a q ≤ ``max_q`` depends only on p-values ≤ ``max_q``. So only these are
    sorted; the others count in the number of tests.
    """
    cells = group_M, _ = np.nonzero(p_GV <= max_q)
    index_M = index_in_group(group_M)
    p_GK = np.ones((len(p_GV), index_M.max(initial=0) + 1))
    p_GK[group_M, index_M] = p_GV[cells]
    q_GV = np.ones(p_GV.shape)
    q_GV[cells] = benjamini_hochberg(p_GK, num_tokens_G)[group_M, index_M]
    return q_GV


def index_in_group(group_M: np.ndarray) -> np.ndarray:
    """Number the entries within each group from 0; ``group_M`` ascends, [M]."""
    return np.arange(len(group_M)) - np.searchsorted(group_M, group_M)
