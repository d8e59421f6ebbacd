"""Tables of ``ontogeny compare`` and ``ontogeny seeds``."""

from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

from analysis.transitions.tables import CURVE, RUN

COMPARE, SEEDS = "compare", "seeds"
FINAL, HALF = "final value", "half step"
"""Quantities of ``STABILITY`` and ``OUTCOMES``: the value at the end, and ln(1 + half step)."""

RUNS = pa.schema(
    [
        *RUN,
        pa.field("group", pa.string()),  # settings in which the runs differ, without seeds
        pa.field("weight_seed", pa.int64()),
        pa.field("order_seed", pa.int64()),
        pa.field("steps", pa.int32()),
    ]
)
MILESTONES = pa.schema(
    [
        *(*RUN, *CURVE),
        pa.field("start", pa.float64()),
        pa.field("end", pa.float64()),  # last value; mean of the last 5 % of many points
        pa.field("half_step", pa.float64()),  # NaN if the curve does not change
        pa.field("half_low", pa.float64()),  # 95 % interval
        pa.field("half_high", pa.float64()),
        pa.field("place", pa.int32()),  # among the curves of its run, from 1: the order of halves
    ]
)
STABILITY = pa.schema(
    [
        pa.field("group", pa.string()),
        *CURVE,
        pa.field("quantity", pa.string()),  # final value, or half step as ln(1 + step)
        pa.field("runs", pa.int32()),
        pa.field("mean", pa.float64()),
        pa.field("low", pa.float64()),  # 95 % interval of the mean over runs (Student's t)
        pa.field("high", pa.float64()),
        pa.field("deviation", pa.float64()),  # standard deviation over runs
    ]
)
OUTLIERS = pa.schema(
    [
        *(*RUN, *CURVE),
        pa.field("quantity", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("median", pa.float64()),  # of the runs of the group
        pa.field("robust_z", pa.float64()),  # 0.6745 (value − median) / median absolute deviation
        pa.field("p", pa.float64()),  # as large in any of as many Gaussian runs
        pa.field("q", pa.float64()),  # over curves and quantities
        pa.field("outlier", pa.bool_()),
    ]
)
OUTCOMES = pa.schema(
    [
        pa.field("group", pa.string()),
        *CURVE,
        pa.field("quantity", pa.string()),
        pa.field("runs", pa.int32()),
        pa.field("dip", pa.float64()),  # Hartigan's statistic
        pa.field("p", pa.float64()),  # of one mode
        pa.field("q", pa.float64()),
        pa.field("bic_gain", pa.float64()),  # BIC of one Gaussian less that of two
        pa.field("low_mean", pa.float64()),  # of the two Gaussians
        pa.field("high_mean", pa.float64()),
        pa.field("high_share", pa.float64()),  # weight of the one with the larger mean
        pa.field("two_kinds", pa.bool_()),  # the dip is significant, and two fit better
    ]
)
SHARES = pa.schema(
    [
        pa.field("group", pa.string()),
        *CURVE,
        pa.field("quantity", pa.string()),
        pa.field("boundary", pa.float64()),  # between the two kinds, the same for all groups
        pa.field("runs", pa.int32()),
        pa.field("upper_share", pa.float64()),  # share of the group's runs above the boundary
        pa.field("low", pa.float64()),  # 95 % interval (Wilson)
        pa.field("high", pa.float64()),
        pa.field("p", pa.float64()),  # of equal shares in all groups, by permutation of the runs
        pa.field("q", pa.float64()),
    ]
)
PARTING = pa.schema(
    [
        *RUN,
        pa.field("other", pa.string()),
        pa.field("same_shapes", pa.bool_()),  # parameters have the same names and shapes
        pa.field("same_weights", pa.bool_()),  # at the start
        pa.field("order_step", pa.int32()),  # first step with other datums; -1 if there is none
        pa.field("loss_step", pa.int32()),  # first step with another recorded loss; -1 for none
        pa.field("step", pa.int32()),  # the first of these; 0 for other weights, -1 for none
        pa.field("datums", pa.list_(pa.int32())),  # of that step, by slot
        pa.field("other_datums", pa.list_(pa.int32())),
    ]
)
SIMILARITY = pa.schema(
    [
        *RUN,
        pa.field("other", pa.string()),
        pa.field("layer", pa.string()),  # embedding, layer 0, … of the run
        pa.field("other_layer", pa.string()),
        pa.field("cka", pa.float64()),  # linear CKA of the two, at the ends of the runs
        pa.field("null", pa.float64()),  # the same with positions permuted
        pa.field("positions", pa.int32()),  # of held-out text of the run
    ]
)
CURVES = pa.schema([*RUN, *CURVE, pa.field("step", pa.float64()), pa.field("value", pa.float64())])
SCHEMAS = {
    "runs": RUNS,
    "milestones": MILESTONES,
    "stability": STABILITY,
    "outliers": OUTLIERS,
    "outcomes": OUTCOMES,
    "shares": SHARES,
    "parting": PARTING,
    "similarity": SIMILARITY,
    "curves": CURVES,
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare_runs`` found; each table has the columns of its schema."""

    runs: pd.DataFrame
    milestones: pd.DataFrame
    stability: pd.DataFrame
    outliers: pd.DataFrame
    outcomes: pd.DataFrame
    shares: pd.DataFrame
    parting: pd.DataFrame
    similarity: pd.DataFrame
    curves: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    """What could not be said, and why; one sentence each."""
