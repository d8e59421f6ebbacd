"""When, and in which direction, the chosen tokens moved their groups, and the strongest rows.

This is the second pass over the rows, when the tokens of each group have been chosen. For each
chosen (group, token) it sums: the weight in every window of training, the weight of rows with
shift > 0 (*up*), and the weight of rows that strengthened a parameter (moved it away from zero, by
its sign at the start of the row's segment; a parameter at zero can only be strengthened). For the
expected weights it also sums the weight of each group, and of each family by token.

Shapes: M row, J chosen (group, token), W window of training, G group, F family, S distinct chosen
token, L datum that occurs here, K wanted (group, datum).
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from analysis.attribution.outlier_weights import RowBatch, RowReader, RowWeighting, tokens_of
from analysis.attribution.sparse_sums import compact_items, token_matrix
from analysis.attribution.start_weights import StartWeights
from analysis.attribution.strongest_rows import GroupDatumPairs, StrongestRows, strongest_rows
from analysis.jobs.job import Rows, merge_all
from analysis.levels import Groups


@dataclass(frozen=True, eq=False)
class TokenHistory:
    """Sums over rows, float64; sums of whole numbers are exact."""

    rows_J: np.ndarray
    """Number of rows for the token; with whole windows, each times the token's occurrences."""
    up_J: np.ndarray
    """Weight of the rows with a positive shift."""
    strengthened_J: np.ndarray
    """Weight of the rows that moved a parameter away from zero."""
    weight_WJ: np.ndarray
    """Weight in each window of training."""
    group_WG: np.ndarray
    """Weight of each group, over all tokens."""
    family_WFS: np.ndarray
    """Weight of each family by chosen token, summed over its groups."""


@dataclass(frozen=True, eq=False)
class HistoryAndStrongest:
    """Results of one pass over the rows."""

    history: TokenHistory
    strongest: StrongestRows


