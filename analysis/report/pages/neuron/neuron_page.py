"""The page of a neuron: its token evidence, when it arose, the datums behind it, similar neurons.

Its sections on datums are in ``passages`` and ``without``, on activations in ``activity``, on
ablation and faithfulness in ``neuron_effects``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup, plots
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.pages import definitions
from analysis.report.pages.confirmation import confirmation, short_verdict
from analysis.report.pages.neuron.activity import activity
from analysis.report.pages.neuron.neuron_effects import ablation, faithfulness
from analysis.report.pages.neuron.passages import evidence_datums
from analysis.report.pages.neuron.related_neurons import related_neurons
from analysis.report.pages.neuron.without import without_data
from analysis.report.pages.neuron_table import cluster_number, top_tokens
from analysis.report.pages.report_data import ReportData, WindowEvidence, rows_of
from analysis.report.pages.website import Links, Neuron, ReportPage, data_note, neuron_key

JOBS = ("attribute", "ablate", "neurons", "faithfulness")
"""Analyses whose tables the page shows."""
TOKENS_SHOWN = 40
PLOTTED_TOKENS = 6
"""Tokens whose evidence over training is plotted."""


def neuron_page(data: ReportData, index: int) -> ReportPage:
    """The page of the neuron at this index of the report's neurons."""
    neuron = data.neurons[index]
    unit, number = neuron
    links = data.links.from_subfolder()
    body = fragment(
        neighbour_navigation(data, index, links),
        element("h1", f"Neuron {number} of ", element("span", unit, class_="neuron")),
        summary(data, index),
        token_evidence(data, neuron, links),
        confirmation(data, neuron, links),
        evidence_over_time(data, neuron),
        evidence_datums(data, neuron),
        without_data(data, neuron),
        ablation(data, neuron, links),
        activity(data, neuron, links),
        related_neurons(data, neuron, links),
        faithfulness(data, neuron),
        data_note([job for job in JOBS if job not in data.sources.missing], links.root),
    )
    return ReportPage(neuron_key(neuron), f"Neuron {number} of {unit}", body, "neurons.html")


def neighbour_navigation(data: ReportData, index: int, links: Links) -> Markup:
    """Links to the neurons with the next more and the next less evidence."""
    neurons = data.neurons
    more = links.neuron(neurons[index - 1], "← more evidence") if index else element("span")
    is_last = index + 1 == len(neurons)
    less = element("span") if is_last else links.neuron(neurons[index + 1], "less evidence →")
    return element("nav", more, less, class_="neighbours", aria_label="Neighbours in the list")


def summary(data: ReportData, index: int) -> Markup:
    """One sentence on the token evidence, and the figures of the neuron."""
    neuron = data.neurons[index]
    group = data.groups.iloc[index]
    ablated, clustered = data.ablated.get(neuron), data.clustered.get(neuron)
    tokens = top_tokens(data, neuron, data.links.from_subfolder())
    lead = markup.paragraph("Tokens with the most evidence: ", tokens, kind="lead")
    flips = None if ablated is None else f"{ablated.flips:,} of {ablated.positions:,} predictions"
    return fragment(
        lead if neuron in data.top_tokens else None,
        markup.fact_list(
            [
                ("Rank by evidence", f"{index + 1:,} of {len(data.neurons):,}"),
                ("Outliers recorded", markup.integer(group["rows"])),
                ("Evidence (total weight)", markup.significant(group["weight"])),
                ("Confirmed by ablation", short_verdict(data.confirmed_by_neuron.get(neuron))),
                ("Flipped by ablation", flips),
                ("Cluster", None if clustered is None else cluster_number(clustered.cluster)),
                ("Token topics", None if clustered is None else markup.integer(clustered.topics)),
            ]
        ),
    )


# --- token evidence -------------------------------------------------------------------------------


def token_evidence(data: ReportData, neuron: Neuron, links: Links) -> Markup:
    """The table of the tokens that attribution selected for the neuron."""
    table = data.tokens_by_neuron.get(neuron)
    heading = "Token evidence"
    if table is None:
        return section(
            heading, markup.paragraph("No token is over-represented in this neuron's evidence.")
        )
    caption = f"{len(table)} tokens over-represented in the evidence, highest score first"
    if len(table) > TOKENS_SHOWN:
        caption = f"First {TOKENS_SHOWN} of {len(table)} tokens over-represented in the evidence"
    shown = table.head(TOKENS_SHOWN)
    columns = token_columns(shown, lambda row: links.token(row.token_id, row.token))
    note = (
        "The evidence shows which training data moved the weights of this neuron. It does not "
        "show what the neuron would be without them: ontogeny influence answers that, where "
        f"retraining confirms it. {data.counted}".rstrip()
    )
    return section(
        heading,
        markup.paragraph(note, kind="soft"),
        sign_summary(table),
        markup.data_table(caption, columns, rows_of(shown), identity="tokens"),
    )


