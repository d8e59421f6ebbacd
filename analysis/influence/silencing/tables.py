"""Tables of ``ontogeny silence``."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
from torch import Tensor

TRAINED, DATUMS, RANDOM, RETRAINED = "trained", "datums", "random", "retrained"
SILENCED = pa.schema(
    [
        pa.field("case", pa.string()),  # trained, datums, random or retrained
        pa.field("share", pa.float64()),  # of the weights of all matrices, set to 0
        pa.field("weights", pa.int64()),  # number of these
        pa.field("query", pa.string()),
        pa.field("value", pa.float64()),  # for random: the mean
        pa.field("low", pa.float64()),  # least and largest of the random sets
        pa.field("high", pa.float64()),
        pa.field("sets", pa.int32()),  # sets of datums that the value is a mean of
        pa.field("change", pa.float64()),  # value − value as trained
        pa.field("left", pa.float64()),  # of what the datums did, by retraining; NaN without one
    ]
)
UNITS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("weights", pa.int64()),
        pa.field("moved", pa.float64()),  # norm of what the datums contribute, units of the weight
        pa.field("random", pa.float64()),  # mean norm of what the random sets contribute
        pa.field("silenced", pa.int64()),  # weights set to 0 at the largest share
    ]
)
SCHEMAS = {"silenced": SILENCED, "units": UNITS}


@dataclass(frozen=True, eq=False)
class Silenced:
    """What ``silence`` found."""

    silenced: pd.DataFrame
    units: pd.DataFrame
    models: dict[float, dict[str, Tensor]]
    """Share → the last weights with so many of them 0, as float32; not stored with the tables."""
