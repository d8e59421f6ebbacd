"""Drift along directions, or of single weights: how far all shifts together went, relative to a
random walk of them.

drift = ‖Σ s_i b‖ / √(Σ ‖s_i b‖²), or |Σ s_i| / √(Σ s_i²) for the shifts s_i of one weight. Shifts
with independent signs give about 1 (its square has mean 1); shifts that all agree give √n. The null
says how far signs dealt at random go. Shifts that agree more are no proof of learning: a constant
pull, as of weight decay, agrees too.

Shapes: K direction, C input, R output, D random walk.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from analysis.influence.directions.bases import (
    NAMES,
    NEURONS,
    PCA,
    SIDES,
    Side,
    directions,
    principal_components,
)
from analysis.influence.drift.moments import (
    Moments,
    read_basis,
    require_matrix,
    run_moments,
)
from analysis.influence.drift.moments import Report as Report
from analysis.jobs.question import Question
from analysis.jobs.tables import table_set, write_tables
from analysis.measures.multiple_testing import benjamini_hochberg
from analysis.run.run import Run
from capture.errors import ConfigError, at_least

DRIFT = pa.schema(
    [
        pa.field("direction", pa.int32()),  # neuron, principal component or row of the file; of a
        # single weight, its flat index into the unit
        pa.field("moved", pa.float64()),  # norm of the sum of all shifts, units of the weight
        pa.field("walked", pa.float64()),  # root of the sum of their squared norms
        pa.field("drift", pa.float64()),  # moved / walked
        pa.field("null_mean", pa.float64()),  # of random walks of the same shifts
        pa.field("null_high", pa.float64()),  # 95 % of the random walks stay below
        pa.field("p", pa.float64()),  # share of walks that drift as far, this one included: its
        # floor is 1 / (walks + 1)
        pa.field("q", pa.float64()),  # p, adjusted for all directions (Benjamini–Hochberg)
    ]
)
SCHEMAS = {"drift": DRIFT}
WEIGHTS = "weights"
"""Name of the basis that takes every weight by itself."""
ALPHA = 0.05
"""False discovery rate of the directions that drift further than random walks."""


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """Which unit, along which directions, against how many random walks."""

    unit: str
    basis: str = NEURONS
    """neurons: each input (or output) of the weight; pca: principal components of the inputs in all
    steps, or of the last model's outputs; dictionary: a sparse dictionary of the last model's
    activations; weights: every single weight; or a .npy file of directions, [K, inputs or
    outputs]."""
    side: Side = "inputs"
    """inputs (columns of the weight) or outputs (rows)."""
    walks: int = 99
    """Random walks of the null."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ConfigError("drift.side", f"got {self.side!r}, wanted {' or '.join(SIDES)}")
        if self.basis == WEIGHTS and self.side != "inputs":
            problem = f"got {self.side!r}, but a single weight has no side"
            raise ConfigError("drift.side", problem, "Leave it out")
        at_least("drift.walks", self.walks, 19)
        at_least("drift.seed", self.seed, 0)


@dataclass(frozen=True, eq=False)
class Drift:
    """What ``measure_drift`` found."""

    drift: pd.DataFrame
    shifts: int
    """Shifts that were added up: datums times steps."""

    @property
    def clear(self) -> int:
        """Directions that drift further than random walks, with q ≤ ``ALPHA``."""
        return int((self.drift["q"] <= ALPHA).sum())


def measure_drift(
    run: Run, config: DriftConfig, report: Report = lambda done, wanted: None
) -> Drift:
    """Return the drift of a unit along the directions of a basis, or of its weights, largest first.

    Raises what ``run_moments`` raises, and ``ConfigError`` for a file without such directions.
    """
    if config.basis == WEIGHTS:
        moments = run_moments(run, config.unit, walks=config.walks, seed=config.seed, report=report)
        found = drift_of_weights(moments, transposed=config.unit in run.layout.transposed)
        return furthest_first(found, moments)
    width, basis_KC = basis_asked(run, config)
    during_training = config.basis == PCA and config.side == "inputs"
    if basis_KC is None and not during_training:
        asked = (config.unit, config.side, config.basis, width, config.seed)
        basis_KC = directions(run, *asked)
    how = {"side": config.side, "walks": config.walks, "seed": config.seed}
    moments = run_moments(run, config.unit, report=report, **how)
    basis_KC = own_basis(moments, config.basis) if basis_KC is None else basis_KC
    return furthest_first(drift_along(moments, basis_KC), moments)


