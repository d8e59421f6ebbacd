"""Dropout whose masks depend on (seed, step, slot) alone.

A worker that holds only some slots of a batch draws the same masks for them as a single process
would, so splitting a batch does not change a datum's gradient (law 3). Each slot has its own random
generator. One draw per step fills a pool, and each dropout site of the forward pass takes the next
entries of the pool.

Shapes: N datum, K maskable entries of one datum.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Masks:
    """Dropout multipliers, 0 or 1 / (1 − dropout), of one forward pass, in the order of sites."""

    def __init__(self, pool_NK: Tensor | None) -> None:
        self.pool_NK = pool_NK
        self.taken = 0

    @classmethod
    def none(cls) -> "Masks":
        """Return masks that drop nothing, for evaluation or a model without dropout."""
        return cls(None)

    def drop(self, x: Tensor) -> Tensor:
        """Return ``x``, [N, …], multiplied by the next entries of the pool."""
        if self.pool_NK is None:
            return x
        size = math.prod(x.shape[1:])
        mask = self.pool_NK[:, self.taken : self.taken + size]
        self.taken += size
        return x * mask.view(x.shape)


def draw_masks(
    slots: Sequence[int],
    *,
    entries: int,
    dropout: float,
    seed: int,
    step: int,
    device: torch.device,
) -> Masks:
    """Return the masks of these slots at this step; ``entries``: number that one datum needs."""
    if dropout == 0:
        return Masks.none()
    pool_NK = torch.empty(len(slots), entries, device=device)
    generator = torch.Generator(device)
    for row_K, slot in zip(pool_NK, slots, strict=True):
        row_K.uniform_(generator=generator.manual_seed(slot_seed(seed, step, slot)))
    return Masks(pool_NK.ge_(dropout).mul_(1 / (1 - dropout)))


def slot_seed(seed: int, step: int, slot: int) -> int:
    """Return a 63-bit hash of the three numbers, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{step}/{slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
