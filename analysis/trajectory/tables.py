"""Tables of ``ontogeny trajectory``: one row per checkpoint, metric and component."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

JOB = "trajectory"
TRAJECTORY = pa.schema(
    [
        pa.field("step", pa.int64()),  # updates done before the checkpoint
        pa.field("metric", pa.string()),
        pa.field("component", pa.string()),  # "" for the whole model; layer 0, L0H2, a unit
        pa.field("value", pa.float64()),
        pa.field("n", pa.int64()),  # datums, sequences or entries
        pa.field("standard_error", pa.float64()),  # of the mean over these; NaN if it is no mean
        pa.field("null", pa.float64()),  # value to compare with; NaN if there is none
    ]
)
METRICS = pa.schema(
    [
        pa.field("metric", pa.string()),
        pa.field("unit", pa.string()),  # nats, share, …
        pa.field("meaning", pa.string()),
        pa.field("null", pa.string()),  # meaning of the column null; empty if there is none
        pa.field("omitted", pa.string()),  # why it has no rows; empty if it has
    ]
)
CHECKPOINTS = pa.schema(
    [
        pa.field("step", pa.int64()),
        pa.field("source", pa.string()),  # checkpoint, replay, or the name of a folder or file
    ]
)
TURNS = pa.schema(
    [
        pa.field("metric", pa.string()),  # loss_components or logit_components
        pa.field("step", pa.int64()),  # checkpoint at which the path turns
        pa.field("low", pa.float64()),  # 95 % interval of the step over datums; NaN if unknown
        pa.field("high", pa.float64()),
        pa.field("before", pa.int64()),  # checkpoint from which the way in is taken
        pa.field("after", pa.int64()),  # checkpoint to which the way out is taken
        pa.field("angle", pa.float64()),  # degrees; 0 is straight on, 180 is back
        pa.field("null_angle", pa.float64()),  # mean of the largest angles of the null
        pa.field("p", pa.float64()),  # share of nulls with an angle as large
    ]
)
SCHEMAS = {
    "trajectory": TRAJECTORY,
    "metrics": METRICS,
    "checkpoints": CHECKPOINTS,
    "turns": TURNS,
}


ROUNDING = 1e-5
"""A curve whose range is below this share of its largest absolute value is constant: metrics are
made of float32 numbers, whose sums are rounded by about as much."""


def is_constant(value_K: np.ndarray) -> bool:
    """Whether the values of a curve, [K], differ by no more than rounding."""
    return float(np.ptp(value_K)) <= ROUNDING * float(np.abs(value_K).max())


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Metrics at the checkpoints of a training."""

    trajectory: pd.DataFrame
    """``TRAJECTORY``, sorted by step."""
    metrics: pd.DataFrame
    """``METRICS``: what each metric measures, and which could not be measured."""
    checkpoints: pd.DataFrame
    """``CHECKPOINTS``, sorted by step."""
    turns: pd.DataFrame = field(default_factory=lambda: TURNS.empty_table().to_pandas())
    """``TURNS`` of each path of principal components, the sharpest first; empty without them."""

    def series(self, metric: str, component: str = "") -> pd.DataFrame:
        """Return the rows of one curve, sorted by step."""
        rows = self.trajectory
        chosen = (rows["metric"] == metric) & (rows["component"] == component)
        return rows[chosen].sort_values("step", ignore_index=True)
