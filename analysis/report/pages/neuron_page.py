"""A page per neuron: what taught it and when, and how it relates to others.

What silencing it does, and when it is active, stands in ``neuron_tests``.
"""

from collections.abc import Sequence

import pandas as pd

from analysis.report.drawing import markup, plots
from analysis.report.drawing.markup import Column, Html, element, section, together
from analysis.report.drawing.plots import Axes
from analysis.report.pages.neuron_table import brief, cluster
from analysis.report.pages.neuron_tests import activity, faithfulness, silencing
from analysis.report.pages.report_data import Material, Windows, each
from analysis.report.pages.website import Links, Neuron, Page, command_note, neuron_key, token_text

TOKENS_SHOWN = 40
WHEN_SHOWN = 6
"""Tokens whose windows are plotted."""


def neuron_page(material: Material, place: int) -> Page:
    neuron = material.neurons[place]
    unit, number = neuron
    links = material.links.within()
    body = together(
        turn(material, place, links),
        element("h1", f"Neuron {number} of ", element("span", unit, class_="neuron")),
        summary(material, place),
        taught(material, neuron, links),
        when(material, neuron),
        strongest_data(material, neuron),
        silencing(material, neuron, links),
        activity(material, neuron),
        relatives(material, neuron, links),
        faithfulness(material, neuron),
    )
    return Page(neuron_key(neuron), f"Neuron {number} of {unit}", body, "neurons.html")


def turn(material: Material, place: int, links: Links) -> Html:
    """To the stronger and the weaker neighbour in the list of neurons."""
    neurons = material.neurons
    before = links.neuron(neurons[place - 1], "← stronger") if place else element("span")
    after = place + 1 < len(neurons)
    weaker = links.neuron(neurons[place + 1], "weaker →") if after else element("span")
    return element("nav", before, weaker, class_="turn", aria_label="Neighbours in the list")


def summary(material: Material, place: int) -> Html:
    """The page in a sentence or two, and its figures."""
    neuron = material.neurons[place]
    group = material.groups.iloc[place]
    ablated, placed = material.ablated.get(neuron), material.placed.get(neuron)
    words = together("Taught above all by ", brief(material, neuron, material.links.within()), ".")
    flips = None if ablated is None else f"{ablated.flips:,} of {ablated.positions:,} predictions"
    return together(
        markup.paragraph(words, kind="lead") if neuron in material.brief else None,
        markup.facts(
            [
                ("Rank by evidence", f"{place + 1:,} of {len(material.neurons):,}"),
                ("Outliers recorded", markup.whole(group["rows"])),
                ("Evidence", markup.significant(group["weight"])),
                ("Flipped by silencing it", flips),
                ("Cluster", None if placed is None else cluster(placed.cluster)),
                ("Groups of tokens", None if placed is None else markup.whole(placed.topics)),
            ]
        ),
    )


# --- which tokens ---------------------------------------------------------------------------------


def taught(material: Material, neuron: Neuron, links: Links) -> Html:
    table = material.tokens_by_neuron.get(neuron)
    heading = "Which tokens taught it"
    if table is None:
        return section(heading, markup.paragraph("No token stood out in its evidence."))
    caption = f"{len(table)} tokens that stood out, strongest first"
    if len(table) > TOKENS_SHOWN:
        caption = f"The first {TOKENS_SHOWN} of {len(table)} tokens that stood out"
    shown = table.head(TOKENS_SHOWN)
    columns = token_columns(shown, lambda row: links.token(row.token_id, row.token))
    return section(
        heading,
        direction(table),
        markup.data_table(caption, columns, each(shown), identity="tokens"),
    )


def token_columns(shown: pd.DataFrame, first) -> list[Column]:
    """Columns for rows of ``tokens``; those that are empty throughout are left out."""
    columns = [
        Column("rank", lambda row: row.rank + 1, numeric=True),
        Column("score", lambda row: markup.significant(row.score), numeric=True),
        Column(
            "times expected",
            lambda row: markup.decimals(row.relative_frequency, 2),
            numeric=True,
            explained="Its evidence over what the background would give",
        ),
        Column("count", lambda row: markup.whole(row.count), numeric=True),
        Column("evidence", lambda row: markup.significant(row.weight), numeric=True),
    ]
    if shown["q"].notna().any():
        why = "Share of false findings among tokens as clear as this"
        columns.append(Column("q", lambda row: markup.probability(row.q), True, why))
    if shown["up"].notna().any():
        why = "Share of the evidence that raised weights; the rest lowered them"
        columns.append(Column("up", lambda row: balance(row.up, row.down), True, why))
    if shown["strengthened"].notna().any():
        why = "Share of the evidence that moved weights away from zero"
        columns.append(
            Column("strengthened", lambda row: balance(row.strengthened, row.weakened), True, why)
        )
    return [
        columns[0],
        Column("token" if shown["token"].nunique() > 1 else "", first),
        *columns[1:],
    ]


