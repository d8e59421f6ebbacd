"""Sum evidence in one pass over the outlier rows: by token, by datum, and by site in the text.

A site is a datum and a position in its window. The rows of a shard are first summed by (group,
site). One site moves many weights of a neuron at once, so there are far fewer sums than rows. Sums
by datum and by token follow from those by site. Most of the work is one sort of integer keys.

A run of 63 million rows has about 6 million pairs (neuron, datum). Merging the last two partial
results holds 60 bytes for each.

Shapes: P captured parameter, M row, N datum, T position, G group, K distinct pair.
"""

from dataclasses import dataclass

import numpy as np

from analysis.attribution.outlier_weights import RowBatch, RowReader, RowWeighting
from analysis.attribution.sparse_sums import (
    SparseSums,
    count_keys,
    empty_sums,
    merge_sums,
    origin_bit,
    sum_by_key,
    sum_pairs,
)
from analysis.jobs.job import Rows, merge_all
from analysis.levels import Groups

DATUMS_IN_DETAIL = 1024
"""Sums by site are kept for at least this many datums, or for all if there are fewer."""


@dataclass(frozen=True, eq=False)
class CountRows:
    """Job that counts the rows of each captured parameter, int64 [P]."""

    reader: RowReader

    def map_shard(self, shard: Rows) -> np.ndarray:
        rows_P = np.zeros(self.reader.layout.size, np.int64)
        for rows in self.reader.batches(shard):
            rows_P += np.bincount(rows.parameter_M, minlength=len(rows_P))
        return rows_P

    def merge(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b

    def finish(self, partial: np.ndarray) -> np.ndarray:
        return partial


@dataclass(frozen=True, eq=False)
class Collected:
    """Sums of evidence of each group."""

    rows_N: np.ndarray
    """Number of rows of each datum, over all parameters that were read, int64."""
    tokens: SparseSums
    """Weight by (group, token), with sites as origins; empty if evidence is whole windows."""
    datums: SparseSums
    """Rows and weight by (group, datum); rows only, if every row weighs 1."""
    sites: SparseSums
    """Rows and weight by (group, site), for every ``stride``-th datum."""
    stride: int


@dataclass(frozen=True, eq=False)
class CollectEvidence:
    """Job that sums evidence by (group, token), (group, datum) and (group, site)."""

    reader: RowReader
    groups: Groups
    weighting: RowWeighting
    token_NT: np.ndarray | None
    """Token that a row at a datum's position is evidence for; None: all tokens of its window."""
    num_tokens: int

    @property
    def stride(self) -> int:
        """Every how many datums sums by site are kept, which bounds the memory for them."""
        return max(1, self.reader.num_datums // DATUMS_IN_DETAIL)

    def map_shard(self, shard: Rows) -> Collected:
        position = () if self.token_NT is None else ("position",)
        batches = self.reader.batches(shard, (*position, *self.weighting.columns))
        return merge_all((self.collect(rows) for rows in batches), self.merge)

    def collect(self, rows: RowBatch) -> Collected:
        rows_N = np.bincount(rows.datum_M, minlength=self.reader.num_datums)
        group_M = self.groups.group_P[rows.parameter_M]
        kept_M = group_M >= 0
        sites = self.by_site(rows.where(kept_M), group_M[kept_M])
        datum_K = sites.item_K // self.reader.window
        return Collected(
            rows_N,
            self.by_token(sites),
            sites.of_coarser_items(self.reader.window),
            sites.where(datum_K % self.stride == 0),
            self.stride,
        )

    def by_site(self, rows: RowBatch, group_M: np.ndarray) -> SparseSums:
        """Return rows, and weight if it differs, of each (group, site).

        Where evidence is whole windows, the site of a row is position 0 of its datum.
        """
        window, weight_M = self.reader.window, self.weighting.of(rows)
        num_sites = self.reader.num_datums * window
        key_M = group_M * np.int64(num_sites) + rows.datum_M * np.int64(window)
        if self.token_NT is not None:
            key_M += rows.position_M
        if weight_M is None:
            return count_keys(num_sites, key_M)
        value_2M = np.stack([np.ones(len(key_M)), weight_M])
        return sum_by_key(num_sites, key_M, value_2M)

    def by_token(self, sites: SparseSums) -> SparseSums:
        """Return the weight of each (group, token)."""
        if self.token_NT is None:
            return empty_sums(self.num_tokens)
        site_K = sites.item_K
        token_K, bit_K = self.token_NT.ravel()[site_K], origin_bit(site_K)
        weight_K = sites.value_CK[-1]
        return sum_pairs(self.num_tokens, sites.group_K, token_K, weight_K, bit_K)

    def merge(self, a: Collected, b: Collected) -> Collected:
        return Collected(
            a.rows_N + b.rows_N,
            merge_sums(a.tokens, b.tokens),
            merge_sums(a.datums, b.datums),
            merge_sums(a.sites, b.sites),
            self.stride,
        )

    def finish(self, partial: Collected) -> Collected:
        return partial
