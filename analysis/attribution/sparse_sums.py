"""Sparse sums over pairs (group, item), the partial results of attribution.

Few of the possible pairs occur, so only these are stored: distinct ascending keys and their sums,
8 bytes each. Merging two takes time linear in their size.

The number of distinct origins (sites of the text) of a sum cannot be added up, but sets of hashes
can be united. Each key has 64 bits, and every contribution sets one of them by a hash of its
origin. The number of set bits gives an estimate of the number of distinct origins (linear counting,
Whang et al. 1990): within 10 % up to a hundred origins, infinite when all bits are set.

Shapes: M contribution, G group, I item, C value, K distinct pair, L item that occurs here,
Z cell of a dense array.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

CELLS_AT_ONCE = 2**24
"""Largest dense array used for summing; with more cells, keys are sorted instead."""
MIX = np.uint64(0xFF51AFD7ED558CCD)
"""Multiplier from MurmurHash3's finaliser, which spreads neighbouring inputs over all bits."""
NO_BITS = np.zeros(0, np.uint64)


@dataclass(frozen=True, eq=False)
class SparseSums:
    """Sums of C values for each pair (group, item) that occurs."""

    num_items: int
    key_K: np.ndarray
    """group · num_items + item, ascending, without repeats, int64."""
    value_CK: np.ndarray
    """float64; sums of whole numbers are exact."""
    bits_K: np.ndarray
    """Set of hashes of the origins, uint64; length 0 where origins are not recorded."""

    @property
    def group_K(self) -> np.ndarray:
        return self.key_K // self.num_items

    @property
    def item_K(self) -> np.ndarray:
        return self.key_K % self.num_items

    @property
    def origins_K(self) -> np.ndarray:
        """Estimated number of distinct origins of each sum."""
        clear_K = 64 - np.bitwise_count(self.bits_K).astype(np.float64)
        with np.errstate(divide="ignore"):
            return -64 * np.log(clear_K / 64)

    def matrix(self, num_groups: int, value_K: np.ndarray) -> csr_array:
        """Return values of the pairs as a sparse matrix, [G, I]."""
        first_G = np.searchsorted(self.key_K, np.arange(num_groups + 1) * self.num_items)
        return csr_array((value_K, self.item_K, first_G), (num_groups, self.num_items))

    def where(self, kept_K: np.ndarray) -> "SparseSums":
        """Return the pairs that a mask or ascending indices select."""
        bits_K = self.bits_K[kept_K] if len(self.bits_K) else self.bits_K
        return SparseSums(self.num_items, self.key_K[kept_K], self.value_CK[:, kept_K], bits_K)

    def regrouped(self, group_G: np.ndarray) -> "SparseSums":
        """Return sums over coarser groups, without origins.

        ``group_G`` gives the new group of each old one, or -1 to drop it.
        """
        new_K = group_G[self.group_K]
        kept = self.where(new_K >= 0)
        key_K = new_K[new_K >= 0] * self.num_items + kept.item_K
        return sum_by_key(self.num_items, key_K, kept.value_CK)

    def of_coarser_items(self, size: int) -> "SparseSums":
        """Return sums over runs of ``size`` neighbouring items, without origins."""
        # num_items is a multiple of size, so dividing the key divides the item alone.
        return sum_sorted(self.num_items // size, self.key_K // size, self.value_CK)


def empty_sums(num_items: int, num_values: int = 1) -> SparseSums:
    return SparseSums(num_items, np.zeros(0, np.int64), np.zeros((num_values, 0)), NO_BITS)


def merge_sums(a: SparseSums, b: SparseSums) -> SparseSums:
    """Return the sums of both. A key occurs at most once in each, so at most twice in all."""
    key_M, bits_M = np.concatenate([a.key_K, b.key_K]), np.concatenate([a.bits_K, b.bits_K])
    value_CM = np.concatenate([a.value_CK, b.value_CK], axis=1)
    order_M = np.argsort(key_M, kind="stable")  # linear time: two runs that are already sorted
    key_M = key_M[order_M]
    repeat_J = np.flatnonzero(key_M[1:] == key_M[:-1]) + 1
    # Index among distinct keys: one before the repeat, less the repeats that came before it.
    index_J = repeat_J - 1 - np.arange(len(repeat_J))
    first_K, second_J = np.delete(order_M, repeat_J), order_M[repeat_J]
    value_CK = value_CM[:, first_K]
    value_CK[:, index_J] += value_CM[:, second_J]
    bits_K = bits_M
    if len(bits_M):
        bits_K = bits_M[first_K]
        bits_K[index_J] |= bits_M[second_J]
    return SparseSums(a.num_items, np.delete(key_M, repeat_J), value_CK, bits_K)


def sum_by_key(num_items: int, key_M: np.ndarray, value_CM: np.ndarray) -> SparseSums:
    """Return sums of values by key; keys may come in any order."""
    order_M = np.argsort(key_M, kind="stable")
    return sum_sorted(num_items, key_M[order_M], value_CM[:, order_M])


def sum_sorted(num_items: int, key_M: np.ndarray, value_CM: np.ndarray) -> SparseSums:
    """Like ``sum_by_key``, for ascending keys."""
    if not len(key_M):
        return empty_sums(num_items, len(value_CM))
    first_K = run_starts(key_M)
    return SparseSums(
        num_items, key_M[first_K], np.add.reduceat(value_CM, first_K, axis=1), NO_BITS
    )


def run_starts(key_M: np.ndarray) -> np.ndarray:
    """Return the index at which each run of equal keys starts."""
    return np.concatenate([[0], np.flatnonzero(key_M[1:] != key_M[:-1]) + 1])


def count_keys(num_items: int, key_M: np.ndarray) -> SparseSums:
    """Return how often each key occurs; sorting keys alone is far faster than with values."""
    if not len(key_M):
        return empty_sums(num_items)
    key_M = np.sort(key_M)
    first_K = run_starts(key_M)
    count_K = np.diff(first_K, append=len(key_M)).astype(np.float64)
    return SparseSums(num_items, key_M[first_K], count_K[None], NO_BITS)


def sum_pairs(
    num_items: int, group_M: np.ndarray, item_M: np.ndarray, value_M: np.ndarray, bit_M: np.ndarray
) -> SparseSums:
    """Return sums of one value by group and item; ``bit_M``: bit of each origin, 0 to 63, int64."""
    if not len(group_M):
        return empty_sums(num_items)
    key_M = group_M * np.int64(num_items) + item_M
    key_K, bits_K = union_bits(key_M, bit_M)
    item_L, index_M = compact_items(item_M, num_items)
    num_cells = (int(group_M.max()) + 1) * len(item_L)
    if num_cells > CELLS_AT_ONCE:
        value_1K = sum_by_key(num_items, key_M, value_M[None]).value_CK
        return SparseSums(num_items, key_K, value_1K, bits_K)
    value_Z = np.bincount(group_M * len(item_L) + index_M, value_M, num_cells)
    group_K, item_K = np.divmod(key_K, num_items)
    value_K = value_Z[group_K * len(item_L) + np.searchsorted(item_L, item_K)]
    return SparseSums(num_items, key_K, value_K[None], bits_K)


def union_bits(key_M: np.ndarray, bit_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct keys, ascending, and the union of the bits of each, uint64."""
    packed_M = np.sort(key_M << 6 | bit_M)  # key and bit number in one integer
    first_K = run_starts(packed_M >> 6)
    bits_M = np.uint64(1) << (packed_M & 63).astype(np.uint64)
    return packed_M[first_K] >> 6, np.bitwise_or.reduceat(bits_M, first_K)


def compact_items(item_M: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the items that occur, ascending [L], and each row's index among them, int32 [M]."""
    occurs_I = np.zeros(num_items, bool)
    occurs_I[item_M] = True
    item_L = np.flatnonzero(occurs_I)
    index_I = np.zeros(num_items, np.int32)
    index_I[item_L] = np.arange(len(item_L))
    return item_L, index_I[item_M]


def origin_bit(origin_M: np.ndarray) -> np.ndarray:
    """Return the bit, 0 to 63, that the hash of each origin selects, int64."""
    mixed_M = origin_M.astype(np.uint64) * MIX
    mixed_M = (mixed_M ^ (mixed_M >> np.uint64(33))) * MIX
    return (mixed_M >> np.uint64(58)).astype(np.int64)


def count_tokens(
    token_NT: np.ndarray, datum_K: np.ndarray, times_K: np.ndarray, num_tokens: int
) -> np.ndarray:
    """Return how often each token occurs in the datums, each taken ``times_K`` times, int64 [V]."""
    token_KT = token_NT[datum_K]
    weight = np.repeat(times_K, token_NT.shape[1])
    # bincount sums in float64, which is exact for whole numbers up to 2^53.
    return np.bincount(token_KT.ravel(), weight, minlength=num_tokens).astype(np.int64)


def token_matrix(token_NT: np.ndarray, num_tokens: int) -> csr_array:
    """Return how often each token occurs in each datum, float64 [N, V]."""
    num_datums, window = token_NT.shape
    first_N = np.arange(num_datums + 1) * window
    found = csr_array((np.ones(token_NT.size), token_NT.ravel(), first_N), (num_datums, num_tokens))
    found.sum_duplicates()
    return found
