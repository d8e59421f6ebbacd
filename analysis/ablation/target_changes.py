"""Changes of log p(target) under ablation, by target token.

Shapes: K scored datum, T position, M position whose probability can change, W distinct target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.ablation.replacement import Value
from analysis.ablation.subjects import Subject
from analysis.measures.bootstrap import intervals, mean_interval


@dataclass(frozen=True, eq=False)
class TargetChanges:
    """The targets of one subject's scored datums and the changes of their log-probabilities."""

    subject: Subject
    kind: Value
    target_KT: np.ndarray
    row_M: np.ndarray
    """Index into the scored datums."""
    position_M: np.ndarray
    change_M: np.ndarray
    """log p(target), ablated − clean, nats; 0 at positions that are not listed."""

    def mean(self) -> dict[str, float]:
        """Return the mean over all positions and its interval over datums, nats.

        All three are NaN if no datum was scored.
        """
        K, T = self.target_KT.shape
        if not K:
            return {"change": np.nan, "change_low": np.nan, "change_high": np.nan}
        mean_K = np.bincount(self.row_M, weights=self.change_M, minlength=K) / T
        low, high = mean_interval(mean_K)
        return {"change": mean_K.mean(), "change_low": low, "change_high": high}


def target_table(found: TargetChanges, tokens: Sequence[str]) -> pd.DataFrame:
    """Build ``TOKENS`` of one subject: the mean change of every target, largest loss first."""
    K, T = found.target_KT.shape
    token_W, column = np.unique(found.target_KT.ravel(), return_inverse=True)
    count_W = np.bincount(column, minlength=len(token_W))
    column_M = column[found.row_M * T + found.position_M]
    change_M = found.change_M.astype(np.float64)
    sum_W = np.bincount(column_M, weights=change_M, minlength=len(token_W))
    part = (found.row_M, column_M, change_M)
    whole = (np.repeat(np.arange(K), T), column, np.ones(K * T))
    low_W, high_W = intervals(K, len(token_W), part, whole)
    mean_W = sum_W / count_W
    order_W = np.lexsort((token_W, mean_W))
    return pd.DataFrame(
        {
            "level": found.subject.level,
            "unit": found.subject.unit,
            "group": found.subject.group,
            "kind": found.kind,
            "token_id": token_W[order_W],
            "token": [tokens[token] for token in token_W[order_W]],
            "count": count_W[order_W],
            "change": mean_W[order_W],
            "low": low_W[order_W],
            "high": high_W[order_W],
        }
    )