def furthest_first(found: pd.DataFrame, moments: Moments) -> Drift:
    """Return the rows, largest drift first."""
    return Drift(found.sort_values("drift", ascending=False, kind="stable"), moments.count)


def require_asked(run: Run, config: DriftConfig) -> None:
    """Raise what ``read_basis`` raises for the unit and the basis that are asked for."""
    if config.basis == WEIGHTS:
        require_matrix(run, config.unit)
        return
    basis_asked(run, config)


def basis_asked(run: Run, config: DriftConfig) -> tuple[int, np.ndarray | None]:
    """Return what ``read_basis`` returns for any basis but single weights."""
    names = (*NAMES, WEIGHTS)
    return read_basis(run, config.unit, config.side, config.basis, "drift.basis", names)


def drift_along(moments: Moments, directions: np.ndarray) -> pd.DataFrame:
    """Return ``DRIFT`` for directions [K, C] of any length, in their order."""
    basis_KC = torch.from_numpy(np.asarray(directions, np.float64))
    moved_K = (moments.sum_RC @ basis_KC.T).norm(dim=0)
    walked_K = torch.einsum("kc,cd,kd->k", basis_KC, moments.gram_CC, basis_KC).clamp(min=0).sqrt()
    null_DK = torch.stack([(walk_RC @ basis_KC.T).norm(dim=0) for walk_RC in moments.walk_DRC])
    return compared(moved_K, walked_K, null_DK)


def drift_of_weights(moments: Moments, *, transposed: bool = False) -> pd.DataFrame:
    """Return ``DRIFT`` for every single weight, in the order of the unit.

    ``transposed``: the unit is stored as [inputs, outputs], and the sums are [outputs, inputs].
    """
    moved, walked, null = moments.sum_RC.abs(), moments.square_RC.sqrt(), moments.walk_DRC.abs()
    if transposed:
        moved, walked, null = moved.T, walked.T, null.transpose(1, 2)
    return compared(moved.flatten(), walked.flatten(), null.flatten(1))


def compared(moved_K: Tensor, walked_K: Tensor, null_DK: Tensor) -> pd.DataFrame:
    """Return ``DRIFT``; ``null_DK``: how far random walks went along each direction."""
    # A direction that nothing moved along has drifted nowhere.
    scale_K = torch.where(walked_K > 0, walked_K, torch.inf)
    null_DK = null_DK / scale_K
    drift_K = moved_K / scale_K
    p_K = ((null_DK >= drift_K).sum(0).numpy() + 1) / (len(null_DK) + 1)
    return pd.DataFrame(
        {
            "direction": np.arange(len(moved_K)),
            "moved": moved_K.numpy(),
            "walked": walked_K.numpy(),
            "drift": drift_K.numpy(),
            "null_mean": null_DK.mean(0).numpy(),
            "null_high": np.quantile(null_DK.numpy(), 0.95, axis=0),
            "p": p_K,
            "q": benjamini_hochberg(p_K),
        }
    )


def own_basis(moments: Moments, name: str) -> np.ndarray:
    """Return the inputs, or the principal components of the inputs in all steps, [K, C].

    Components come largest variance first. Raises ``ConfigError`` for a unit without inputs.
    """
    if name == NEURONS:
        return np.eye(len(moments.gram_CC))
    if not moments.input_CC.any():
        raise ConfigError("drift.basis", "is pca, but the unit has no inputs that vary")
    return principal_components(moments.input_CC.numpy())


def write_drift(run: Run, found: Drift, question: Question, name: str = "") -> None:
    """Write the table to ``RUN/analysis/drift/``, or to its folder ``name``."""
    write_tables(run, table_set("drift", name), {"drift": found.drift}, SCHEMAS, question)
