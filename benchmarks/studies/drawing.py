"""The plots of the studies: curves over steps, one panel beside another."""

from collections.abc import Sequence
from pathlib import Path

Line = tuple[Sequence[float], Sequence[float], int, str]
"""Steps, values, number of the colour, label ("" for none)."""
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377", "#66CCEE")


def curves_figure(panels: Sequence[Sequence[Line]], path: Path, *, logarithmic: bool) -> None:
    """Draw panels side by side to a PNG file; ``logarithmic``: axis of steps is log(1 + step)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8 * len(panels), 3.2), layout="constrained")
    for place, lines in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.set_xlabel("1 + step" if logarithmic else "step")
        axes.grid(color="#dddddd", linewidth=0.6)
        for steps, values, colour, label in lines:
            shown = [step + logarithmic for step in steps]
            axes.plot(shown, values, color=COLOURS[colour], label=label or None, linewidth=1.2)
        if logarithmic:
            axes.set_xscale("log")
        axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=90, metadata={"Software": None})