def token_columns(shown: pd.DataFrame, token_cell: Callable[[Any], object]) -> list[Column]:
    """Columns for rows of the table ``tokens``; optional columns without any value are left out.

    The second column is that of the token. Its header is empty if all rows have the same token.
    """
    columns = [
        Column("rank", lambda row: row.rank + 1, "Rank by score, from 1", numeric=True),
        Column("token" if shown["token"].nunique() > 1 else "", token_cell, definitions.TOKEN),
        Column(
            "score",
            lambda row: markup.significant(row.score),
            "What ranks the tokens: the statistic that attribution used (--select), no unit",
            numeric=True,
        ),
        Column(
            "× expected",
            lambda row: markup.decimals(row.relative_frequency, 2),
            "Weight of the token's evidence / weight expected from the background",
            numeric=True,
        ),
        Column(
            "count",
            lambda row: markup.integer(row.count),
            "Outlier rows of this token; with tallies, positions with this token",
            numeric=True,
        ),
        Column(
            "evidence",
            lambda row: markup.significant(row.weight),
            "Weight of the token's evidence, summed over training, in the unit of the evidence",
            numeric=True,
        ),
    ]
    if shown["q"].notna().any():
        meaning = "False discovery rate among tokens at least as significant as this one"
        columns.append(Column("q", lambda row: markup.probability(row.q), meaning, True))
    if shown["up"].notna().any():
        meaning = "Share of the evidence that increased weights, %; the rest decreased them"
        columns.append(Column("up", lambda row: share_bar(row.up, row.down), meaning, True))
    if shown["strengthened"].notna().any():
        meaning = "Share of the evidence that moved weights away from zero, %"
        columns.append(
            Column(
                "strengthened",
                lambda row: share_bar(row.strengthened, row.weakened),
                meaning,
                True,
            )
        )
    return columns


def share_bar(part: float, rest: float) -> Markup:
    """part / (part + rest) as a percentage and as a bar."""
    if not part + rest > 0:
        return Markup(markup.MISSING)
    share = part / (part + rest)
    bar = element("span", class_="share-bar", style=f"--part:{100 * share:.0f}%")
    return fragment(markup.percent(share), " ", bar)


def sign_summary(table: pd.DataFrame) -> Markup | None:
    """One sentence on the signs of the shifts; None if they are unknown."""
    sums = table[["up", "down", "strengthened", "weakened"]].sum()
    if not sums["up"] + sums["down"] > 0:
        return None
    up = sums["up"] / (sums["up"] + sums["down"])
    words = f"{markup.percent(up)} of this evidence increased weights of the neuron"
    if sums["strengthened"] + sums["weakened"] > 0:
        stronger = sums["strengthened"] / (sums["strengthened"] + sums["weakened"])
        words += f"; {markup.percent(stronger)} moved weights away from zero"
    return markup.paragraph(f"{words}.")


# --- over training --------------------------------------------------------------------------------


def evidence_over_time(data: ReportData, neuron: Neuron) -> Markup | None:
    """One small chart for each of the first tokens; None if there is no evidence."""
    table = data.tokens_by_neuron.get(neuron)
    if table is None:
        return None
    keys = [(*neuron, token_id) for token_id in table["token_id"].head(PLOTTED_TOKENS).tolist()]
    found = [data.windows[key] for key in keys if key in data.windows]
    return windows_section([(windows.token, windows) for windows in found])


def windows_section(windows: Sequence[tuple[str, WindowEvidence]]) -> Markup | None:
    """A section with one small chart of evidence for each title; None without any."""
    if not windows:
        return None
    words = (
        "Weight of the evidence by window of training steps. Dashed lines: weight expected from "
        "the background."
    )
    return section(
        "Token evidence over training",
        markup.paragraph(words, kind="soft"),
        element("div", *(window_plot(*pair) for pair in windows), class_="small-multiples"),
    )


def window_plot(title: str, windows: WindowEvidence) -> Markup:
    axes = Axes(
        title=title,
        description=f"Evidence of {windows.token!r} by window of training steps.",
        width=190,
        height=110,
        left=46,
        right=4,
    )
    return plots.window_chart(axes, windows.edge_B1, windows.weight_B, windows.expected_B)
