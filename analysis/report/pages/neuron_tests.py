"""The parts of a neuron's page that test its attribution: silencing, activity, faithfulness.

Shapes: B bin of activations.
"""

import math

import pandas as pd

from analysis.report.drawing import markup, plots
from analysis.report.drawing.markup import Column, Html, element, section, together
from analysis.report.drawing.plots import Axes, Interval, Series
from analysis.report.pages.neuron_table import times
from analysis.report.pages.report_data import CONTEXTS_SHOWN, Material, each
from analysis.report.pages.website import Links, Neuron, command_note, token_text

FLIPS_SHOWN = 20
CHANGES_SHOWN = 16
MOVES_SHOWN = 12
INSTEAD = {
    "zero": "Without it",
    "mean": "With its mean in its place",
    "resample": "With values from elsewhere in its place",
}
"""By kind of ablation."""
OFTEN = 10
"""A token that stands at so many positions is shown before those that stand at fewer."""
TAUGHT, OTHER = 2, 1
"""Colours of tokens that attribution found, and of others."""


def silencing(material: Material, neuron: Neuron, links: Links) -> Html:
    """What changes without the neuron: predictions, then log-probabilities."""
    heading = "When it is silenced"
    if "ablate" in material.sources.missing:
        return section(
            heading, command_note("Not silenced yet:", material.sources.missing["ablate"])
        )
    ablated = material.ablated.get(neuron)
    changes = material.changes_by_neuron.get(neuron)
    if ablated is None and changes is None:
        words = "This neuron was not among those silenced; name it with "
        unit, number = neuron
        command = f"{markup.code(f'ontogeny ablate … --only {unit}:{number}')}"
        return section(heading, markup.paragraph(words, Html(command), "."))
    return section(
        heading,
        agreement(ablated) if ablated is not None else None,
        flips(material.flips_by_neuron.get(neuron), links),
        moves(material.moves_by_neuron.get(neuron)),
        contexts(material.contexts_by_neuron.get(neuron)),
        change_plot(material, neuron, changes) if changes is not None else None,
    )


def agreement(row: pd.Series) -> Html:
    """The flips in a few sentences."""
    where = "datums that moved it" if row.attributed else "datums drawn at random"
    words = (
        f"{INSTEAD[row.kind]}, {row.flips:,} of {row.positions:,} predictions on {row.datums:,} "
        f"{where} change, among {row.flipped_tokens:,} different tokens; attribution had named "
        f"{row.notable_flipped:,} of these."
    )
    if not math.isnan(row.ratio):
        words += (
            f" Predictions of named tokens change {times(row.ratio)} as often as others "
            f"({markup.percent(row.notable_share, 2)} against "
            f"{markup.percent(row.other_share, 2)})."
        )
    if not math.isnan(row.change):
        interval = markup.between(row.change_low, row.change_high, four_places)
        words += (
            f" The log-probability of the right token changes by {four_places(row.change)} nats "
            "on average" + (f" (95 %: {interval})." if interval else ".")
        )
    return markup.paragraph(words)


def four_places(value: float) -> str:
    return markup.decimals(value, 4)


def one_place(share: float) -> str:
    return markup.percent(share, 1)


def moves(table: pd.DataFrame | None) -> Html | None:
    """The most frequent changes, from which token to which."""
    if table is None:
        return None
    items = [
        element("li", token_text(row.before), " → ", token_text(row.after), f" × {row.count:,}")
        for row in each(table.head(MOVES_SHOWN))
    ]
    words = markup.paragraph(
        "The most frequent changes, with the neuron → without it:", kind="soft"
    )
    return together(words, element("ul", *items, class_="moves"))


def flips(table: pd.DataFrame | None, links: Links) -> Html | None:
    """The tokens whose predictions flip most often; seldom predicted ones come last."""
    if table is None:
        return None
    often = table["count"] >= OFTEN
    shown = pd.concat([table[often], table[~often]]).head(FLIPS_SHOWN)
    columns = [
        Column("token", lambda row: links.token(row.token_id, row.token)),
        Column(
            "flips",
            lambda row: markup.whole(row.flips),
            numeric=True,
            explained="Positions where it is predicted only with, or only without the neuron",
        ),
        Column(
            "of predictions",
            lambda row: markup.whole(row.count),
            numeric=True,
            explained="Positions where it is predicted with or without the neuron",
        ),
        Column("proportion", lambda row: one_place(row.proportion), numeric=True),
        Column("95 %", lambda row: markup.between(row.low, row.high, one_place)),
        Column("named by attribution", lambda row: "yes" if row.notable else ""),
    ]
    caption = f"Tokens whose predictions flip, {len(shown)} of {len(table)}"
    return markup.data_table(caption, columns, each(shown), identity="flips")


