"""The three figures of docs/scale.md, drawn by matplotlib as PNG files.

The report of a run draws its own inline SVG (``analysis.report.drawing``), which follows the page's
style sheet and needs no matplotlib, so the two share no code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.scale.model import (
    KINDS,
    Assumed,
    Measured,
    gpus_per_replica,
    predict,
    record_bytes,
    replay_days,
)
from benchmarks.scale.tables import WORKLOADS
from benchmarks.scale.workloads import GPT3, SEVEN, Workload

COLOURS = ("#4477AA", "#66CCEE", "#228833", "#CCBB44", "#EE6677")
"""Paul Tol's bright scheme, which colour-blind readers can distinguish."""
MARKERS = {
    "training": "o",
    "all-reduce": "v",
    "recording": "s",
    "store bandwidth": "X",
    "checkpoint": "D",
    "requests": "P",
}
"""Bottleneck → marker of matplotlib."""
POWERS = range(3, 13)
"""Exponents of 2: the numbers of GPUs in the figure of training."""


def draw(folder: Path, measured: Measured, assumed: Assumed, growth: Mapping[str, Any]) -> None:
    """Write records.png, training.png and growth.png."""
    folder.mkdir(parents=True, exist_ok=True)
    save(records(measured), folder / "records.png")
    save(training(measured, assumed), folder / "training.png")
    save(growth_figure(growth), folder / "growth.png")


def save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def add_axes(figure: Figure, columns: int, column: int, title: str) -> Axes:
    """Add axes with a title to the figure, in this column (from 1) of a single row."""
    axes = figure.add_subplot(1, columns, column)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def records(measured: Measured) -> Figure:
    """Draw the bytes of each kind of record, as one group of bars per run."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = add_axes(figure, 1, 1, "What a whole run's record takes on the store")
    x_W = np.arange(len(WORKLOADS))
    for offset, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        sizes = [record_bytes(work, kind, measured) for work in WORKLOADS]
        axes.bar(x_W + 0.16 * (offset - 2), sizes, 0.15, color=colour, label=kind)
    axes.set_yscale("log")
    axes.set_xticks(x_W, [work.name for work in WORKLOADS])
    powers = (9, 12, 15, 18, 21)
    axes.set_yticks([10.0**p for p in powers], ["1 GB", "1 TB", "1 PB", "1 EB", "1 ZB"])
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, fontsize=8)
    return figure


def training(measured: Measured, assumed: Assumed) -> Figure:
    """Draw days of training by GPUs and kind of record; markers show the bottleneck."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for number, work in enumerate((SEVEN, GPT3), 1):
        axes = add_axes(figure, 2, number, f"{work.name}: days to train and record")
        draw_training(axes, work, measured, assumed)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def draw_training(axes: Axes, work: Workload, measured: Measured, assumed: Assumed) -> None:
    gpus = [2**p for p in POWERS if 2**p >= gpus_per_replica(work, assumed)]
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        found = [predict(work, kind, count, measured, assumed) for count in gpus]
        axes.plot(gpus, [each.days for each in found], color=colour, label=kind, linewidth=1.2)
        for each in found:
            mark = MARKERS[each.bottleneck]
            axes.plot(each.gpus, each.days, mark, color=colour, markersize=5)
    replay = [replay_days(work, "outliers", count, measured, assumed) for count in gpus]
    axes.plot(gpus, replay, ":", color="black", linewidth=1, label="outliers by replay")
    for name, mark in MARKERS.items():
        axes.plot([], [], mark, color="grey", markersize=5, label=f"waits for {name}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(gpus, [str(count) for count in gpus], fontsize=8)
    axes.set_xlabel("GPUs")


def growth_figure(growth: Mapping[str, Any]) -> Figure:
    """Draw time and memory of a capture by steps, and time of an attribution by shards."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    captured, asked = growth["capture"], growth["attribution"]
    axes = add_axes(figure, 3, 1, "capture: seconds by steps")
    fitted(axes, column(captured, "count"), column(captured, "seconds"))
    axes = add_axes(figure, 3, 2, "capture: resident MB by steps")
    axes.plot(
        column(captured, "count"), column(captured, "resident_bytes") / 1e6, "o-", color=COLOURS[0]
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.2 * column(captured, "resident_bytes").max() / 1e6)
    axes = add_axes(figure, 3, 3, "attribution: seconds by shards")
    axes.plot(column(asked, "count"), column(asked, "seconds"), "o", color=COLOURS[0])
    slope, start = np.polyfit(column(asked, "count"), column(asked, "seconds"), 1)
    line = np.array([0, asked[-1]["count"]])
    axes.plot(line, start + slope * line, color="black", linewidth=0.8)
    axes.set_ylim(bottom=0)
    return figure


def fitted(axes: Axes, count: np.ndarray, values: np.ndarray) -> None:
    """Draw points on double logarithmic axes with their least-squares line and its slope."""
    slope, start = np.polyfit(np.log(count), np.log(values), 1)
    axes.loglog(count, values, "o", color=COLOURS[0])
    axes.loglog(count, np.exp(start) * count**slope, color="black", linewidth=0.8)
    axes.text(0.05, 0.88, f"exponent {slope:.2f}", transform=axes.transAxes, fontsize=9)


def column(samples: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    return np.array([sample[name] for sample in samples], dtype=float)