def balance(part: float, rest: float) -> Html:
    """A share in words and as a bar."""
    if not part + rest > 0:
        return Html(markup.NOTHING)
    share = part / (part + rest)
    bar = element("span", class_="balance", style=f"--part:{100 * share:.0f}%")
    return together(markup.percent(share), " ", bar)


def direction(table: pd.DataFrame) -> Html | None:
    """What the signs say, in words."""
    sums = table[["up", "down", "strengthened", "weakened"]].sum()
    if not sums["up"] + sums["down"] > 0:
        return None
    up = sums["up"] / (sums["up"] + sums["down"])
    words = f"{markup.percent(up)} of this evidence raised weights of the neuron"
    if sums["strengthened"] + sums["weakened"] > 0:
        stronger = sums["strengthened"] / (sums["strengthened"] + sums["weakened"])
        words += f"; {markup.percent(stronger)} made weights stronger, away from zero"
    return markup.paragraph(f"{words}.")


# --- when -----------------------------------------------------------------------------------------


def when(material: Material, neuron: Neuron) -> Html | None:
    """One small plot for each of the first tokens."""
    table = material.tokens_by_neuron.get(neuron)
    if table is None:
        return None
    keys = [(*neuron, token_id) for token_id in table["token_id"].head(WHEN_SHOWN).tolist()]
    found = [material.windows[key] for key in keys if key in material.windows]
    return windows_section("When they taught it", [(of.token, of) for of in found])


def windows_section(heading: str, windows: Sequence[tuple[str, Windows]]) -> Html | None:
    """Small plots of evidence by window, each with its title; nothing if there are none."""
    if not windows:
        return None
    words = "Evidence by window of training steps; the dashes are what the background would give."
    return section(
        heading,
        markup.paragraph(words, kind="soft"),
        element("div", *(window_plot(*pair) for pair in windows), class_="small-multiples"),
    )


def window_plot(title: str, windows: Windows) -> Html:
    axes = Axes(
        title=title,
        description=f"Evidence of {windows.token!r} by window of training, in steps.",
        width=190,
        height=110,
        left=46,
        right=4,
    )
    return plots.window_bars(axes, windows.edge_B1, windows.weight_B, windows.expected_B)


# --- data -----------------------------------------------------------------------------------------


def strongest_data(material: Material, neuron: Neuron) -> Html | None:
    """The datums that moved it most, with the place that did."""
    table = material.datums_by_neuron.get(neuron)
    if table is None:
        return None
    key = markup.paragraph(
        "The largest shift arose where the model read ",
        element("mark", "this token"),
        " and had to predict ",
        element("mark", "this one", class_="target"),
        ".",
        kind="soft",
    )
    items = [passage(material, row) for row in each(table)]
    return section("The data that moved it most", key, element("ol", *items, class_="passages"))


def passage(material: Material, row) -> Html:
    run = material.run
    words = [run.tokens[token] for token in run.token_NT[row.datum]]
    words.append(run.tokens[run.target_NT[row.datum, -1]])
    parts: list[object] = list(words)
    parts[row.position] = element("mark", words[row.position])
    parts[row.position + 1] = element("mark", words[row.position + 1], class_="target")
    about = (
        f"datum {row.datum:,} · {row.rows:,} outliers · the largest at step {row.step:,}, "
        f"{'+' if row.shift > 0 else ''}{markup.significant(row.shift)}"
    )
    return element(
        "li",
        element("div", about, class_="about"),
        element("blockquote", together(*parts, between=" ")),
    )


# --- relatives ------------------------------------------------------------------------------------


def relatives(material: Material, neuron: Neuron, links: Links) -> Html:
    """Cluster, neighbours, and the groups that its tokens fall into."""
    heading = "Its relatives"
    if "neurons" in material.sources.missing:
        note = command_note("Not computed:", material.sources.missing["neurons"])
        return section(heading, note)
    placed = material.placed.get(neuron)
    if placed is None:
        return section(heading, markup.paragraph("It has too few outliers to be compared."))
    near = [
        element("li", links.neuron(other), " ", brief(material, other))
        for other in material.relatives.get(neuron, ())
    ]
    belongs = (
        "It belongs to no cluster."
        if placed.cluster < 0
        else f"It belongs to cluster {placed.cluster} (membership {placed.membership:.2f})."
    )
    return section(
        heading,
        markup.paragraph(
            belongs, " ", element("a", "All clusters", href=f"{links.up}clusters.html")
        ),
        topics(placed),
        element("h3", "Nearest on the map") if near else None,
        element("ul", *near) if near else None,
    )


def topics(placed: pd.Series) -> Html | None:
    """The groups of a polysemantic neuron's tokens."""
    if placed.topics < 2:
        return None
    groups = [
        element("li", together(*(token_text(token) for token in tokens), between=" "))
        for tokens in placed.topic_tokens
    ]
    words = f"The tokens that taught it fall into {placed.topics} groups:"
    return together(markup.paragraph(words), element("ul", *groups))
