"""Floats as two strings of bytes, one that compresses well and one that does not.

Of the bits of an activation or a gradient only the exponent repeats. Rotated by one bit, so that
the sign stands last, a float's first byte is its exponent (of a float16: the exponent and three
more bits): these bytes, one a number, are the *high* plane, which an entropy coder shrinks to a
third. The other bytes are noise, the *low* plane, and are stored as they are. A zero needs no
noise: where every number whose exponent is 0 is a zero, zeros have a high byte alone, 0 for +0 and
255 for -0, and the low plane holds the rest. A quarter of the study's numbers are zeros, after ReLU
and dropout.

Shapes: N row, S number of a row, M number that has low bytes, B byte.
"""

from typing import Any

import numpy as np

MINUS_ZERO = 255
"""The high byte of -0 where zeros have no low bytes; there no exponent may be 255."""


def split(value_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """High bytes [N, S], low bytes of all rows, and where each row's begin and end, int64 [N + 1].

    For float32 and float16; exact for every bit pattern. Raises ``ValueError`` for other types.
    """
    bits_NS, width = rotated(value_NS), value_NS.itemsize
    high_NS = (bits_NS >> (8 * width - 8)).astype(np.uint8)
    kept_NS = bits_NS > 1
    if (high_NS == MINUS_ZERO).any() or (kept_NS & (high_NS == 0)).any():
        kept_NS = np.ones_like(kept_NS)
    else:
        high_NS -= bits_NS == 1  # 0 becomes 255, MINUS_ZERO
    byte_MB = np.compress(kept_NS.reshape(-1), bits_NS).view(np.uint8).reshape(-1, width)
    low_MB = np.empty((len(byte_MB), width - 1), np.uint8)
    for place in range(width - 1):  # several times faster than all at once
        low_MB[:, place] = byte_MB[:, place]
    end_N = kept_NS.sum(1).cumsum() * (width - 1)
    return high_NS, low_MB.reshape(-1), np.concatenate([[0], end_N])


def rotated(value_NS: np.ndarray) -> np.ndarray:
    """The bits of floats, little-endian, with the sign in the last place."""
    kind = {np.dtype(np.float32): "<u4", np.dtype(np.float16): "<u2"}.get(value_NS.dtype)
    if kind is None:
        raise ValueError(f"{value_NS.dtype} has no planes")
    bits_NS = np.ascontiguousarray(value_NS).view(kind)
    return (bits_NS << 1) | (bits_NS >> (8 * value_NS.itemsize - 1))


def join(high: bytes, low: bytes, size: int, dtype: Any) -> np.ndarray:
    """The numbers [S] of one row; raises ``ValueError`` for bytes that are not ``size`` numbers."""
    width = np.dtype(dtype).itemsize
    high_S = np.frombuffer(high, np.uint8)
    if len(high_S) != size:
        raise ValueError(f"{len(high_S):,} numbers, not {size:,}")
    kept_S = np.ones(size, bool)
    minus_S = ~kept_S
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