def contexts(table: pd.DataFrame | None) -> Html | None:
    """Flips in their text, those of different tokens first."""
    if table is None:
        return None
    once = table.drop_duplicates("context")
    turn = once.groupby("token", sort=False).cumcount()
    shown = once.assign(turn=turn).sort_values("turn", kind="stable").head(CONTEXTS_SHOWN)
    items = [element("li", element("blockquote", snippet(row))) for row in each(shown)]
    key = markup.paragraph(
        "In context, at the place of the prediction: ",
        element("mark", element("del", "with"), " ", element("ins", "without")),
        " the neuron, then the text as it goes on.",
        kind="soft",
    )
    return together(key, element("ul", *items, class_="passages"))


def snippet(row) -> Html:
    """The context, its "(before after)" marked."""
    changed = f"({row.before} {row.after})"
    left, found, right = row.context.partition(changed)
    if not found:
        return markup.escaped(row.context)
    mark = element("mark", element("del", row.before), " ", element("ins", row.after))
    return together(left, mark, right)


def change_plot(material: Material, neuron: Neuron, table: pd.DataFrame) -> Html:
    """The targets whose log-probability changes most."""
    named = material.tokens_by_neuron.get(neuron)
    known = set() if named is None else set(named["token_id"])
    often = table[table["count"] >= OFTEN]
    pool = often if len(often) else table
    order = pool["change"].abs().sort_values(ascending=False, kind="stable").index
    shown = pool.loc[order].head(CHANGES_SHOWN).sort_values("change", kind="stable")
    rows = [
        Interval(row.token, row.change, row.low, row.high, TAUGHT if taught else OTHER)
        for row in each(shown)
        for taught in [row.token_id in known]
    ]
    axes = Axes(
        title="How much worse (left) or better (right) the model predicts",
        x="mean change of log p(target) without the neuron, nats",
        description="The targets whose log-probability changes most, with 95 % intervals.",
        left=130,
        width=520,
        height=plots.rows_height(len(rows)),
    )
    key = legend("named by attribution", "other tokens")
    span = plots.interval_bounds(rows, 0.0)
    return together(plots.intervals(axes, rows, reference=0.0, span=span), key)


def legend(taught: str, other: str) -> Html:
    """What the two colours mean."""
    parts = [
        together(element("span", class_=f"key s{colour}"), f" {words}")
        for colour, words in ((TAUGHT, taught), (OTHER, other))
    ]
    return markup.paragraph(together(*parts, between="\u2003"), kind="soft")


# --- activity and faithfulness --------------------------------------------------------------------


def activity(material: Material, neuron: Neuron) -> Html | None:
    """How its input is distributed where the next token is one that taught it, and elsewhere."""
    table = material.histograms_by_neuron.get(neuron)
    if table is None:
        return None
    groups = dict(list(table.sort_values("low").groupby("group", sort=False)))
    low_B, high_B = (next(iter(groups.values()))[end].to_numpy() for end in ("low", "high"))
    names = {"other": "before other tokens", "taught": "before tokens that taught it"}
    colours = {"other": OTHER, "taught": TAUGHT}
    series = [
        Series(names[name], low_B, 100 * groups[name]["share"].to_numpy(), colours[name])
        for name in names
        if name in groups and groups[name]["count"].sum() > 0
    ]
    axes = Axes(
        title="Activation before the tokens that taught it, and before others",
        x="activation",
        y="share of positions, % (logarithmic)",
        log_y=True,
        description="Two histograms of the neuron's activation on training text.",
    )
    return section("When it is active", plots.histogram(axes, low_B, high_B, series))


def faithfulness(material: Material, neuron: Neuron) -> Html | None:
    """How well each kind of evidence foretells what silencing it changes."""
    table = material.faithfulness_by_neuron.get(neuron)
    if table is None:
        return None
    columns = [
        Column("evidence", lambda row: row.evidence),
        Column("AUC", lambda row: markup.decimals(row.auc, 3), numeric=True),
        Column("precision", lambda row: markup.percent(row.precision), numeric=True),
    ]
    words = (
        "Ranks all tokens by each kind of evidence and asks whether silencing the neuron moves "
        "the first ones most: an AUC of 0.5 is chance, 1 is perfect."
    )
    best = each(table.sort_values("auc", ascending=False, kind="stable"))
    caption = "Evidence against silencing, best first"
    return section(
        "Does the evidence foretell the effect?",
        markup.paragraph(words),
        markup.data_table(caption, columns, best),
    )
