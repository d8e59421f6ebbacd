"""What ``ontogeny trajectory`` prints: curves at a few checkpoints, and the text."""

from rich.console import Console

from analysis.report.drawing.markup import significant
from analysis.trajectory.checkpoints.spacing import log_spaced
from analysis.trajectory.page.summary import curves, foremost, omitted, summarise
from analysis.trajectory.page.turns import turn_sentences
from analysis.trajectory.tables import Trajectory
from cluster.terminal.tables import data_table, print_table

COLUMNS = 6
"""Checkpoints shown."""


def show_trajectory(console: Console, found: Trajectory, *, rows: int) -> None:
    """Print each metric at a few checkpoints, then the text.

    Of a metric without a value of the whole model, at most ``rows`` components are shown.
    """
    steps = log_spaced(found.checkpoints["step"].tolist(), COLUMNS)
    table = data_table("metric", *(f"{step:,}" for step in steps), "null")
    for metric in found.metrics["metric"]:
        for curve in foremost(curves(found, metric), rows, rows):
            values = dict(zip(curve.step_M.tolist(), curve.value_M.tolist(), strict=True))
            cells = [significant(values[step]) if step in values else "" for step in steps]
            null = significant(curve.null) if curve.null == curve.null else ""
            table.add_row(f"{metric} {curve.component}".strip(), *cells, null)
    print_table(console, "Metrics by steps of training", table)
    for line in [*summarise(found), *turn_sentences(found)]:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if left_out := omitted(found.metrics):
        text = f"Not measured: {'; '.join(left_out)}."
        console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=True)
