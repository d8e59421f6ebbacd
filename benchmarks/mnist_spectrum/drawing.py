"""The figure of docs/studies/mnist-spectrum.md: values over 10 % as each thing fades."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Levels = Mapping[float, list[dict[str, Any]]]
"""Level of a sweep → its lines of the results."""
COLUMNS = 5
COLOURS = {"as recorded": "#4477AA", "unit length": "#EE6677"}
CEILING = 640


def draw(panels: Mapping[tuple[str, str], Levels], path: Path) -> None:
    """Draw a panel for each sweep, by its title and the unit of its axis, to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(2.9 * COLUMNS, 2.6 * rows), layout="constrained")
    for place, ((title, unit), levels) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_ylim(0, CEILING)
        axes.grid(color="#dddddd", linewidth=0.6)
        fill(axes, levels)
        if place == 1:
            axes.legend(fontsize=8)
        if place % COLUMNS == 1:
            axes.set_ylabel("values over 10 %", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def fill(axes: Any, levels: Levels) -> None:
    """Draw the mean over seeds at each level, and the seeds as points."""
    at = sorted(levels)
    spots = np.arange(len(at))
    for name, colour in COLOURS.items():
        values = [[one["gradients"][name]["over_cutoff"] for one in levels[level]] for level in at]
        axes.plot(spots, [np.mean(own) for own in values], "o-", color=colour, label=name)
        for spot, own in zip(spots, values, strict=True):
            axes.plot([spot] * len(own), own, ".", color=colour, alpha=0.5)
    axes.set_xticks(spots, [f"{level:g}" for level in at])
