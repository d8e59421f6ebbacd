"""Sparse sums over (group, item): what partial results of attribution are made of.

There are many possible pairs and few that occur, so only those are held: distinct keys in order
and their sums, 8 bytes each. Merging two is linear in their size.

How many different things a sum is made of cannot be added up, but a set of hashes can be united:
each key has 64 bits, of which every contribution sets one by a hash of where it comes from. From
how many are set the number of different origins is estimated (linear counting, Whang et al. 1990):
good to a tenth up to a hundred, and endless when all are set.

Shapes: M contribution, G group, I item, C value, K distinct pair, L item that occurs here,
Z cell of a dense array.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

CELLS_AT_ONCE = 2**24
"""A dense array for summing has at most so many cells; beyond it, keys are sorted."""
MIX = np.uint64(0xFF51AFD7ED558CCD)
"""A factor of the finaliser of MurmurHash3, which leaves no trace of neighbourhood."""
NO_BITS = np.zeros(0, np.uint64)


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of some values for each (group, item) that occurs."""

    num_items: int
    key_K: np.ndarray
    """group · num_items + item, ascending, each once, int64."""
    value_CK: np.ndarray
    """float64; whole numbers are exact."""
    bits_K: np.ndarray
    """Hashes of the origins, uint64; none where they are not kept."""

    @property
    def group_K(self) -> np.ndarray:
        return self.key_K // self.num_items

    @property
    def item_K(self) -> np.ndarray:
        return self.key_K % self.num_items

    @property
    def origins_K(self) -> np.ndarray:
        """How many different origins each sum has, about."""
        clear_K = 64 - np.bitwise_count(self.bits_K).astype(np.float64)
        with np.errstate(divide="ignore"):
            return -64 * np.log(clear_K / 64)

    def matrix(self, num_groups: int, value_K: np.ndarray) -> csr_array:
        """Values of the pairs as a sparse matrix, [G, I]."""
        first_G = np.searchsorted(self.key_K, np.arange(num_groups + 1) * self.num_items)
        return csr_array((value_K, self.item_K, first_G), (num_groups, self.num_items))

    def where(self, kept_K: np.ndarray) -> "Sums":
        """The pairs for which ``kept_K`` is true, or that it names in ascending order."""
        bits_K = self.bits_K[kept_K] if len(self.bits_K) else self.bits_K
        return Sums(self.num_items, self.key_K[kept_K], self.value_CK[:, kept_K], bits_K)

    def regrouped(self, group_G: np.ndarray) -> "Sums":
        """Sums over coarser groups, without origins; ``group_G`` names each old group's new one,
        or -1 for none."""
        new_K = group_G[self.group_K]
        kept = self.where(new_K >= 0)
        key_K = new_K[new_K >= 0] * self.num_items + kept.item_K
        return sum_by_key(self.num_items, key_K, kept.value_CK)

    def of_coarser_items(self, size: int) -> "Sums":
        """Sums over runs of ``size`` neighbouring items, without origins."""
        return sum_sorted(self.num_items // size, self.key_K // size, self.value_CK)


def no_sums(num_items: int, num_values: int = 1) -> Sums:
    return Sums(num_items, np.zeros(0, np.int64), np.zeros((num_values, 0)), NO_BITS)


def merged(a: Sums, b: Sums) -> Sums:
    """Both together. A key occurs once in each, so at most twice."""
    key_M, bits_M = np.concatenate([a.key_K, b.key_K]), np.concatenate([a.bits_K, b.bits_K])
    value_CM = np.concatenate([a.value_CK, b.value_CK], axis=1)
    order_M = np.argsort(key_M, kind="stable")  # linear: two runs that are sorted already
    key_M = key_M[order_M]
    again_J = np.flatnonzero(key_M[1:] == key_M[:-1]) + 1
    place_J = again_J - 1 - np.arange(len(again_J))
    first_K, second_J = np.delete(order_M, again_J), order_M[again_J]
    value_CK = value_CM[:, first_K]
    value_CK[:, place_J] += value_CM[:, second_J]
    bits_K = bits_M
    if len(bits_M):
        bits_K = bits_M[first_K]
        bits_K[place_J] |= bits_M[second_J]
    return Sums(a.num_items, np.delete(key_M, again_J), value_CK, bits_K)


def sum_by_key(num_items: int, key_M: np.ndarray, value_CM: np.ndarray) -> Sums:
    """Sums of values by key, in any order."""
    order_M = np.argsort(key_M, kind="stable")
    return sum_sorted(num_items, key_M[order_M], value_CM[:, order_M])


def sum_sorted(num_items: int, key_M: np.ndarray, value_CM: np.ndarray) -> Sums:
    """The same where keys ascend."""
    if not len(key_M):
        return no_sums(num_items, len(value_CM))
    first_K = starts(key_M)
    return Sums(num_items, key_M[first_K], np.add.reduceat(value_CM, first_K, axis=1), NO_BITS)


def starts(key_M: np.ndarray) -> np.ndarray:
    """Where each run of equal keys begins."""
    return np.concatenate([[0], np.flatnonzero(key_M[1:] != key_M[:-1]) + 1])


def count_keys(num_items: int, key_M: np.ndarray) -> Sums:
    """How often each key occurs. Sorting keys alone is far faster than sorting what has values."""
    if not len(key_M):
        return no_sums(num_items)
    key_M = np.sort(key_M)
    first_K = starts(key_M)
    count_K = np.diff(first_K, append=len(key_M)).astype(np.float64)
    return Sums(num_items, key_M[first_K], count_K[None], NO_BITS)


def sum_pairs(
    num_items: int, group_M: np.ndarray, item_M: np.ndarray, value_M: np.ndarray, bit_M: np.ndarray
) -> Sums:
    """Sums of one value by group and item; ``bit_M`` is the number of each origin's bit, int64."""
    if not len(group_M):
        return no_sums(num_items)
    key_M = group_M * np.int64(num_items) + item_M
    key_K, bits_K = united_bits(key_M, bit_M)
    item_L, place_M = compacted(item_M, num_items)
    num_cells = (int(group_M.max()) + 1) * len(item_L)
    if num_cells > CELLS_AT_ONCE:
        value_1K = sum_by_key(num_items, key_M, value_M[None]).value_CK
        return Sums(num_items, key_K, value_1K, bits_K)
    value_Z = np.bincount(group_M * len(item_L) + place_M, value_M, num_cells)
    group_K, item_K = np.divmod(key_K, num_items)
    value_K = value_Z[group_K * len(item_L) + np.searchsorted(item_L, item_K)]
    return Sums(num_items, key_K, value_K[None], bits_K)


def united_bits(key_M: np.ndarray, bit_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the bits of each, uint64; key and bit are sorted as one."""
    packed_M = np.sort(key_M << 6 | bit_M)
    first_K = starts(packed_M >> 6)
    bits_M = np.uint64(1) << (packed_M & 63).astype(np.uint64)
    return packed_M[first_K] >> 6, np.bitwise_or.reduceat(bits_M, first_K)


def compacted(item_M: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The items that occur, ascending [L], and each row's place among them, int32 [M]."""
    occurs_I = np.zeros(num_items, bool)
    occurs_I[item_M] = True
    item_L = np.flatnonzero(occurs_I)
    place_I = np.zeros(num_items, np.int32)
    place_I[item_L] = np.arange(len(item_L))
    return item_L, place_I[item_M]


def origin_bit(origin_M: np.ndarray) -> np.ndarray:
    """The number of one of 64 bits for each origin, by its hash, int64."""
    mixed_M = origin_M.astype(np.uint64) * MIX
    mixed_M = (mixed_M ^ (mixed_M >> np.uint64(33))) * MIX
    return (mixed_M >> np.uint64(58)).astype(np.int64)


def count_tokens(
    token_NT: np.ndarray, datum_K: np.ndarray, times_K: np.ndarray, num_tokens: int
) -> np.ndarray:
    """How often each token occurs in datums of which each is taken several times, int64 [V]."""
    token_KT = token_NT[datum_K]
    weight = np.repeat(times_K, token_NT.shape[1])
    # float64, which bincount adds in, is exact for whole numbers up to 2^53.
    return np.bincount(token_KT.ravel(), weight, minlength=num_tokens).astype(np.int64)


def token_matrix(token_NT: np.ndarray, num_tokens: int) -> csr_array:
    """How often each token occurs in each datum, float64 [N, V]."""
    num_datums, window = token_NT.shape
    first_N = np.arange(num_datums + 1) * window
    found = csr_array((np.ones(token_NT.size), token_NT.ravel(), first_N), (num_datums, num_tokens))
    found.sum_duplicates()
    return found
