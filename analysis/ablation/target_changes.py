"""Changes of log p(target) under ablation, by target token.

Shapes: K scored datum, T position, M position whose probability can change, W distinct target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.ablation.replacement import Value
from analysis.ablation.subjects import Subject
from analysis.measures.bootstrap import (
    dense_intervals,
    difference_interval,
    intervals,
    mean_interval,
)


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

    def contrast(self, notable: np.ndarray) -> dict[str, float]:
        """Compare targets that attribution selected (ids ``notable``) with all other targets.

        Returns the columns of ``NEURONS`` that say so; values without any position are NaN.
        """
        change_KT = np.zeros(self.target_KT.shape)
        change_KT[self.row_M, self.position_M] = self.change_M
        notable_KT = np.isin(self.target_KT, notable)
        sides = np.stack([notable_KT, ~notable_KT])
        part_K2, whole_K2 = (change_KT * sides).sum(2).T, sides.sum(2).T.astype(np.float64)
        notable_positions, other_positions = whole_K2.sum(0).tolist() if len(whole_K2) else (0, 0)
        with np.errstate(invalid="ignore"):  # no position: NaN
            notable_change, other_change = part_K2.sum(0) / whole_K2.sum(0)
        found = {
            "notable_positions": int(notable_positions),
            "other_positions": int(other_positions),
            "notable_change": notable_change,
            "other_change": other_change,
            "difference": notable_change - other_change,
            "rms_change": np.sqrt(np.mean(change_KT**2)) if change_KT.size else np.nan,
        }
        return found | contrast_intervals(part_K2, whole_K2)


def contrast_intervals(part_K2: np.ndarray, whole_K2: np.ndarray) -> dict[str, float]:
    """Return the interval bounds of the mean change of notable and other targets, and between."""
    ends = np.full((2, 3), np.nan)
    if len(part_K2):
        ends[:, :2] = dense_intervals(part_K2.astype(np.float32), whole_K2.astype(np.float32))
        ends[:, 2] = difference_interval(part_K2, whole_K2)
    names = ("notable_change", "other_change", "difference")
    return {
        f"{name}_{side}": float(value)
        for side, row in zip(("low", "high"), ends, strict=True)
        for name, value in zip(names, row, strict=True)
    }


def target_table(found: TargetChanges, notable: np.ndarray, tokens: Sequence[str]) -> pd.DataFrame:
    """Build ``TOKENS`` of one subject: the mean change of every target, largest loss first.

    ``notable`` holds the ids of the tokens that attribution selected for it.
    """
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
            "notable": np.isin(token_W[order_W], notable),
        }
    )
