"""Which axis of a call's output is the window, so that a position is a place in the window.

An activation may have axes besides datum, window and features: Qwen3 normalizes queries as
[N, T, H, features]. A length alone does not tell which axis is the window, because H may equal T.
``window_axes`` compares the same calls for a window of T tokens and of T − 1: the axis whose length
changes is the window. A custom loop cannot be run with another window, so ``only_axis_of_length``
takes the only axis that has its length. Both refuse what they cannot tell.

Middle axes are those between datum and features. Their first length is the number of rows per
datum of the first axis, so it is 1 for [N, T, features] and T for [N · T, features].
"""

import math
from collections.abc import Collection, Sequence

from capture.gradients.torch_functions import NotSplittable

Axis = int | None
"""Number of the window among the middle axes; None if a datum has one entry, at position 0."""
MAX_POSITIONS = 2**15
"""Largest number of positions per datum: the record stores them as 16-bit integers."""


def window_axes(
    long: Sequence[Sequence[int]], short: Sequence[Sequence[int]], window: int
) -> list[Axis]:
    """Return the window's axis in each call of a unit.

    ``long`` holds the middle axes of the calls for ``window`` tokens, ``short`` those for one
    token fewer; it is not read for a window of one token. Raises ``NotSplittable`` if there is no
    such axis, or several.
    """
    if window == 1:
        return [axis_of_one_token(middle) for middle in long]
    if len(long) != len(short):
        raise NotSplittable("calls whose number depends on the length of the window")
    return [changing_axis(own, other, window) for own, other in zip(long, short, strict=True)]


def axis_of_one_token(middle: Sequence[int]) -> Axis:
    """Return an axis that a window of one token can be, so that all entries are at position 0."""
    if middle[0] != 1:
        raise NotSplittable(f"a call on {tuple(middle)} entries of a datum of one token")
    return 0


def changing_axis(long: Sequence[int], short: Sequence[int], window: int) -> Axis:
    """Return the axis whose length follows the window, of one call."""
    if all(length == 1 for length in long):
        return None
    changed = [axis for axis, pair in enumerate(zip(long, short, strict=False)) if len({*pair}) > 1]
    shown = f"a call on {tuple(long)} entries of a datum"
    if len(long) != len(short) or len(changed) > 1:
        raise NotSplittable(f"{shown}, of which several axes follow the window")
    if not changed:
        raise NotSplittable(f"{shown}, of which no axis is the window")
    # An axis of k · T entries holds two axes in an order that lengths do not tell.
    (axis,) = changed
    if (long[axis], short[axis]) != (window, window - 1):
        raise NotSplittable(f"{shown}, of which axis {axis} is not the window of {window} tokens")
    return axis


def only_axis_of_length(middle: Sequence[int], windows: Collection[int]) -> Axis:
    """Return the only axis that is as long as a window.

    Raises ``NotSplittable`` if there is none, or several.
    """
    if all(length == 1 for length in middle):
        return None
    found = [axis for axis, length in enumerate(middle) if length in windows]
    if len(found) == 1:
        return found[0]
    known = " or ".join(map(str, sorted(windows)))
    which = "any of several axes" if found else "none of the axes"
    raise NotSplittable(
        f"a call on {tuple(middle)} entries of a datum, of which {which} may be the window of "
        f"{known} tokens"
    )


def require_positions(function: str, middle: Sequence[int], axis: Axis) -> None:
    """Raise ``NotSplittable`` if a call of this function has more positions than can be stored.

    Without an axis of the window, every entry of a datum is a position.
    """
    positions = math.prod(middle) if axis is None else middle[axis]
    if positions > MAX_POSITIONS:
        raise NotSplittable(f"{function} at {positions:,} positions")
