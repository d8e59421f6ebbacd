"""Selection of the tokens that stand out in a group's evidence, by one of six methods.

A group (a neuron, a parameter, a head, …) has evidence: a weight for every token, such as the
number of its outlier rows with the token as target. A background gives the distribution of that
weight if the group were like any other. With w_v the weight of token v, W = Σ w_v and π_v its share
of the background, the *expected* weight is W·π_v and the *relative frequency* is w_v / (W·π_v).
Two of the methods, odds and rate, control the false discovery rate.

- **study**: the published heuristic. Among the tokens counted at least ``min_count`` times, take
  the ``most_frequent`` tokens of highest relative frequency; among these, the ``most_counted``
  tokens of highest count. The score is the count.
- **product**: (1 + log count) · (1 + log relative frequency).
- **mahalanobis**: the Mahalanobis distance of (count, relative frequency) from their mean over the
  tokens of the group's sample, with their covariance: a bivariate z-score.
- **kl**: how much the Kullback–Leibler divergence of the sample from the background decreases
  when the token is removed from both and both are renormalised, in nats.
- **odds**: the log-odds ratio of the token against the background, in nats, shrunken by an
  informative Dirichlet prior (Monroe, Colaresi & Quinn 2008, "Fightin' Words", equations 16 to 20,
  with a known background). With α_v = ``prior`` · π_v and n = Σ counts

      δ_v = log((c_v + α_v) / (n + prior - c_v - α_v)) - log(π_v / (1 - π_v))
      σ_v² = 1 / (c_v + α_v) + 1 / (n + prior - c_v - α_v)

  The score is the lower bound δ_v - z·σ_v at ``confidence``, which discounts ratios that rest on
  few observations. p is the exact binomial tail, the probability of c_v or more among n draws from
  the background. (G² and z agree for frequent tokens, but are anti-conservative for rare ones.) q
  is the Benjamini–Hochberg adjusted p over all tokens of the group.

- **rate**: log((c_v + κ) / (W·π_v + κ)), the relative frequency, shrunken by ``least`` = κ
  observations at the expected rate. p, q and the tokens that qualify are those of *odds*. Among the
  tokens above chance, it ranks those first that stand out furthest, however rare they are.

The study tried product, mahalanobis and kl and dropped them. Its text names them without formulas;
the formulas here are our interpretation. All methods except *study* select only tokens that the
sample has more of than expected.

Shapes: G group, V token of the vocabulary, M chosen (group, token).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from analysis.measures.comparison import Evidence, compare
from analysis.measures.token_scores import (
    ROUNDING,
    binomial_tail,
    divergence_change,
    index_in_group,
    log_odds,
    log_product,
    log_rate,
    mahalanobis,
    q_values,
)
from capture.errors import ConfigError, at_least

Method = Literal["rate", "odds", "study", "product", "mahalanobis", "kl"]
METHODS: tuple[Method, ...] = get_args(Method)
CELLS_AT_ONCE = 2**21
"""Groups × tokens processed at once: about ten float64 arrays of this size exist together."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Thresholds of the selection. The first three apply to the study's method only."""

    min_count: int = 20
    """study: smallest count of a token."""
    most_frequent: int = 200
    """study: number of such tokens, of highest relative frequency, that are considered."""
    most_counted: int = 5
    """study: number of these, of highest count, that are chosen."""
    most: int = 10
    """Other methods: largest number of tokens per group, by score."""
    min_observations: float = 5.0
    """Other methods: smallest count of a token; a smaller one may come from a single datum."""
    max_q: float = 0.05
    """rate, odds: largest share of the chosen tokens expected by chance (false discovery rate)."""
    least: float = 3.0
    """rate: weight of the prior, in observations, that a token is as frequent as expected."""
    prior: float = 100.0
    """odds: weight of the prior, in observations, that a group is like its background."""
    confidence: float = 0.95
    """odds: confidence level of the lower bound; 0.5 scores by the estimate itself."""

    def __post_init__(self) -> None:
        for name in ("min_count", "most_frequent", "most_counted", "most"):
            at_least(f"selection.{name}", getattr(self, name), 1)
        at_least("selection.min_observations", self.min_observations, 0)
        require("max_q", 0 < self.max_q <= 1, self, "must be above 0 and at most 1")
        require("least", 0 <= self.least < np.inf, self, "must be at least 0 and finite")
        require("prior", 0 < self.prior < np.inf, self, "must be above 0 and finite")
        require("confidence", 0.5 <= self.confidence < 1, self, "must be from 0.5 to below 1")


def require(name: str, holds: bool, config: SelectionConfig, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"selection.{name}", f"got {getattr(config, name)}, {wanted}")


