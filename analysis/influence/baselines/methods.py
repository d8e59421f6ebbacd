"""The baselines by name, and random scores.

Shapes: Q query, D datum.
"""

from collections.abc import Callable, Sequence

import numpy as np

from analysis.influence.baselines.adamw_influence import adamw_influence
from analysis.influence.baselines.ekfac import ekfac
from analysis.influence.baselines.gradients import final_gradient_cosine, final_gradient_dot
from analysis.influence.baselines.record import outlier_record, tallies
from analysis.influence.baselines.text import bm25, common_tokens
from analysis.influence.queries.query import Query
from analysis.run.run import Run

RANDOM = "random"
Method = Callable[[Run, Sequence[Query]], np.ndarray]
"""A run and Q queries in, scores [Q, D] out."""


def random_scores(run: Run, queries: Sequence[Query], seed: int = 0) -> np.ndarray:
    """Return scores drawn from a normal distribution: what a method without information gives."""
    return np.random.default_rng(seed).standard_normal((len(queries), run.num_datums))


BASELINES: dict[str, Method] = {
    "gradient": final_gradient_dot,
    "cosine": final_gradient_cosine,
    "ekfac": ekfac,
    "adamw-influence": adamw_influence,
    "outliers": outlier_record,
    "tallies": tallies,
    "bm25": bm25,
    "common-tokens": common_tokens,
    RANDOM: random_scores,
}
"""Name on the command line → method."""
