"""The list of tokens, and a page for each: which neurons it taught, and when."""

from functools import partial

import pandas as pd

from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, Html, element, section, together
from analysis.report.pages.neuron_page import token_columns, windows_section
from analysis.report.pages.neuron_table import search_box
from analysis.report.pages.report_data import Material, each
from analysis.report.pages.website import Links, Page, token_key

NEURONS_SHOWN = 60
WHEN_SHOWN = 6
ALL = "all-tokens"


def tokens_page(material: Material) -> Page:
    """All tokens that taught a neuron, those that taught most first."""
    counts = vocabulary_counts(material)
    taught = sorted(material.neurons_by_token.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    links = material.links
    columns = [
        Column("token", lambda pair: links.token(pair[0], material.run.tokens[pair[0]])),
        Column("neurons it taught", lambda pair: markup.whole(len(pair[1])), numeric=True),
        Column("first among", lambda pair: links.neuron(strongest(pair[1]))),
        Column("in the training text", lambda pair: markup.whole(counts[pair[0]]), numeric=True),
    ]
    lead = markup.paragraph(
        "The tokens that stood out in what moved at least one neuron's weights.", kind="lead"
    )
    body = together(
        element("h1", "Tokens"),
        lead,
        search_box(ALL, "Search by token or neuron"),
        markup.data_table(f"{len(taught):,} tokens", columns, taught, identity=ALL),
    )
    return Page("tokens.html", "Tokens", body, "tokens.html")


def strongest(table: pd.DataFrame) -> tuple[str, int]:
    """The neuron in whose list the token stands highest."""
    return str(table["unit"].iloc[0]), int(table["group"].iloc[0])


def vocabulary_counts(material: Material) -> pd.Series:
    """Occurrences in the training text by token id."""
    return material.run.vocabulary().set_index("token_id")["count"]


def token_page(material: Material, token_id: int, count: int) -> Page:
    table = material.neurons_by_token[token_id]
    token = str(table["token"].iloc[0])
    links = material.links.within()
    lead = markup.paragraph(
        f"Taught {len(table):,} of {len(material.neurons):,} neurons; "
        f"it stands {count:,} times in the training text.",
        kind="lead",
    )
    body = together(
        element("h1", "Token ", element("span", token, class_="token")),
        lead,
        neurons(table, links),
        when(material, table, token_id),
        effects(material, table, token_id, links),
        activity(material, token_id, links),
    )
    return Page(token_key(token_id), f"Token {token}", body, "tokens.html")


def neurons(table: pd.DataFrame, links: Links) -> Html:
    """The same columns as on a neuron's page, a row a neuron."""
    shown = table.head(NEURONS_SHOWN)
    caption = f"{len(shown)} of {len(table)} neurons, those in whose lists it stands first"
    columns = token_columns(shown, lambda row: "")
    named = Column("neuron", lambda row: links.neuron((row.unit, row.group)))
    rest = [column for column in columns if column.head]
    rows = each(shown)
    return section("Which neurons it taught", markup.data_table(caption, [named, *rest], rows))


def when(material: Material, table: pd.DataFrame, token_id: int) -> Html | None:
    """Windows of training, for the first neurons."""
    neurons = list(zip(table["unit"], table["group"].tolist(), strict=True))[:WHEN_SHOWN]
    found = [
        (f"{unit} · {group}", material.windows[unit, group, token_id])
        for unit, group in neurons
        if (unit, group, token_id) in material.windows
    ]
    return windows_section("When it taught them", found)


def effects(material: Material, table: pd.DataFrame, token_id: int, links: Links) -> Html | None:
    """What silencing the neurons does to the token's probability."""
    parts = [
        changes[changes["token_id"] == token_id]
        for key in zip(table["unit"], table["group"].tolist(), strict=True)
        if (changes := material.changes_by_neuron.get(key)) is not None
    ]
    found = pd.concat(parts) if parts else pd.DataFrame()
    if not len(found):
        return None
    columns = [
        Column("neuron", lambda row: links.neuron((row.unit, row.group))),
        Column("change of log p, nats", lambda row: markup.decimals(row.change, 4), numeric=True),
        Column("95 % from", lambda row: markup.decimals(row.low, 4), numeric=True),
        Column("to", lambda row: markup.decimals(row.high, 4), numeric=True),
        Column("positions", lambda row: markup.whole(row.count), numeric=True),
    ]
    rows = each(found.sort_values("change", kind="stable").head(NEURONS_SHOWN))
    caption = "Mean change of the log-probability of this token, where it is the target"
    return section(
        "What silencing these neurons does to it", markup.data_table(caption, columns, rows)
    )


def activity(material: Material, token_id: int, links: Links) -> Html | None:
    """The neurons of least and greatest mean activation on the token."""
    ranks = material.sources["activations", "ranks"]
    own = ranks[ranks["token_id"] == token_id]
    if not len(own):
        return None
    return section(
        "What activations alone would say", rank_table(own, links, "Least and most active neurons")
    )


def rank_table(table: pd.DataFrame, links: Links, caption: str) -> Html:
    columns = [Column("rank", lambda row: row.rank + 1, numeric=True)]
    for end, name in (("min", "least active"), ("max", "most active")):
        columns += [
            Column(name, partial(ranked_neuron, links, end)),
            Column("mean", partial(ranked_mean, end), numeric=True),
        ]
    return markup.data_table(caption, columns, each(table.sort_values("rank")))


def ranked_neuron(links: Links, end: str, row) -> Html:
    return links.neuron((getattr(row, f"{end}_unit"), getattr(row, f"{end}_neuron")))


def ranked_mean(end: str, row) -> str:
    return markup.decimals(getattr(row, f"{end}_mean"), 3)