def choose(
    method: Method,
    sample_GV: np.ndarray,
    background: np.ndarray,
    config: SelectionConfig,
    effective_G: np.ndarray | None = None,
    most_GV: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return the tokens that stand out in each group: one row each, by group, then rank from 0.

    ``sample_GV`` holds weights ≥ 0, ``background`` weights ≥ 0 on any scale, [V] or [G, V].
    ``effective_G`` is the number of independent observations that the weights of a group amount to
    (Kish: (Σ w)² / Σ w² over its observations); None means that the weights are counts.
    Observations that depend on each other, such as rows of one datum, should count as one;
    otherwise p is too small. ``most_GV`` caps the weights for the decision whether a token is above
    chance; its score uses the whole weight.

    Columns: group, token_id, rank; score, p, q (NaN if the method has none); count (the weight on
    the scale of independent observations), weight, expected (weight), relative_frequency. A token
    absent from the background is given half the weight of the background's rarest token. A group
    without sample or without background has no rows.
    """
    assert method in METHODS, method
    assert sample_GV.shape[-background.ndim :] == background.shape
    at_once = max(1, CELLS_AT_ONCE // max(1, sample_GV.shape[1]))
    pieces = [
        choose_some(
            method,
            sample_GV[start : start + at_once],
            background[None] if background.ndim == 1 else background[start : start + at_once],
            config,
            None if effective_G is None else effective_G[start : start + at_once],
            None if most_GV is None else most_GV[start : start + at_once],
        ).assign(group=lambda found, start=start: found["group"] + start)
        for start in range(0, max(1, len(sample_GV)), at_once)
    ]
    return pd.concat(pieces, ignore_index=True)


def others(sample_GV: np.ndarray) -> np.ndarray:
    """Return, for each group, the sum over all other groups: a unit's other neurons, [G, V]."""
    total_V = sample_GV.sum(0)
    rest_GV = total_V - sample_GV
    # total − own leaves rounding error where only this group has the token.
    rest_GV[rest_GV <= ROUNDING * total_V] = 0
    return rest_GV


def choose_some(
    method: Method,
    sample_GV: np.ndarray,
    background_GV: np.ndarray,
    config: SelectionConfig,
    effective_G: np.ndarray | None,
    most_GV: np.ndarray | None,
) -> pd.DataFrame:
    """Apply ``choose`` to the groups that fit into memory at once."""
    evidence = compare(sample_GV, background_GV, effective_G)
    p_GV = q_GV = np.broadcast_to(np.nan, sample_GV.shape)
    if method == "study":
        chosen = study_tokens(evidence, config)
        return tabulate(chosen, evidence, evidence.count_GV, p_GV, q_GV)
    sure = evidence
    if most_GV is not None:
        sure = compare(np.minimum(sample_GV, most_GV), background_GV, effective_G)
    allowed_GV = sure.more_GV & (sure.count_GV >= config.min_observations)
    with np.errstate(divide="ignore", invalid="ignore"):  # in excluded cells
        match method:
            case "product":
                score_GV = log_product(evidence)
            case "mahalanobis":
                score_GV = mahalanobis(evidence)
            case "kl":
                score_GV = divergence_change(evidence)
            case "odds" | "rate":
                score_GV = log_rate(evidence, config.least)
                if method == "odds":
                    score_GV = log_odds(evidence, config.prior, config.confidence)
                p_GV = binomial_tail(sure)
                q_GV = q_values(p_GV, sure.num_tokens_G, config.max_q)
                allowed_GV &= q_GV <= config.max_q
    chosen = best(allowed_GV, config.most, -score_GV)
    return tabulate(chosen, evidence, score_GV, p_GV, q_GV)


def study_tokens(evidence: Evidence, config: SelectionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Select by the study's heuristic; ties go to higher relative frequency, then lower id."""
    ratio_GV, count_GV = evidence.ratio_GV, evidence.count_GV
    counted_GV = (count_GV >= config.min_count) & (ratio_GV > 0)
    frequent_GV = np.zeros(count_GV.shape, bool)
    frequent_GV[best(counted_GV, config.most_frequent, -ratio_GV)] = True
    return best(frequent_GV, config.most_counted, -count_GV, -ratio_GV)


# --- picking --------------------------------------------------------------------------------------


def best(allowed_GV: np.ndarray, most: int, *keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``most`` allowed cells of each group, sorted by the keys, then by token.

    Keys ascend. Returns the cells' groups and tokens, both [M].
    """
    group_M, token_M = np.nonzero(allowed_GV)
    values = [key_GV[group_M, token_M] for key_GV in reversed(keys)]
    order_M = np.lexsort((token_M, *values, group_M))
    group_M, token_M = group_M[order_M], token_M[order_M]
    kept_M = index_in_group(group_M) < most
    return group_M[kept_M], token_M[kept_M]


def tabulate(
    chosen: tuple[np.ndarray, np.ndarray],
    evidence: Evidence,
    score_GV: np.ndarray,
    p_GV: np.ndarray,
    q_GV: np.ndarray,
) -> pd.DataFrame:
    """Build the columns of ``choose`` for the chosen cells, in their order."""
    group_M, token_M = chosen
    weight_M, relative_M = evidence.weight_GV[chosen], evidence.relative_GV[chosen]
    return pd.DataFrame(
        {
            "group": group_M.astype(np.int32),
            "token_id": token_M.astype(np.int32),
            "rank": index_in_group(group_M).astype(np.int32),
            "score": score_GV[chosen].astype(np.float64),
            "p": p_GV[chosen],
            "q": q_GV[chosen],
            "count": evidence.count_GV[chosen].astype(np.float64),
            "weight": weight_M.astype(np.float64),
            "expected": weight_M / relative_M,
            "relative_frequency": relative_M,
        }
    )
