"""The positions that are grouped: a random sample of those whose predictions a text scores.

Shapes: M position, N datum that has one of them.
"""

from dataclasses import dataclass

import numpy as np

from analysis.trajectory.observed.text import Windows


@dataclass(frozen=True, eq=False)
class Chosen:
    """Positions of a text, sorted by datum and position."""

    windows: Windows
    """The datums that have one, once each."""
    number_N: np.ndarray
    """Number of each of these datums in the split."""
    row_M: np.ndarray
    """Row of ``windows``."""
    place_M: np.ndarray
    """Position in the window."""

    @property
    def target_M(self) -> np.ndarray:
        return self.windows.target_NT[self.row_M, self.place_M]


def choose_positions(windows: Windows, scored: int, count: int, seed: int) -> Chosen:
    """Draw positions among the last ``scored`` of all windows; all of them if there are fewer."""
    wide, total = windows.token_NT.shape[1], len(windows.token_NT) * scored
    drawn = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    datum_M, place_M = np.divmod(np.sort(drawn), scored)
    number_N, row_M = np.unique(datum_M, return_inverse=True)
    kept = Windows(windows.token_NT[number_N], windows.target_NT[number_N])
    return Chosen(kept, number_N, row_M, place_M + wide - scored)
