"""How much of a sum was made up to each step, at few enough steps to draw.

On an axis of log steps, sums in bins depend on the widths of the bins; a cumulative share does not.
"""

import numpy as np


def cumulative_share(
    step_R: np.ndarray, part_R: np.ndarray, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and the share of the sum of parts up to and with each, both [M].

    At most ``points`` steps are returned, about evenly spread by logarithm; the first and the last
    are among them. ``part_R`` is not negative; its sum is above 0.
    """
    order_R = np.argsort(step_R, kind="stable")
    total_R = np.cumsum(part_R[order_R])
    count = len(step_R)
    place_M = np.arange(count)
    if count > points:
        place_M = np.unique(np.geomspace(1, count, points).round().astype(int)) - 1
    return step_R[order_R][place_M], total_R[place_M] / total_R[-1]
