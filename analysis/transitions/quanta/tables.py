"""Tables of ``ontogeny quanta``."""

from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

JOB = "quanta"
GRADIENTS, LOSS_CURVES = "gradients", "loss curves"
"""Kinds of clusters."""
CLUSTER = [pa.field("kind", pa.string()), pa.field("cluster", pa.int32())]

CLUSTERS = pa.schema(
    [
        *CLUSTER,
        pa.field("positions", pa.int32()),
        pa.field("cosine", pa.float64()),  # mean over pairs of its gradients; NaN for one position
        pa.field("null_cosine", pa.float64()),  # of the shuffled clusters nearest in size, mean
        pa.field("first_loss", pa.float64()),  # nats, mean over positions, at the first checkpoint
        pa.field("last_loss", pa.float64()),
        pa.field("half_step", pa.float64()),  # half of the change is made; NaN if unchanged
        pa.field("half_low", pa.float64()),  # 95 % interval
        pa.field("half_high", pa.float64()),
        pa.field("share", pa.float64()),  # largest share of the change while the step doubles
        pa.field("window_first", pa.float64()),  # shortest stretch with 80 % of it, in steps
        pa.field("window_end", pa.float64()),
        pa.field("fallen", pa.float64()),  # inside this stretch, nats; negative for a rise
        pa.field("q", pa.float64()),  # that smooth curves or random walks reach this share
        pa.field("verdict", pa.string()),  # as in the table curves of transitions
        pa.field("tokens", pa.string()),  # the most frequent targets, with their numbers
    ]
)
CURVES = pa.schema(
    [
        *CLUSTER,
        pa.field("step", pa.int64()),
        pa.field("loss", pa.float64()),  # mean over the positions, nats
        pa.field("standard_error", pa.float64()),
    ]
)
CHANGES = pa.schema(
    [
        *CLUSTER,
        pa.field("step", pa.float64()),  # between the two segments
        pa.field("low", pa.float64()),  # 95 % interval
        pa.field("high", pa.float64()),
        pa.field("gain", pa.float64()),  # share of the residual that the cut explains
        pa.field("p_smooth", pa.float64()),
        pa.field("p_walk", pa.float64()),
    ]
)
POSITIONS = pa.schema(
    [
        pa.field("datum", pa.int32()),  # of the split
        pa.field("position", pa.int32()),  # of the target's prediction, from 0
        pa.field("context", pa.string()),  # the last tokens before the target
        pa.field("target", pa.string()),
        pa.field("gradient_cluster", pa.int32()),
        pa.field("curve_cluster", pa.int32()),
        pa.field("first_loss", pa.float64()),  # nats
        pa.field("last_loss", pa.float64()),
    ]
)
FALLS = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("draw", pa.int32()),  # -1: what was found; from 0: shuffled
        pa.field("sudden_share", pa.float64()),  # of the fall of all loss, in sudden windows
        pa.field("sudden_clusters", pa.int32()),
        pa.field("cosine", pa.float64()),  # of gradients, mean over positions and clusters' others
        pa.field("explained", pa.float64()),  # variance of loss curves between clusters
    ]
)
SCHEMAS = {
    "clusters": CLUSTERS,
    "curves": CURVES,
    "changes": CHANGES,
    "positions": POSITIONS,
    "falls": FALLS,
}


@dataclass(frozen=True, eq=False)
class Quanta:
    """What was found; each table has the columns of its schema."""

    clusters: pd.DataFrame
    curves: pd.DataFrame
    changes: pd.DataFrame
    positions: pd.DataFrame
    falls: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    """What a reader must know about the choice of positions; one sentence each."""
