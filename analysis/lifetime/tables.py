"""Files of the record of lifetime shifts, in ``RUN/analysis/lifetime/``.

``outliers-NNNNNN.parquet`` has the rows of one segment, with the columns of the run's own outliers.
"""

import pyarrow as pa

JOB = "lifetime"
FOLDER = f"analysis/{JOB}"
CONTRIBUTIONS_KEY = f"{FOLDER}/contributions.parquet"

UNITS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("change", pa.float64()),  # norm of last weights - initial weights
        pa.field("shifts", pa.float64()),  # norm of the sum of all lifetime shifts
        pa.field("decay", pa.float64()),  # norm of what decay took from the initial weights
        pa.field("missed", pa.float64()),  # norm of change - shifts - decay, divided by change
    ]
)
"""One row per captured unit. The sum is over all datums and steps, not only over outliers. Where
shifts are of the loss at the last position only, they need not sum to the change."""

UPDATE_NORMS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("by", pa.string()),  # target or input: what token_id is of each position
        pa.field("token_id", pa.int32()),
        pa.field("update_norms", pa.list_(pa.float32())),  # of each neuron of the unit
    ]
)
"""One row per unit, kind and token of a window of training, in ``update-norms-NNNN.parquet``:
Σ over positions of the norm of the position's lifetime shift of the neuron's weights."""

CONTRIBUTIONS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("by", pa.string()),  # target or input
        pa.field("token_id", pa.int32()),
        pa.field("contributions", pa.list_(pa.float32())),  # to each neuron of the unit
    ]
)
"""One row per MLP unit, kind and token: Σ over all positions of the run of the lifetime shift along
the neuron's change, in units of the weight (``analysis.lifetime.contributions``)."""

NEURONS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),
        pa.field("change", pa.float64()),  # norm of the change of its weights over the run
        pa.field("shifts", pa.float64()),  # sum of all lifetime shifts, along this change
        pa.field("decay", pa.float64()),  # what decay took from the initial weights, along it
    ]
)
"""One row per neuron of an MLP unit; change = shifts + decay, up to rounding."""


def outliers_key(segment: int) -> str:
    """Return the key of the outliers of a segment."""
    return f"{FOLDER}/outliers-{segment:06d}.parquet"


def norms_key(window: int) -> str:
    """Return the key of the update norms of a window of training."""
    return f"{FOLDER}/update-norms-{window:04d}.parquet"
