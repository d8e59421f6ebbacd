"""The page of all tokens, and a page for each: the neurons in whose evidence the token is."""

from functools import partial

import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.pages import definitions
from analysis.report.pages.neuron.neuron_page import token_columns, windows_section
from analysis.report.pages.neuron_table import search_box
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.website import Links, Neuron, ReportPage, token_key

NEURONS_SHOWN = 60
PLOTTED_NEURONS = 6
"""Neurons whose evidence over training is plotted."""
TABLE_ID = "all-tokens"
"""The table's id, by which its search box finds it."""


def tokens_page(data: ReportData) -> ReportPage:
    """The table of all tokens in the evidence of a neuron, those of most neurons first."""
    counts = vocabulary_counts(data)
    tokens = sorted(data.neurons_by_token.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    links = data.links
    columns = [
        Column(
            "token",
            lambda pair: links.token(pair[0], data.run.tokens[pair[0]]),
            definitions.TOKEN,
        ),
        Column(
            "neurons",
            lambda pair: markup.integer(len(pair[1])),
            "Neurons of this report in whose evidence the token is",
            numeric=True,
        ),
        Column(
            "top neuron",
            lambda pair: links.neuron(top_neuron(pair[1])),
            "The neuron in whose evidence the token ranks highest",
        ),
        Column(
            "count in training text",
            lambda pair: markup.integer(counts[pair[0]]),
            "Occurrences in the training text",
            numeric=True,
        ),
    ]
    lead = markup.paragraph(
        "All tokens that are over-represented in the evidence of at least one neuron.",
        kind="lead",
    )
    body = fragment(
        element("h1", "Tokens"),
        lead,
        search_box(TABLE_ID, "Search by token or neuron"),
        markup.data_table(f"{len(tokens):,} tokens", columns, tokens, identity=TABLE_ID),
    )
    return ReportPage("tokens.html", "Tokens", body, "tokens.html")


def top_neuron(table: pd.DataFrame) -> Neuron:
    """The neuron in whose evidence the token ranks highest."""
    return str(table["unit"].iloc[0]), int(table["group"].iloc[0])


def vocabulary_counts(data: ReportData) -> pd.Series:
    """Occurrences in the training text, indexed by token id."""
    return data.run.vocabulary().set_index("token_id")["count"]


def token_page(data: ReportData, token_id: int, count: int) -> ReportPage:
    """The page of a token that occurs ``count`` times in the training text."""
    table = data.neurons_by_token[token_id]
    token = str(table["token"].iloc[0])
    links = data.links.from_subfolder()
    lead = markup.paragraph(
        f"In the evidence of {len(table):,} of {len(data.neurons):,} neurons; "
        f"{count:,} occurrences in the training text.",
        kind="lead",
    )
    body = fragment(
        element("h1", "Token ", element("span", token, class_="token")),
        lead,
        neuron_evidence(table, links),
        evidence_over_time(data, table, token_id),
        ablation_effects(data, table, token_id, links),
        activations(data, token_id, links),
    )
    return ReportPage(token_key(token_id), f"Token {token}", body, "tokens.html")


def neuron_evidence(table: pd.DataFrame, links: Links) -> Markup:
    """The columns of a neuron's token evidence, here with one row per neuron."""
    shown = table.head(NEURONS_SHOWN)
    caption = f"{len(shown)} of {len(table)} neurons, those where the token ranks highest first"
    neuron = Column("neuron", lambda row: links.neuron((row.unit, row.group)), definitions.NEURON)
    # All rows are of one token, whose column therefore has no header and is left out.
    columns = [column for column in token_columns(shown, lambda row: "") if column.header]
    rows = rows_of(shown)
    return section(
        "Neurons with this token in their evidence",
        markup.data_table(caption, [neuron, *columns], rows),
    )


def evidence_over_time(data: ReportData, table: pd.DataFrame, token_id: int) -> Markup | None:
    """One small chart for each of the first neurons."""
    neurons = list(zip(table["unit"], table["group"].tolist(), strict=True))[:PLOTTED_NEURONS]
    found = [
        (f"{unit} · {group}", data.windows[unit, group, token_id])
        for unit, group in neurons
        if (unit, group, token_id) in data.windows
    ]
    return windows_section(found)


def ablation_effects(
    data: ReportData, table: pd.DataFrame, token_id: int, links: Links
) -> Markup | None:
    """The change of the token's log-probability when its neurons are ablated, one row each."""
    parts = [
        changes[changes["token_id"] == token_id]
        for key in zip(table["unit"], table["group"].tolist(), strict=True)
        if (changes := data.changes_by_neuron.get(key)) is not None
    ]
    found = pd.concat(parts) if parts else pd.DataFrame()
    if not len(found):
        return None
    columns = [
        Column("neuron", lambda row: links.neuron((row.unit, row.group)), definitions.NEURON),
        Column(
            "change of log p, nats",
            lambda row: markup.decimals(row.change, 4),
            definitions.CHANGE,
            numeric=True,
        ),
        Column(
            "95 % CI low",
            lambda row: markup.decimals(row.low, 4),
            "Lower end of the 95 % interval of the change, in nats",
            numeric=True,
        ),
        Column(
            "high",
            lambda row: markup.decimals(row.high, 4),
            "Upper end of the 95 % interval of the change, in nats",
            numeric=True,
        ),
        Column(
            "positions",
            lambda row: markup.integer(row.count),
            definitions.POSITIONS,
            numeric=True,
        ),
    ]
    rows = rows_of(found.sort_values("change", kind="stable").head(NEURONS_SHOWN))
    caption = "Mean change of the token's log-probability over the positions where it is the target"
    return section("Effect of ablating these neurons", markup.data_table(caption, columns, rows))


def activations(data: ReportData, token_id: int, links: Links) -> Markup | None:
    """The neurons with the lowest and highest mean activation on the token."""
    ranks = data.sources["activations", "ranks"]
    own = ranks[ranks["token_id"] == token_id]
    if not len(own):
        return None
    return section(
        "Activations on this token",
        rank_table(own, links, "Neurons with the lowest and highest mean activation"),
    )


def rank_table(table: pd.DataFrame, links: Links, caption: str) -> Markup:
    """``analysis.activations.tables.RANKS`` of one token."""
    columns = [Column("rank", lambda row: row.rank + 1, "From 1, most extreme first", numeric=True)]
    for end, name in (("min", "lowest activation"), ("max", "highest activation")):
        columns += [
            Column(name, partial(ranked_neuron, links, end), definitions.NEURON),
            Column(
                f"mean, {'lowest' if end == 'min' else 'highest'}",
                partial(ranked_mean, end),
                "Mean activation of this neuron on the token (input of the unit, no unit)",
                numeric=True,
            ),
        ]
    return markup.data_table(caption, columns, rows_of(table.sort_values("rank")))


def ranked_neuron(links: Links, end: str, row) -> Markup:
    return links.neuron((getattr(row, f"{end}_unit"), getattr(row, f"{end}_neuron")))


def ranked_mean(end: str, row) -> str:
    return markup.decimals(getattr(row, f"{end}_mean"), 3)
