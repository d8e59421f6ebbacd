"""The sections of a neuron's page on what it does in the trained model: activations and logits.

Shapes: B bin of activations.
"""

from functools import partial
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.drawing.plots import Series
from analysis.report.pages import definitions
from analysis.report.pages.neuron.neuron_effects import EVIDENCE, OTHER
from analysis.report.pages.neuron.passages import legend, marked_text
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.website import Links, Neuron

LOGIT = (
    "Change of the token's logit per unit of activation by the direct path, less the mean over all "
    "tokens; before the layer norm's division, without later layers"
)


def activity(data: ReportData, neuron: Neuron, links: Links) -> Markup:
    """Histograms, the passages of largest activation, and the tokens that the neuron writes."""
    return fragment(
        activations(data, neuron), top_passages(data, neuron), direct_logits(data, neuron, links)
    )


def activations(data: ReportData, neuron: Neuron) -> Markup | None:
    """Histograms of the neuron's activation; None without any."""
    drawn = histogram(data, neuron)
    return None if drawn is None else section("Activations", drawn)


def histogram(data: ReportData, neuron: Neuron) -> Markup | None:
    """Histograms of the activation where the target is in the neuron's evidence, and elsewhere."""
    table = data.measured(neuron).histograms_by_neuron.get(neuron)
    if table is None:
        return None
    table = table.replace({"group": {"taught": "attributed"}})  # the label in version 0.1
    groups = dict(list(table.sort_values("low").groupby("group", sort=False)))
    low_B, high_B = (next(iter(groups.values()))[end].to_numpy() for end in ("low", "high"))
    names = {"other": "before other tokens", "attributed": "before tokens in the evidence"}
    colours = {"other": OTHER, "attributed": EVIDENCE}
    series = [
        Series(names[name], low_B, 100 * groups[name]["share"].to_numpy(), colours[name])
        for name in names
        if name in groups and groups[name]["count"].sum() > 0
    ]
    axes = Axes(
        title="Activation where the next token is in the evidence, and elsewhere",
        x="activation",
        y="share of positions, % (log scale)",
        log_y=True,
        description="Two histograms of the neuron's activation on training text.",
    )
    return plots.histogram(axes, low_B, high_B, series)


def top_passages(data: ReportData, neuron: Neuron) -> Markup | None:
    """The training datums with the largest activations; None for models that were not read."""
    measured = data.measured(neuron)
    table = measured.passages_by_neuron.get(neuron)
    if table is None:
        return None
    items = [element("li", *top_passage(data, row)) for row in rows_of(table)]
    words = (
        "Datums with the largest activation of the trained model, in absolute value, among "
        f"{measured.activation_datums:,} of {data.run.num_datums:,} training datums. This "
        "needs no record of training."
    )
    return section(
        "Passages of largest activation",
        markup.paragraph(words, kind="soft"),
        legend("Marks show the position of that activation: "),
        element("ol", *items, class_="passages"),
    )


def top_passage(data: ReportData, row: Any) -> list[Markup]:
    caption = f"datum {row.datum:,} · activation {markup.significant(row.activation)}"
    return [element("div", caption, class_="caption"), marked_text(data, row.datum, row.position)]


def direct_logits(data: ReportData, neuron: Neuron, links: Links) -> Markup | None:
    """The tokens whose logits rise and fall most with the activation, by the direct path."""
    table = data.measured(neuron).logits_by_neuron.get(neuron)
    if table is None:
        return None
    sides = {str(side): part.reset_index(drop=True) for side, part in table.groupby("side")}
    up, down = sides["up"], sides["down"]
    columns = [
        Column("rank", lambda row: row + 1, "Rank by size, from 1", numeric=True),
        Column("raises", partial(logit_token, data, links, up), definitions.TOKEN),
        Column("logit up", partial(logit_value, up), LOGIT, numeric=True),
        Column("lowers", partial(logit_token, data, links, down), definitions.TOKEN),
        Column("logit down", partial(logit_value, down), LOGIT, numeric=True),
    ]
    words = (
        "What the neuron adds to the residual stream, read by the unembedding. Paths through "
        "later layers and through the neuron's own MLP are left out: a token at the top need not "
        "become more probable. Ablation measures that."
    )
    rows = markup.data_table("Direct effect on the logits", columns, range(len(up)))
    return section("Tokens that it writes", markup.paragraph(words, kind="soft"), rows)


def logit_token(data: ReportData, links: Links, side: pd.DataFrame, row: int) -> Markup:
    token_id = int(side["token_id"].iloc[row])
    return links.token(token_id, data.run.tokens[token_id])


def logit_value(side: pd.DataFrame, row: int) -> str:
    return markup.significant(side["logit"].iloc[row])
