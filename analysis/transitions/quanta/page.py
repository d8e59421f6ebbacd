"""The page of quanta: a text, the loss of each cluster over training, and what it predicts."""

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.jobs.question import Question
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import (
    Column,
    code,
    data_table,
    element,
    fragment,
    integer,
    paragraph,
    section,
    significant,
)
from analysis.report.drawing.plots import NUM_COLOURS, Series, line_chart
from analysis.report.standalone import standalone_page
from analysis.transitions.quanta.sentences import summarise
from analysis.transitions.quanta.tables import GRADIENTS, LOSS_CURVES, Quanta
from analysis.transitions.tables import SUDDEN

EXAMPLES = 5
"""Positions shown of each cluster."""
Row = dict[Any, Any]


def quanta_page(found: Quanta, question: Question, place: str) -> bytes:
    """Return the page as one HTML document; ``place`` names the run or the folder."""
    words = element("ul", *(element("li", line) for line in summarise(found)))
    body = fragment(
        paragraph("Asked: ", code(question.line())),
        section("In words", words),
        *(kind_section(found, kind) for kind in (GRADIENTS, LOSS_CURVES)),
    )
    return standalone_page("Quanta", body, place)


def kind_section(found: Quanta, kind: str) -> Markup:
    """The curves of all clusters of one kind, a table of them, and examples."""
    rows = found.clusters[found.clusters["kind"] == kind].to_dict("records")
    charts = [
        cluster_chart(found, kind, rows[first : first + NUM_COLOURS - 1])
        for first in range(0, len(rows), NUM_COLOURS - 1)
    ]
    own = "gradient_cluster" if kind == GRADIENTS else "curve_cluster"
    examples = pd.concat(
        [rows_.head(EXAMPLES) for _, rows_ in found.positions.groupby(own, sort=True)]
    )
    return section(
        f"Clusters by {kind}",
        *charts,
        data_table(f"Clusters by {kind}", cluster_columns(), rows),
        element(
            "details",
            element("summary", "Examples of each cluster"),
            data_table(
                f"Positions of clusters by {kind}",
                [
                    Column("cluster", lambda r: integer(r[own]), "number of the cluster", True),
                    Column("context", lambda r: r["context"], "tokens before the target"),
                    Column("target", lambda r: r["target"], "token to predict"),
                    Column("first loss", lambda r: significant(r["first_loss"]), "nats", True),
                    Column("last loss", lambda r: significant(r["last_loss"]), "nats", True),
                ],
                examples.to_dict("records"),
            ),
        ),
    )


def cluster_chart(found: Quanta, kind: str, rows: list[Row]) -> Markup:
    """Mean loss of some clusters over steps, with 95 % intervals over positions."""
    series = []
    for number, row in enumerate(rows, start=1):
        own = found.curves[
            (found.curves["kind"] == kind) & (found.curves["cluster"] == row["cluster"])
        ]
        step_M, loss_M = (own[name].to_numpy(np.float64) for name in ("step", "loss"))
        error_M = 1.96 * own["standard_error"].to_numpy()
        name = f"{row['cluster']}: {row['verdict']}"
        series.append(Series(name, step_M, loss_M, number, "line", error_M))
    title = f"Loss by training step, clusters {rows[0]['cluster']} to {rows[-1]['cluster']}"
    axes = Axes(title=f"{title} by {kind} (nats)", x="step", y="nats", right=150, log_x=True)
    return line_chart(axes, series)


def cluster_columns() -> list[Column]:
    return [
        Column("cluster", lambda r: integer(r["cluster"]), "numbered by size", True),
        Column("positions", lambda r: integer(r["positions"]), "of the text", True),
        Column("cosine", lambda r: significant(r["cosine"]), "of its gradients, mean", True),
        Column(
            "null",
            lambda r: significant(r["null_cosine"]),
            "of clusters of shuffled gradients of this size",
            True,
        ),
        Column("first", lambda r: significant(r["first_loss"]), "loss in nats", True),
        Column("last", lambda r: significant(r["last_loss"]), "loss in nats", True),
        Column("half", half, "step of half the change, 95 % interval"),
        Column(
            "verdict",
            lambda r: element("strong", SUDDEN) if r["verdict"] == SUDDEN else r["verdict"],
            "sudden: see the page of transitions",
        ),
        Column("targets", lambda r: r["tokens"], "the most frequent ones, with their number"),
    ]


def half(row: Row) -> str:
    if not np.isfinite(row["half_step"]):
        return ""
    return f"{row['half_step']:,.0f} ({row['half_low']:,.0f} to {row['half_high']:,.0f})"
