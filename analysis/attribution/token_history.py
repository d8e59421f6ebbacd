"""When and in which direction were the chosen tokens taught, and by which row most strongly?

The second pass over the rows, once it is known which tokens stand out in which groups. For each
such lesson (group, token): its weight in every window of training, how much of it pushed weights up
(shift > 0), and how much strengthened them (away from zero, by the sign of the weight at the start
of the row's segment; a weight of zero can only be strengthened). Beside it what the expectation by
window needs: each group's weight, and each family's by token.

Shapes: M row, J lesson, W window of training, G group, F family, S distinct token of the lessons,
L datum that occurs here, K wanted (group, datum).
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from analysis.attribution.outlier_weights import Piece, Reading, Weighing, tokens_of
from analysis.attribution.sparse_sums import compacted, token_matrix
from analysis.attribution.start_weights import StartWeights
from analysis.attribution.strongest_rows import Pairs, Strongest, strongest_rows
from analysis.jobs.job import Rows, merge_all
from analysis.levels import Groups


@dataclass(frozen=True, eq=False)
class Lessons:
    """Sums over rows, float64; whole numbers are exact."""

    rows_J: np.ndarray
    """Rows that speak of the token (for whole windows: times its occurrences)."""
    up_J: np.ndarray
    """Weight of those with a positive shift."""
    strengthened_J: np.ndarray
    """Weight of those that pushed away from zero."""
    weight_WJ: np.ndarray
    group_WG: np.ndarray
    """Weight of each group, all tokens."""
    family_WFS: np.ndarray
    """Weight of each family's groups together, by token."""


@dataclass(frozen=True, eq=False)
class Taught:
    """What one pass finds."""

    lessons: Lessons
    strongest: Strongest


