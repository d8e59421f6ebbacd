"""The table of neurons, searchable and sortable, and the page that holds all of it."""

import math
from collections.abc import Sequence

from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, Html, element, together
from analysis.report.pages.report_data import Material, each
from analysis.report.pages.website import Links, Neuron, Page, token_text

ALL = "all-neurons"
"""The table's id, by which its search box finds it."""


def neurons_page(material: Material) -> Page:
    lead = markup.paragraph(
        "A neuron is a column of an MLP weight: one input of the unit and all that leaves it. "
        "Beside each stand the tokens that stood out in what moved its weights.",
        kind="lead",
    )
    caption = f"{len(material.neurons):,} neurons, those with the most evidence first"
    body = together(
        element("h1", "Neurons"),
        lead,
        search_box(ALL, "Search by unit, neuron or token"),
        neuron_table(material, material.neurons, caption, identity=ALL),
    )
    return Page("neurons.html", "Neurons", body, "neurons.html")


def search_box(table: str, label: str) -> Html:
    """Hidden until the page's script gives it something to do."""
    field = f"{table}-query"
    return element(
        "form",
        element("label", label, for_=field),
        element("input", type="search", id=field, autocomplete="off", spellcheck="false"),
        element("output", class_="soft", for_=field),
        class_="search",
        role="search",
        data_table=table,
        hidden=True,
    )


def neuron_table(
    material: Material, neurons: Sequence[Neuron], caption: str, *, identity: str | None = None
) -> Html:
    """A row a neuron; columns of analyses that were not done are left out."""
    strength = dict(zip(material.neurons, each(material.groups), strict=True))
    links, ablated, placed = material.links, material.ablated, material.placed
    columns = [
        Column("neuron", lambda key: links.neuron(key)),
        Column("tokens that taught it", lambda key: brief(material, key)),
        Column("outliers", lambda key: markup.whole(strength[key].rows), numeric=True),
        Column(
            "evidence",
            lambda key: markup.significant(strength[key].weight),
            numeric=True,
            explained="Total weight of the evidence that attribution used",
        ),
    ]
    if ablated:
        columns += [
            Column(
                "flips",
                lambda key: markup.whole(ablated[key].flips) if key in ablated else "",
                numeric=True,
                explained="Predictions that change when the neuron is silenced",
            ),
            Column(
                "agreement",
                lambda key: times(ablated[key].ratio) if key in ablated else "",
                numeric=True,
                explained="How many times as often as others its taught tokens flip",
            ),
        ]
    if placed:
        columns.append(
            Column(
                "cluster", lambda key: cluster(placed[key].cluster) if key in placed else "", True
            )
        )
    return markup.data_table(caption, columns, neurons, identity=identity)


def brief(material: Material, neuron: Neuron, links: Links | None = None) -> Html:
    """The neuron's first tokens; with ``links``, as links."""
    table = material.brief.get(neuron)
    if table is None:
        return Html(markup.NOTHING)
    pairs = zip(table["token_id"].tolist(), table["token"], strict=True)
    show = links.token if links else lambda token_id, token: token_text(token)
    return together(*(show(token_id, token) for token_id, token in pairs), between=" ")


def times(ratio: float) -> str:
    return markup.NOTHING if math.isnan(ratio) else f"{markup.decimals(ratio, 1)}×"


def cluster(number: int) -> str:
    return markup.NOTHING if number < 0 else str(number)
