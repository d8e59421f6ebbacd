"""Tables of ``ontogeny lds``: every judgement, and the retrainings that it rests on."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.influence.judge.correlations import mean_over_queries

JUDGEMENTS = pa.schema(
    [
        pa.field("test", pa.string()),  # lds, tsloo, removal or duplication
        pa.field("setting", pa.float64()),  # share kept (lds), removals (tsloo), share named
        pa.field("method", pa.string()),
        pa.field("query", pa.string()),
        pa.field("value", pa.float64()),  # see docs
        pa.field("retrainings", pa.int32()),  # that the value rests on
    ]
)
RETRAINED = pa.schema(
    [
        pa.field("retraining", pa.string()),  # folder in analysis/retrain; empty: the run itself
        pa.field("query", pa.string()),
        pa.field("value", pa.float64()),  # of the query after the retraining
    ]
)
SCORES = pa.schema(
    [
        pa.field("method", pa.string()),
        pa.field("query", pa.string()),
        pa.field("datum", pa.int32()),
        pa.field("score", pa.float64()),  # higher: the datum raises the query more
    ]
)
SCHEMAS = {"judgements": JUDGEMENTS, "retrained": RETRAINED, "scores": SCORES}


@dataclass(frozen=True, eq=False)
class Judged:
    """What ``judge`` found."""

    judgements: pd.DataFrame
    retrained: pd.DataFrame
    scores: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Return test, setting, method, mean, low, high (95 % over queries) and queries (number).

        In the order in which the judgements were made.
        """
        rows = []
        for key, group in self.judgements.groupby(["test", "setting", "method"], sort=False):
            mean, low, high, count = mean_over_queries(group["value"].to_numpy(np.float64))
            found = dict(zip(("test", "setting", "method"), key, strict=True))
            rows.append({**found, "mean": mean, "low": low, "high": high, "queries": count})
        return pd.DataFrame(
            rows, columns=["test", "setting", "method", "mean", "low", "high", "queries"]
        )