@dataclass(frozen=True, eq=False)
class TellLessons:
    """The job that sums the evidence of the lessons and finds the strongest rows."""

    reading: Reading
    groups: Groups
    weighing: Weighing
    weights: StartWeights
    token_NT: np.ndarray
    """The token that a row at this position of this datum speaks of; for whole windows all do."""
    whole_windows: bool
    group_J: np.ndarray
    token_J: np.ndarray
    num_tokens: int
    first_steps: np.ndarray
    """First step of each window, ascending."""
    pairs: Pairs
    pair_group_P: np.ndarray
    """The group, as ``pairs`` counts them, of each captured parameter, -1 for none."""

    @cached_property
    def token_S(self) -> np.ndarray:
        return np.unique(self.token_J)

    @cached_property
    def column_V(self) -> np.ndarray:
        """Where each token stands in ``token_S``; its length for others."""
        column_V = np.full(self.num_tokens, len(self.token_S), np.int32)
        column_V[self.token_S] = np.arange(len(self.token_S))
        return column_V

    @cached_property
    def place_GS(self) -> np.ndarray:
        """The lesson of each group and chosen token, -1 for none, int32 [G, S + 1]."""
        place_GS = np.full((self.groups.num_groups, len(self.token_S) + 1), -1, np.int32)
        place_GS[self.group_J, self.column_V[self.token_J]] = np.arange(len(self.group_J))
        return place_GS

    def map_shard(self, shard: Rows) -> Taught:
        pieces = self.reading.pieces(shard, ("step", "position", "shift"))
        return merge_all((self.tell(piece) for piece in pieces), self.merge)

    def tell(self, piece: Piece) -> Taught:
        pair_M = self.pairs.places(self.pair_group_P[piece.place_M], piece.datum_M)
        strongest = strongest_rows(piece, pair_M, len(self.pairs.group_K))
        kept_M = self.groups.group_P[piece.place_M] >= 0
        piece = piece.where(kept_M)
        sums = self.sums_of_windows if self.whole_windows else self.sums_of_tokens
        return Taught(sums(piece, self.groups.group_P[piece.place_M]), strongest)

    def merge(self, a: Taught, b: Taught) -> Taught:
        sums = [getattr(a.lessons, f.name) + getattr(b.lessons, f.name) for f in fields(Lessons)]
        return Taught(Lessons(*sums), a.strongest.better_of(b.strongest))

    def finish(self, partial: Taught) -> Taught:
        return partial

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Windows, groups, families, distinct tokens, lessons."""
        groups = self.groups.num_groups, self.groups.num_families
        return len(self.first_steps), *groups, len(self.token_S), len(self.token_J)

    def windows(self, piece: Piece) -> np.ndarray:
        """The window of training of each row, [M]."""
        return np.searchsorted(self.first_steps, piece.step_M, side="right") - 1

    def signs(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Whether each row pushed up, and whether away from zero, [M] each."""
        weight_M = self.weights.of_rows(piece.step_M, piece.place_M)
        return piece.shift_M > 0, (piece.shift_M * weight_M > 0) | (weight_M == 0)

    # --- rows that speak of one token each --------------------------------------------------------

    def sums_of_tokens(self, piece: Piece, group_M: np.ndarray) -> Lessons:
        W, G, F, S, J = self.sizes
        weight_M = weights_of(self.weighing, piece)
        window_M, column_M = self.windows(piece), self.column_V[tokens_of(piece, self.token_NT)]
        cell_M = (window_M * F + self.groups.family_G[group_M]) * (S + 1) + column_M
        family_WFS = np.bincount(cell_M, weight_M, W * F * (S + 1)).reshape(W, F, S + 1)
        lesson_M = self.place_GS[group_M, column_M]
        hit_M = lesson_M >= 0
        group_WG = np.bincount(window_M * G + group_M, weight_M, W * G).reshape(W, G)
        piece, lesson_M, window_M = piece.where(hit_M), lesson_M[hit_M], window_M[hit_M]
        weight_M = weight_M[hit_M]
        up_M, away_M = self.signs(piece)
        return Lessons(
            rows_J=np.bincount(lesson_M, minlength=J).astype(np.float64),
            up_J=np.bincount(lesson_M, weight_M * up_M, J),
            strengthened_J=np.bincount(lesson_M, weight_M * away_M, J),
            weight_WJ=np.bincount(window_M * J + lesson_M, weight_M, W * J).reshape(W, J),
            group_WG=group_WG,
            family_WFS=family_WFS[:, :, :S],
        )

    # --- rows that speak of their whole datum -----------------------------------------------------

    def sums_of_windows(self, piece: Piece, group_M: np.ndarray) -> Lessons:
        W, G, F, S, J = self.sizes
        datum_L, local_M = compacted(piece.datum_M, self.reading.num_datums)
        token_LS = token_matrix(self.token_NT[datum_L], self.num_tokens)[:, self.token_S]

        def by_token(value_M: np.ndarray) -> csr_array:
            return csr_array((value_M, (group_M, local_M)), (G, len(datum_L))) @ token_LS

        def of_lessons(by_token_GS: csr_array) -> np.ndarray:
            column_J = self.column_V[self.token_J]
            return by_token_GS[self.group_J, column_J] if J else np.zeros(0)

        members_FG = csr_array((np.ones(G), (self.groups.family_G, np.arange(G))), (F, G))
        weight_M, window_M = weights_of(self.weighing, piece), self.windows(piece)
        up_M, away_M = self.signs(piece)
        group_WG, weight_WJ, family_WFS = (np.zeros((W, *shape)) for shape in ((G,), (J,), (F, S)))
        for window in np.unique(window_M):
            own_M = weight_M * (window_M == window)
            by_token_GS = by_token(own_M)
            weight_WJ[window] = of_lessons(by_token_GS)
            family_WFS[window] = (members_FG @ by_token_GS).toarray()
            group_WG[window] = np.bincount(group_M, own_M, G) * self.reading.window
        return Lessons(
            rows_J=of_lessons(by_token(np.ones(len(group_M)))),
            up_J=of_lessons(by_token(weight_M * up_M)),
            strengthened_J=of_lessons(by_token(weight_M * away_M)),
            weight_WJ=weight_WJ,
            group_WG=group_WG,
            family_WFS=family_WFS,
        )


def weights_of(weighing: Weighing, piece: Piece) -> np.ndarray:
    """The weight of each row, ones included, float64 [M]."""
    weight_M = weighing.of(piece)
    return np.ones(len(piece.datum_M)) if weight_M is None else weight_M
