"""Tables of ``ontogeny suspects``."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from analysis.influence.tables import CHECKS

SUSPECTS = pa.schema(
    [
        pa.field("rank", pa.int32()),  # from 0, most suspect first
        pa.field("datum", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("planted", pa.string()),  # plant, scramble or flip; empty if not, or not known
        pa.field("reliable_from", pa.int32()),  # earlier steps are beyond the horizon, and left out
    ]
)
RANKING = pa.schema([SUSPECTS.field("rank"), SUSPECTS.field("datum")])
"""The columns that tables of all versions have."""
DETECTION = pa.schema(
    [
        pa.field("kind", pa.string()),  # plant, scramble or flip
        pa.field("planted", pa.int32()),
        pa.field("datums", pa.int32()),
        pa.field("auc", pa.float64()),
        pa.field("precision", pa.float64()),  # among as many first ones as were planted
        pa.field("average_precision", pa.float64()),
        pa.field("precise_recall", pa.float64()),  # at a precision of 95 % or more
    ]
)
RETRAINED = pa.schema(
    [
        pa.field("removed", pa.string()),  # nothing, suspects or random
        pa.field("datums", pa.int32()),  # removed
        pa.field("query", pa.string()),
        pa.field("value", pa.float64()),  # for random: the mean
        pa.field("low", pa.float64()),  # least and largest of the random draws
        pa.field("high", pa.float64()),
        pa.field("retrainings", pa.int32()),
    ]
)
SCHEMAS = {
    "suspects": SUSPECTS,
    "detection": DETECTION,
    "retrained": RETRAINED,
    "checks": CHECKS,
}


@dataclass(frozen=True, eq=False)
class Suspects:
    """What ``rank_suspects`` found; ``detection`` has rows only if something was planted, and
    ``checks`` only with unrolled influence."""

    suspects: pd.DataFrame
    detection: pd.DataFrame
    retrained: pd.DataFrame
    checks: pd.DataFrame
