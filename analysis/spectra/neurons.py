"""Divide the entries of all units among neurons, and add up what each has of a direction.

In MLP weights a neuron is an input; in other units with two axes, a row is an output; every other
unit is one group (``analysis.levels``).

Shapes: P entry of a parameter, S step, G group, K direction.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from analysis.levels import UnitPart, inputs_of_mlp, outputs_of_weight, whole_unit
from analysis.spectra.gram import ENTRIES_AT_ONCE
from analysis.spectra.pieces import Piece
from capture.gradients.layout import Layout


@dataclass(frozen=True, eq=False)
class NeuronGroups:
    """The groups of all units, numbered through."""

    layout: Layout
    frame: pd.DataFrame
    """Columns level, unit, group (number within the unit) and entries, one row a group."""
    group_P: np.ndarray
    """Group of each entry of all units, int32."""

    @classmethod
    def of(cls, layout: Layout) -> "NeuronGroups":
        frames, groups, first = [], [], 0
        for unit in layout.names:
            level, part = division(unit, layout)
            entries_G = np.bincount(part.number_S)
            numbers = np.arange(len(entries_G))
            frames.append(
                pd.DataFrame({"level": level, "unit": unit, "group": numbers, "entries": entries_G})
            )
            groups.append((first + part.number_S).astype(np.int32))
            first += len(entries_G)
        return cls(layout, pd.concat(frames, ignore_index=True), np.concatenate(groups))

    def of_piece(self, piece: Piece) -> np.ndarray:
        """Return the group of each entry of a piece."""
        offsets = dict(zip(self.layout.names, self.layout.offsets, strict=False))
        parts = [
            self.group_P[offsets[part.unit] + part.first : offsets[part.unit] + part.end]
            for part in piece
        ]
        return np.concatenate(parts)


def division(unit: str, layout: Layout) -> tuple[str, UnitPart]:
    """Return the level at which a unit is divided, and the division."""
    for level, divide in (("neuron", inputs_of_mlp), ("row", outputs_of_weight)):
        part = divide(unit, layout, 1)
        if part is not None:
            return level, part
    part = whole_unit(unit, layout, 1)
    assert part is not None
    return "unit", part


def group_sums(value_PK: np.ndarray, group_P: np.ndarray, groups: int) -> np.ndarray:
    """Return the sum of each column over the entries of each group, float64 [G, K]."""
    total_GK = np.zeros((groups, value_PK.shape[1]))
    for first in range(0, len(value_PK), ENTRIES_AT_ONCE):
        here = slice(first, first + ENTRIES_AT_ONCE)
        count = len(value_PK[here])
        member_GP = sparse.csr_matrix(
            (np.ones(count), (group_P[here], np.arange(count))), shape=(groups, count)
        )
        total_GK += member_GP @ value_PK[here]
    return total_GK


# --- when a neuron learned ------------------------------------------------------------------------


def time_moments(row_SP: np.ndarray, step_S: np.ndarray) -> np.ndarray:
    """Return Σ c², Σ s c², Σ s² c² over steps s of each entry's values c, float64 [P, 3]."""
    power_S3 = np.vander(step_S.astype(np.float64), 3, increasing=True)
    parts = [
        np.square(row_SP[:, first : first + ENTRIES_AT_ONCE].astype(np.float64)).T @ power_S3
        for first in range(0, row_SP.shape[1], ENTRIES_AT_ONCE)
    ]
    return np.concatenate(parts)


def learning_times(
    frame: pd.DataFrame, moment_G3: np.ndarray, square_S: np.ndarray, step_S: np.ndarray
) -> pd.DataFrame:
    """Return when each group was moved: mean and spread of the step, weighted by its squares.

    ``moment_G3``: of the groups, as ``time_moments``. ``square_S``: squared length of each step.

    The null keeps the lengths of all steps and makes their directions random. A group of d of the P
    entries then has the share Beta(d / 2, (P − d) / 2) of each step's square, so its mean step is
    that of all entries, with a standard deviation to first order of
    √(2 (P − d) / (d (P + 2))) · √(Σ w² (s − mean)²), w the steps' shares of the sum of squares.
    ``z`` is the distance from there in these deviations.
    """
    square_G = moment_G3[:, 0]
    safe_G = np.where(square_G > 0, square_G, 1)
    centre_G = moment_G3[:, 1] / safe_G
    spread_G = np.sqrt((moment_G3[:, 2] / safe_G - centre_G**2).clip(0))
    total, weight_S = square_S.sum(), square_S / square_S.sum()
    mean = float(weight_S @ step_S)
    entries_G, all_entries = frame["entries"].to_numpy(), int(frame["entries"].sum())
    share_sd_G = np.sqrt(2 * (all_entries - entries_G) / (entries_G * (all_entries + 2)))
    null_sd_G = share_sd_G * np.sqrt(np.square(weight_S) @ np.square(step_S - mean))
    there_G = (square_G > 0) & (null_sd_G > 0)
    z_G = np.divide(centre_G - mean, null_sd_G, out=np.full(len(frame), np.nan), where=there_G)
    return frame.assign(
        share=square_G / total,
        centre=np.where(square_G > 0, centre_G, np.nan),
        spread=np.where(square_G > 0, spread_G, np.nan),
        null_centre=mean,
        z=z_G,
    )