@dataclass(frozen=True, eq=False)
class TokenHistoryJob:
    """Job that sums the history of the chosen tokens and finds the strongest rows."""

    reader: RowReader
    groups: Groups
    weighting: RowWeighting
    weights: StartWeights
    token_NT: np.ndarray
    """Token that a row at a datum's position is evidence for."""
    whole_windows: bool
    """Whether a row is evidence for all tokens of its datum instead."""
    group_J: np.ndarray
    token_J: np.ndarray
    num_tokens: int
    first_steps: np.ndarray
    """First step of each window, ascending."""
    pairs: GroupDatumPairs
    pair_group_P: np.ndarray
    """Group that ``pairs`` uses for each captured parameter, -1 for none."""

    @cached_property
    def token_S(self) -> np.ndarray:
        return np.unique(self.token_J)

    @cached_property
    def column_V(self) -> np.ndarray:
        """Index of each token in ``token_S``; ``len(token_S)`` for other tokens."""
        column_V = np.full(self.num_tokens, len(self.token_S), np.int32)
        column_V[self.token_S] = np.arange(len(self.token_S))
        return column_V

    @cached_property
    def chosen_GS(self) -> np.ndarray:
        """The chosen pair of each group and token, -1 for none, int32 [G, S + 1].

        The last column stands for all tokens that no group has chosen.
        """
        chosen_GS = np.full((self.groups.num_groups, len(self.token_S) + 1), -1, np.int32)
        chosen_GS[self.group_J, self.column_V[self.token_J]] = np.arange(len(self.group_J))
        return chosen_GS

    def map_shard(self, shard: Rows) -> HistoryAndStrongest:
        batches = self.reader.batches(shard, ("step", "position", "shift"))
        return merge_all((self.map_rows(rows) for rows in batches), self.merge)

    def map_rows(self, rows: RowBatch) -> HistoryAndStrongest:
        pair_M = self.pairs.index_of(self.pair_group_P[rows.parameter_M], rows.datum_M)
        strongest = strongest_rows(rows, pair_M, len(self.pairs.group_K))
        rows = rows.where(self.groups.group_P[rows.parameter_M] >= 0)
        sums = self.sums_of_windows if self.whole_windows else self.sums_of_tokens
        return HistoryAndStrongest(sums(rows, self.groups.group_P[rows.parameter_M]), strongest)

    def merge(self, a: HistoryAndStrongest, b: HistoryAndStrongest) -> HistoryAndStrongest:
        sums = [
            getattr(a.history, f.name) + getattr(b.history, f.name) for f in fields(TokenHistory)
        ]
        return HistoryAndStrongest(TokenHistory(*sums), a.strongest.better_of(b.strongest))

    def finish(self, partial: HistoryAndStrongest) -> HistoryAndStrongest:
        return partial

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """W, G, F, S and J."""
        groups = self.groups.num_groups, self.groups.num_families
        return len(self.first_steps), *groups, len(self.token_S), len(self.token_J)

    def windows(self, rows: RowBatch) -> np.ndarray:
        """Return the window of training of each row, [M]."""
        return np.searchsorted(self.first_steps, rows.step_M, side="right") - 1

    def signs(self, rows: RowBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return whether each row moved its parameter up, and whether away from zero, [M] each."""
        weight_M = self.weights.of_rows(rows.step_M, rows.parameter_M)
        return rows.shift_M > 0, (rows.shift_M * weight_M > 0) | (weight_M == 0)

    # --- rows that are evidence for one token each ------------------------------------------------

    def sums_of_tokens(self, rows: RowBatch, group_M: np.ndarray) -> TokenHistory:
        W, G, F, S, J = self.sizes
        weight_M = weights_of(self.weighting, rows)
        window_M, column_M = self.windows(rows), self.column_V[tokens_of(rows, self.token_NT)]
        # Unchosen tokens fall into the last of S + 1 columns, which is dropped below.
        cell_M = (window_M * F + self.groups.family_G[group_M]) * (S + 1) + column_M
        family_WFS = np.bincount(cell_M, weight_M, W * F * (S + 1)).reshape(W, F, S + 1)
        chosen_M = self.chosen_GS[group_M, column_M]
        hit_M = chosen_M >= 0
        group_WG = np.bincount(window_M * G + group_M, weight_M, W * G).reshape(W, G)
        rows, chosen_M, window_M = rows.where(hit_M), chosen_M[hit_M], window_M[hit_M]
        weight_M = weight_M[hit_M]
        up_M, away_M = self.signs(rows)
        return TokenHistory(
            rows_J=np.bincount(chosen_M, minlength=J).astype(np.float64),
            up_J=np.bincount(chosen_M, weight_M * up_M, J),
            strengthened_J=np.bincount(chosen_M, weight_M * away_M, J),
            weight_WJ=np.bincount(window_M * J + chosen_M, weight_M, W * J).reshape(W, J),
            group_WG=group_WG,
            family_WFS=family_WFS[:, :, :S],
        )

    # --- rows that are evidence for all tokens of their datum -------------------------------------

    def sums_of_windows(self, rows: RowBatch, group_M: np.ndarray) -> TokenHistory:
        W, G, F, S, J = self.sizes
        datum_L, local_M = compact_items(rows.datum_M, self.reader.num_datums)
        token_LS = token_matrix(self.token_NT[datum_L], self.num_tokens)[:, self.token_S]

        def by_token(value_M: np.ndarray) -> csr_array:
            return csr_array((value_M, (group_M, local_M)), (G, len(datum_L))) @ token_LS

        def at_chosen(by_token_GS: csr_array) -> np.ndarray:
            column_J = self.column_V[self.token_J]
            return by_token_GS[self.group_J, column_J] if J else np.zeros(0)

        members_FG = csr_array((np.ones(G), (self.groups.family_G, np.arange(G))), (F, G))
        weight_M, window_M = weights_of(self.weighting, rows), self.windows(rows)
        up_M, away_M = self.signs(rows)
        lengths = self.reader.length_N
        length_M = self.reader.window if lengths is None else lengths[rows.datum_M]
        group_WG, weight_WJ, family_WFS = (np.zeros((W, *shape)) for shape in ((G,), (J,), (F, S)))
        for window in np.unique(window_M):
            own_M = weight_M * (window_M == window)
            by_token_GS = by_token(own_M)
            weight_WJ[window] = at_chosen(by_token_GS)
            family_WFS[window] = (members_FG @ by_token_GS).toarray()
            group_WG[window] = np.bincount(group_M, own_M * length_M, G)
        return TokenHistory(
            rows_J=at_chosen(by_token(np.ones(len(group_M)))),
            up_J=at_chosen(by_token(weight_M * up_M)),
            strengthened_J=at_chosen(by_token(weight_M * away_M)),
            weight_WJ=weight_WJ,
            group_WG=group_WG,
            family_WFS=family_WFS,
        )


def weights_of(weighting: RowWeighting, rows: RowBatch) -> np.ndarray:
    """Return the weight of each row, 1 where rows are counted, float64 [M]."""
    weight_M = weighting.of(rows)
    return np.ones(len(rows.datum_M)) if weight_M is None else weight_M
