"""How much of a sum was made up to each step, at few enough steps to draw.

On an axis of log steps, sums in bins depend on the widths of the bins; a cumulative share does not.
"""

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.report.drawing.axes import Axes
from analysis.report.drawing.plots import NUM_COLOURS, Series, line_chart

POINTS = 120
"""Steps of a curve that are drawn; of more, as many spread evenly by logarithm."""


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


def directions_chart(steps: pd.DataFrame) -> Markup:
    """Share of each singular direction's squared right vector up to each step, on a log axis.

    ``steps``: rows of the table ``steps`` of ``spectrum``, with direction, step and weight.
    """
    series = []
    for number, own in steps.groupby("direction"):
        if len(series) == NUM_COLOURS:
            break
        square_R = np.square(own["weight"].to_numpy())
        if square_R.any():
            curve = cumulative_share(own["step"].to_numpy(), square_R, POINTS)
            series.append(Series(f"direction {number}", *curve, len(series) + 1))
    title = "Share of each direction that lies up to a step"
    axes = Axes(title=title, x="step", y="of the squared right vector", right=110, log_x=True)
    return line_chart(axes, series, zero=True)
