"""The order in which an epoch visits the datums, and the batches of that order.

Shapes: N datum, B batch, S slot.
"""

from collections.abc import Sequence

import numpy as np


def epoch_order(
    num_datums: int, *, seed: int, epoch: int, phases: Sequence[int] = ()
) -> np.ndarray:
    """Return the order in which an epoch visits the datums: a permutation, int64 [N].

    ``phases``: ids at which a new phase of the epoch begins; its datums come after all earlier
    ones.

    The order ranks raw random bits, because NumPy promises the same bits in every version, but not
    the same ``Generator.permutation``.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    order_N = np.argsort(bits.random_raw(num_datums), kind="stable").astype(np.int64)
    return order_N[np.searchsorted(phases, order_N, side="right").argsort(kind="stable")]


def batches(order: np.ndarray, batch: int) -> np.ndarray:
    """Return the datum ids of each step of an epoch, [B, S]. An incomplete last batch is
    dropped."""
    return order[: len(order) // batch * batch].reshape(-1, batch)
