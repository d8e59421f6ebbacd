"""Split floats into two byte strings: one that compresses well and one that does not.

Only the exponent of an activation or gradient repeats; its other bits are noise. The bits are first
rotated left by one, so that the sign comes last. Then the first byte of a float32 is its exponent,
and of a float16 its exponent and three more bits. These bytes, one per number, form the *high*
plane, which an entropy coder shrinks to a third. The remaining bytes form the *low* plane, which is
stored uncompressed.

Zeros need no low bytes: they get only a high byte, 0 for +0 and 255 for -0. If any other number of
the array has one of these high bytes, all numbers keep their low bytes. A quarter of the study's
numbers are zeros, after ReLU and dropout.

Shapes: N row, S number of a row, M number that has low bytes, B byte.
"""

from typing import Any

import numpy as np

MINUS_ZERO = 255
"""High byte of -0 if zeros have no low bytes; then no number may have the exponent 255."""


def split(value_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return high bytes [N, S], low bytes of all rows, and the bounds of each row's, int64 [N + 1].

    Takes float32 or float16 and is exact for every bit pattern, NaNs included. Raises
    ``ValueError`` for other types.
    """
    bits_NS, width = rotated_bits(value_NS), value_NS.itemsize
    high_NS = (bits_NS >> (8 * width - 8)).astype(np.uint8)
    kept_NS = bits_NS > 1  # after the rotation, +0 is 0 and -0 is 1
    if (high_NS == MINUS_ZERO).any() or (kept_NS & (high_NS == 0)).any():
        kept_NS = np.ones_like(kept_NS)
    else:
        high_NS -= bits_NS == 1  # 0 becomes 255, MINUS_ZERO
    byte_MB = np.compress(kept_NS.reshape(-1), bits_NS).view(np.uint8).reshape(-1, width)
    low_MB = np.empty((len(byte_MB), width - 1), np.uint8)
    for byte in range(width - 1):  # several times faster than one assignment
        low_MB[:, byte] = byte_MB[:, byte]
    end_N = kept_NS.sum(1).cumsum() * (width - 1)
    return high_NS, low_MB.reshape(-1), np.concatenate([[0], end_N])


def rotated_bits(value_NS: np.ndarray) -> np.ndarray:
    """Return the bits of floats, rotated left by one so that the sign is the lowest bit."""
    kind = {np.dtype(np.float32): "<u4", np.dtype(np.float16): "<u2"}.get(value_NS.dtype)
    if kind is None:
        raise ValueError(f"{value_NS.dtype} has no planes")
    bits_NS = np.ascontiguousarray(value_NS).view(kind)
    return (bits_NS << 1) | (bits_NS >> (8 * value_NS.itemsize - 1))


def join(high: bytes, low: bytes, size: int, dtype: Any) -> np.ndarray:
    """Return the numbers [S] of one row from its high and low bytes.

    Raises ``ValueError`` if the bytes do not make ``size`` numbers.
    """
    width = np.dtype(dtype).itemsize
    high_S = np.frombuffer(high, np.uint8)
    if len(high_S) != size:
        raise ValueError(f"{len(high_S):,} numbers, not {size:,}")
    kept_S = np.ones(size, bool)
    minus_S = ~kept_S
    # At full length every number has low bytes: there are no zeros, or zeros kept theirs too.
    if len(low) != size * (width - 1):
        minus_S = high_S == MINUS_ZERO
        kept_S = (high_S != 0) & ~minus_S
    num_kept = int(kept_S.sum())
    if len(low) != num_kept * (width - 1):
        raise ValueError(f"{len(low):,} low bytes, not {num_kept * (width - 1):,}")
    byte_MB = np.empty((num_kept, width), np.uint8)
    byte_MB[:, :-1] = np.frombuffer(low, np.uint8).reshape(num_kept, width - 1)
    byte_MB[:, -1] = high_S[kept_S]
    bits_S = minus_S.astype(f"<u{width}")
    bits_S[kept_S] = byte_MB.reshape(-1).view(f"<u{width}")
    return ((bits_S >> 1) | (bits_S << (8 * width - 1))).view(dtype)
