"""The left singular vectors of a run's matrix, piece by piece.

Left vectors are linear combinations C A of the columns (``gram.coefficients``), so that each piece
of parameters yields its own entries of them.

Shapes: P entry of a parameter, S step, K direction, G group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.jobs.sweep import Sweep, in_turn
from analysis.spectra.gram import gram_of
from analysis.spectra.neurons import NeuronGroups, group_sums, time_moments
from analysis.spectra.pieces import Piece
from analysis.spectra.reading import Report, StepSource, silent

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class GramPiece:
    """Returns the Gram matrix of a piece of parameters; ``Work`` of a ``Sweep``."""

    rows: "PieceRows"

    def to(self, device: str) -> "GramPiece":
        """Ignores the device: the run's configuration chooses it."""
        return self

    def __call__(self, piece: Piece, /) -> np.ndarray:
        return gram_of(self.rows(piece))


@dataclass(frozen=True, eq=False)
class LeftOfPiece:
    """What a piece of parameters has of the directions."""

    left_PK: np.ndarray
    """Entries of the left singular vectors, float32."""
    square_GK: np.ndarray
    """Sum of their squares in each group of neurons."""
    moment_G3: np.ndarray
    """Moments in time of the matrix itself in each group (see ``neurons.time_moments``)."""


@dataclass(frozen=True, eq=False)
class LeftPiece:
    """Returns ``LeftOfPiece``; ``Work`` of a ``Sweep``."""

    rows: "PieceRows"
    groups: NeuronGroups
    coefficient_SK: np.ndarray

    def to(self, device: str) -> "LeftPiece":
        """Ignores the device: the run's configuration chooses it."""
        return self

    def __call__(self, piece: Piece, /) -> LeftOfPiece:
        row_SP = self.rows(piece)
        left_PK = row_SP.T @ self.coefficient_SK.astype(np.float64)
        group_P, count = self.groups.of_piece(piece), len(self.groups.frame)
        moment_P3 = time_moments(row_SP, np.array(self.rows.source.steps))
        return LeftOfPiece(
            left_PK.astype(np.float32),
            group_sums(np.square(left_PK), group_P, count),
            group_sums(moment_P3, group_P, count),
        )


@dataclass(frozen=True, eq=False)
class PieceRows:
    """Reads pieces from a run; keeps the only one, so that the run is gone through once."""

    source: StepSource
    kept: dict[Piece, np.ndarray] | None = None
    """None: pieces are not kept."""
    report: Report = silent

    def __call__(self, piece: Piece) -> np.ndarray:
        if self.kept is not None and piece in self.kept:
            return self.kept[piece]
        row_SP = self.source.rows(piece, self.report)
        if self.kept is not None:
            self.kept[piece] = row_SP
        return row_SP


@dataclass(frozen=True, eq=False)
class Directions:
    """The first left singular vectors of the treated matrix, over all pieces."""

    left_PK: np.ndarray
    """float32; in the order of the layout."""
    square_GK: np.ndarray
    moment_G3: np.ndarray


def left_vectors(
    rows: PieceRows,
    pieces: Sequence[Piece],
    groups: NeuronGroups,
    coefficient_SK: np.ndarray,
    sweep: Sweep = in_turn,
) -> Directions:
    """Return the left singular vectors with these coefficients."""
    found = list(sweep(LeftPiece(rows, groups, coefficient_SK), pieces))
    return Directions(
        np.concatenate([part.left_PK for part in found]),
        np.sum([part.square_GK for part in found], 0),
        np.sum([part.moment_G3 for part in found], 0),
    )
