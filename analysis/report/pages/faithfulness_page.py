"""The chapter on faithfulness: how well each kind of evidence predicts ablation effects."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.drawing.plots import Interval
from analysis.report.pages import definitions
from analysis.report.pages.report_data import ReportData, rows_of

AUC = (
    "Probability (0 to 1) that an affected token ranks above another one; 0.5 is chance. Affected: "
    "its log-probability changes most when the neuron is ablated"
)
PRECISION = "Share (0 to 1) of affected tokens among those ranked highest, five by default"
BASELINE = 0
"""Colour of evidence that needs no record of training."""


def faithfulness(data: ReportData) -> Markup:
    """The content of the chapter."""
    scores = data.sources["faithfulness", "scores"]
    lead = markup.paragraph(
        "Does evidence from training predict what a neuron does? Each kind of evidence ranks all "
        "tokens for a neuron. The ground truth is the set of affected tokens: those whose "
        "log-probability changes most when the neuron is ablated.",
        kind="lead",
    )
    reading = markup.paragraph(
        "AUC is the probability that an affected token ranks above another one; 0.5 is chance. "
        "Precision is the share of affected tokens among those ranked highest (five by default). "
        "Grey: baselines, which need no record of training. One of them is the split-half "
        "reliability, the agreement of ablation effects between two halves of the text. "
        "Bars are 95 % bootstrap intervals over neurons.",
        kind="soft",
    )
    return fragment(
        lead,
        reading,
        auc_plots(scores),
        section("Scores", score_table(scores)),
    )


def auc_plots(scores: pd.DataFrame) -> Markup:
    """One chart per unit. All have one scale and one order: highest mean AUC over units first."""
    mean = scores.groupby("evidence")["auc"].transform("mean")
    ordered = scores.assign(mean=mean).sort_values("mean", ascending=False, kind="stable")
    rows = {
        unit: [score_interval(row) for row in rows_of(ordered[ordered["unit"] == unit])]
        for unit in dict.fromkeys(scores["unit"])
    }
    span = plots.interval_chart_bounds([row for part in rows.values() for row in part], 0.5)
    panels = [auc_plot(unit, part, span) for unit, part in rows.items()]
    return element("div", *panels, class_="small-multiples")


def score_interval(row: Any) -> Interval:
    colour = BASELINE if row.baseline else 1
    return Interval(row.evidence, row.auc, row.auc_low, row.auc_high, colour)


def auc_plot(unit: str, rows: list[Interval], span: tuple[float, float]) -> Markup:
    axes = Axes(
        title=unit,
        x="AUC",
        description=f"AUC of each kind of evidence for {unit}, with 95 % intervals.",
        width=480,
        left=210,
    )
    return plots.interval_chart(axes, rows, reference=0.5, span=span)


def score_table(scores: pd.DataFrame) -> Markup:
    columns = [
        Column("unit", lambda row: row.unit, definitions.UNIT),
        Column("evidence", lambda row: row.evidence, "What was summed for each neuron and token"),
        Column("background", lambda row: row.background, "What the evidence is compared with"),
        Column("statistic", lambda row: row.select, "Score that ranks the tokens of a neuron"),
        Column(
            "baseline",
            lambda row: "yes" if row.baseline else "",
            "Yes: it needs no record of training",
        ),
        Column(
            "neurons", lambda row: markup.integer(row.neurons), "Neurons evaluated", numeric=True
        ),
        Column("AUC", lambda row: markup.decimals(row.auc, 3), AUC, numeric=True),
        Column(
            "95 % CI",
            lambda row: markup.interval(row.auc_low, row.auc_high, markup.decimals),
            definitions.interval_of("the mean AUC over neurons"),
            numeric=True,
        ),
        Column("precision", lambda row: markup.decimals(row.precision, 3), PRECISION, numeric=True),
        Column(
            "95 % CI of precision",
            lambda row: markup.interval(row.precision_low, row.precision_high, markup.decimals),
            definitions.interval_of("the mean precision over neurons"),
            numeric=True,
        ),
    ]
    return markup.data_table("Scores by unit and kind of evidence", columns, rows_of(scores))
