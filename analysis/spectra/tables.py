"""The tables of a spectrum."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from analysis.spectra.concentration import NAMES
from analysis.spectra.low_rank import LOW_RANK
from analysis.spectra.samples import SAMPLES

SPECTRA = pa.schema(
    [
        pa.field("treatment", pa.string()),  # what was done to the steps
        pa.field("matrix", pa.string()),  # run, gaussian or norms kept
        pa.field("steps", pa.int32()),
        pa.field("draws", pa.int32()),  # 1 for the run; numbers of a null are means over draws
        *(pa.field(name, pa.float64()) for name in NAMES),
        pa.field("over_edge", pa.float64()),  # singular values above the random edge
        *(pa.field(f"{name}_sd", pa.float64()) for name in NAMES),  # over draws; NaN for the run
        pa.field("over_edge_sd", pa.float64()),
    ]
)
"""Numbers of the chosen treatment, which comes first, and of others, beside their nulls."""
VALUES = pa.schema(
    [
        pa.field("direction", pa.int32()),
        pa.field("value", pa.float64()),  # singular value
        pa.field("share", pa.float64()),  # of the sum of squares
        pa.field("gaussian", pa.float64()),  # mean over draws of this null
        pa.field("norms_kept", pa.float64()),
    ]
)
"""All singular values of the chosen treatment, largest first."""
DIRECTIONS = pa.schema(
    [
        pa.field("direction", pa.int32()),
        pa.field("value", pa.float64()),
        pa.field("share", pa.float64()),  # of the sum of squares
        pa.field("centre", pa.float64()),  # mean step, weighted by the squared right vector
        pa.field("spread", pa.float64()),  # standard deviation of the step, in the same way
        pa.field("null_centre", pa.float64()),  # mean step, weighted by the squared steps
    ]
)
STEPS = pa.schema(
    [
        pa.field("direction", pa.int32()),
        pa.field("step", pa.int32()),
        pa.field("weight", pa.float64()),  # entry of the right singular vector
    ]
)
NEURONS = pa.schema(
    [
        pa.field("direction", pa.int32()),
        pa.field("level", pa.string()),  # neuron, row or unit
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),  # number of the neuron or row; 0 for a unit
        pa.field("share", pa.float64()),  # of the squared left vector
        pa.field("expected", pa.float64()),  # share of the parameters: the null
        pa.field("centre", pa.float64()),  # as in the table learned
    ]
)
"""The groups with the largest shares of each direction."""
LEARNED = pa.schema(
    [
        pa.field("level", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),
        pa.field("entries", pa.int32()),
        pa.field("share", pa.float64()),  # of all squared entries of the untreated matrix
        pa.field("centre", pa.float64()),  # mean step, weighted by the group's squared entries
        pa.field("spread", pa.float64()),
        pa.field("null_centre", pa.float64()),
        pa.field("z", pa.float64()),  # (centre - null_centre) / its deviation under the null
    ]
)
DATUMS = pa.schema(
    [
        pa.field("direction", pa.int32()),
        pa.field("datum", pa.int32()),
        pa.field("load", pa.float64()),  # ⟨left vector, the datum's part⟩, summed over steps
        pa.field("steps", pa.int32()),  # in which the datum was
        pa.field("step", pa.int32()),  # of the largest load
        pa.field("z", pa.float64()),  # against loads dealt at random within each batch
    ]
)
SCHEMAS = {
    "spectra": SPECTRA,
    "values": VALUES,
    "samples": SAMPLES,
    "directions": DIRECTIONS,
    "steps": STEPS,
    "neurons": NEURONS,
    "learned": LEARNED,
    "datums": DATUMS,
    "low_rank": LOW_RANK,
}


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What ``measure_spectrum`` found; the schemas say what the columns are."""

    spectra: pd.DataFrame
    values: pd.DataFrame
    samples: pd.DataFrame
    directions: pd.DataFrame
    steps: pd.DataFrame
    neurons: pd.DataFrame
    learned: pd.DataFrame
    datums: pd.DataFrame
    low_rank: pd.DataFrame
