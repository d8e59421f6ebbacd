"""When the loss of each cluster fell, and how much of all loss fell suddenly.

Shapes: K checkpoint, M position, C cluster.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.measures.standard_error import standard_error
from analysis.transitions.curves import COLUMNS, curves_of
from analysis.transitions.shape.shapes import Shapes, shapes_of
from analysis.transitions.tables import SUDDEN

NULL_CURVES = 199
"""Null curves of each kind, for each cluster's test."""


@dataclass(frozen=True, eq=False)
class Falls:
    """Mean loss of each cluster over checkpoints, tested like any curve."""

    step_K: np.ndarray
    mean_KC: np.ndarray
    error_KC: np.ndarray
    """Standard error over datums; NaN for positions of a single one."""
    count_C: np.ndarray
    shapes: Shapes
    """Row c of ``shapes.curves`` is that of cluster c."""

    @classmethod
    def of(
        cls,
        step_K: np.ndarray,
        loss_KM: np.ndarray,
        cluster_M: np.ndarray,
        *,
        datum_M: np.ndarray,
        seed: int,
        cuts: bool = True,
    ) -> "Falls":
        """Average the losses of each cluster and test the curves.

        ``datum_M``: datum of each position; ``cuts``: whether change points are looked for.
        """
        own_CM = [cluster_M == c for c in range(cluster_M.max() + 1)]
        groups = [loss_KM[:, own_M] for own_M in own_CM]
        count_C = np.array([own_KM.shape[1] for own_KM in groups])
        mean_KC = np.stack([own_KM.mean(1) for own_KM in groups], 1)
        pairs = zip(groups, own_CM, strict=True)
        error_KC = np.stack([standard_error(own_KM, datum_M[m]) for own_KM, m in pairs], 1)
        frames = [
            pd.DataFrame(
                {
                    "step": step_K,
                    "metric": "loss",
                    "component": f"cluster {c}",
                    "value": mean_KC[:, c],
                    "n": count_C[c],
                    "standard_error": error_KC[:, c],
                }
            )
            for c in range(len(groups))
        ]
        curves = curves_of(pd.concat(frames)[COLUMNS])
        shapes = shapes_of("", curves, draws=NULL_CURVES, seed=seed, cuts=cuts)
        return cls(step_K, mean_KC, error_KC, count_C, shapes)

    @property
    def fallen_C(self) -> np.ndarray:
        """How much each cluster's loss falls inside its steepest window, nats; negative if it rises
        there, NaN for a curve that is not tested."""
        ends = self.shapes.curves[["window_first", "window_end"]].to_numpy(np.float64)
        u_K = np.log1p(self.step_K)
        pairs = zip(np.log1p(ends), self.mean_KC.T, strict=True)
        return np.array([-np.diff(np.interp(at, u_K, mean_K))[0] for at, mean_K in pairs])

    @property
    def sudden_C(self) -> np.ndarray:
        """Whether each cluster's loss falls suddenly."""
        return (self.fallen_C > 0) & (self.shapes.curves["verdict"] == SUDDEN).to_numpy()

    @property
    def sudden_share(self) -> float:
        """The part of the fall of all positions' loss, from the first checkpoint to the last, that
        sudden clusters make inside their steepest windows; NaN if the loss does not fall."""
        total = float((self.mean_KC[0] - self.mean_KC[-1]) @ self.count_C)
        if total <= 0:
            return float("nan")
        return float(np.where(self.sudden_C, self.fallen_C * self.count_C, 0).sum()) / total
