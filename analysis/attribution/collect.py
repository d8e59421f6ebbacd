"""Evidence added up, from one pass over the outlier rows: by token, by datum, by place of the text.

A place is a datum and a position in its window. All rows of a shard are first summed by (group,
place): many weights of a neuron are moved by the same place at once, so that is much less than the
rows. Places make datums, and tokens. The work is mostly one sort of integer keys.

A run of 63 million rows has some 6 million (neuron, datum); while the last two partials merge, 60
bytes are held for each.

Shapes: P captured parameter, M row, N datum, T position, G group, K distinct pair.
"""

from dataclasses import dataclass

import numpy as np

from analysis.attribution.outlier_weights import Piece, Reading, Weighing
from analysis.attribution.sparse_sums import (
    Sums,
    count_keys,
    merged,
    no_sums,
    origin_bit,
    sum_by_key,
    sum_pairs,
)
from analysis.jobs.job import Rows, merge_all
from analysis.levels import Groups

DATUMS_IN_DETAIL = 1024
"""Of so many datums at least (or all), each place of the window is told apart."""


@dataclass(frozen=True, eq=False)
class CountRows:
    """The job that counts the rows of each captured parameter, int64 [P]."""

    reading: Reading

    def map_shard(self, shard: Rows) -> np.ndarray:
        rows_P = np.zeros(self.reading.layout.size, np.int64)
        for piece in self.reading.pieces(shard):
            rows_P += np.bincount(piece.place_M, minlength=len(rows_P))
        return rows_P

    def merge(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def finish(self, partial: np.ndarray) -> np.ndarray:
        return partial


@dataclass(frozen=True, eq=False)
class Collected:
    """The evidence of each group."""

    rows_N: np.ndarray
    """Rows of each datum, of whatever parameter was read, int64."""
    tokens: Sums
    """Weight by (group, token), its origins the places; nothing if evidence is whole windows."""
    datums: Sums
    """Rows and weight by (group, datum); rows alone where each counts once."""
    places: Sums
    """The same by (group, place) for every ``stride``-th datum."""
    stride: int


@dataclass(frozen=True, eq=False)
class CollectEvidence:
    """The job that sums evidence by (group, token), (group, datum) and (group, place)."""

    reading: Reading
    groups: Groups
    weighing: Weighing
    token_NT: np.ndarray | None
    """The token that a row at this position of this datum speaks of; None: its whole window."""
    num_tokens: int

    @property
    def stride(self) -> int:
        """Of so many datums one has its places told apart, which bounds what is held of them."""
        return max(1, self.reading.num_datums // DATUMS_IN_DETAIL)

    def map_shard(self, shard: Rows) -> Collected:
        position = () if self.token_NT is None else ("position",)
        pieces = self.reading.pieces(shard, (*position, *self.weighing.columns))
        return merge_all((self.collect(piece) for piece in pieces), self.merge)

    def collect(self, piece: Piece) -> Collected:
        rows_N = np.bincount(piece.datum_M, minlength=self.reading.num_datums)
        group_M = self.groups.group_P[piece.place_M]
        kept_M = group_M >= 0
        places = self.by_place(piece.where(kept_M), group_M[kept_M])
        datum_K = places.item_K // self.reading.window
        return Collected(
            rows_N,
            self.by_token(places),
            places.of_coarser_items(self.reading.window),
            places.where(datum_K % self.stride == 0),
            self.stride,
        )

    def by_place(self, piece: Piece, group_M: np.ndarray) -> Sums:
        """Rows, and weight if it is another, of each (group, place); whole windows are at 0."""
        window, weight_M = self.reading.window, self.weighing.of(piece)
        num_places = self.reading.num_datums * window
        key_M = group_M * np.int64(num_places) + piece.datum_M * np.int64(window)
        if self.token_NT is not None:
            key_M += piece.position_M
        if weight_M is None:
            return count_keys(num_places, key_M)
        value_2M = np.stack([np.ones(len(key_M)), weight_M])
        return sum_by_key(num_places, key_M, value_2M)

    def by_token(self, places: Sums) -> Sums:
        """Weight of each (group, token)."""
        if self.token_NT is None:
            return no_sums(self.num_tokens)
        place_K = places.item_K
        token_K, bit_K = self.token_NT.ravel()[place_K], origin_bit(place_K)
        weight_K = places.value_CK[-1]
        return sum_pairs(self.num_tokens, places.group_K, token_K, weight_K, bit_K)

    def merge(self, a: Collected, b: Collected) -> Collected:
        return Collected(
            a.rows_N + b.rows_N,
            merged(a.tokens, b.tokens),
            merged(a.datums, b.datums),
            merged(a.places, b.places),
            self.stride,
        )

    def finish(self, partial: Collected) -> Collected:
        return partial
