"""The page of all neurons, and its table, which can be searched and sorted."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from analysis.measures.agreement import MIN_POSITIONS, NEARLY_DEAD_NATS
from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, element, fragment
from analysis.report.pages import definitions
from analysis.report.pages.confirmation import short_verdict
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.website import Links, Neuron, ReportPage, data_note, token_text

TABLE_ID = "all-neurons"
"""The table's id, by which its search box finds it."""


def neurons_page(data: ReportData) -> ReportPage:
    lead = markup.paragraph(
        "A neuron is a column of an MLP weight matrix: one input of the unit and all weights that "
        "it feeds. The tokens beside each neuron are over-represented in its evidence, the record "
        f"of what moved its weights. {data.counted}".rstrip(),
        kind="lead",
    )
    # Attribution orders by weight; weights of tallies are divided by their mean over the unit.
    caption = f"{len(data.neurons):,} neurons, most evidence first (tallies: relative to the unit)"
    body = fragment(
        element("h1", "Neurons"),
        lead,
        search_box(TABLE_ID, "Search by unit, neuron or token"),
        neuron_table(data, data.neurons, caption, identity=TABLE_ID),
        data_note(["attribute"]),
    )
    return ReportPage("neurons.html", "Neurons", body, "neurons.html")


def search_box(table: str, label: str) -> Markup:
    """A search field for the table with this id, hidden until the page's script shows it."""
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
    data: ReportData, neurons: Sequence[Neuron], caption: str, *, identity: str | None = None
) -> Markup:
    """A table with one row per neuron, without the columns of analyses that are missing."""
    group = dict(zip(data.neurons, rows_of(data.groups), strict=True))
    columns = [
        Column("neuron", data.links.neuron, definitions.NEURON),
        Column(
            "token evidence",
            lambda neuron: top_tokens(data, neuron),
            "Tokens over-represented in what moved the neuron's weights, highest score first",
        ),
        Column(
            "outliers",
            lambda neuron: markup.integer(group[neuron].rows),
            "Recorded outliers (largest shifts) of the neuron's weights",
            numeric=True,
        ),
        Column(
            "evidence",
            lambda neuron: markup.significant(group[neuron].weight),
            definitions.EVIDENCE,
            numeric=True,
        ),
        *(confirmation_columns(data) if data.confirmed_by_neuron else []),
        *(ablation_columns(data) if data.ablated else []),
    ]
    if clustered := data.clustered:
        columns.append(
            Column(
                "cluster",
                lambda key: cluster_number(clustered[key].cluster) if key in clustered else "",
                "Cluster of neurons that the same datums moved; – for none",
                numeric=True,
            )
        )
    return markup.data_table(caption, columns, neurons, identity=identity)


def confirmation_columns(data: ReportData) -> list[Column]:
    """The verdict of ``attribute --confirm``; neurons that were not tested have an empty cell."""
    tested = data.confirmed_by_neuron
    return [
        Column(
            "confirmed",
            lambda key: short_verdict(tested.get(key)) or "",
            "Tokens of its evidence that ablation confirms, of those that could be tested",
            numeric=True,
        )
    ]


def ablation_columns(data: ReportData) -> list[Column]:
    """The columns of an ablation; neurons that were not ablated have empty cells."""
    ablated = data.ablated
    return [
        Column(
            "effect, nats",
            lambda key: markup.decimals(ablated[key].rms_change, 4) if key in ablated else "",
            definitions.EFFECT,
            numeric=True,
        ),
        Column(
            "state",
            lambda key: "nearly dead" if key in ablated and is_dead(ablated[key]) else "",
            f"Nearly dead: the effect is below {NEARLY_DEAD_NATS} nats",
        ),
        Column(
            "difference, nats",
            lambda key: markup.decimals(ablated[key].difference, 4) if key in ablated else "",
            "Change of log p where the true next token is in its evidence, minus the change "
            "elsewhere, in nats. Below zero, ablation agrees with the evidence; by chance half are",
            numeric=True,
        ),
        Column(
            "95 % CI",
            lambda key: difference_interval(ablated[key]) if key in ablated else "",
            definitions.interval_of("the difference"),
            numeric=True,
        ),
        Column(
            "n",
            lambda key: markup.integer(ablated[key].notable_positions) if key in ablated else "",
            "Positions where the true next token is in its evidence; fewer than "
            f"{MIN_POSITIONS} are too few to evaluate",
            numeric=True,
        ),
    ]


def is_dead(row: Any) -> bool:
    """Whether ablating this neuron of the table ``NEURONS`` changes next to nothing."""
    return row.rms_change < NEARLY_DEAD_NATS


def difference_interval(row: Any) -> str:
    """The interval of the difference of a row of ``analysis.ablation.tables.NEURONS``."""
    return markup.interval(
        row.difference_low, row.difference_high, lambda bound: markup.decimals(bound, 4)
    )


def top_tokens(data: ReportData, neuron: Neuron, links: Links | None = None) -> Markup:
    """The first tokens of a neuron's evidence; ``links`` turns them into links."""
    table = data.top_tokens.get(neuron)
    if table is None:
        return Markup(markup.MISSING)
    pairs = zip(table["token_id"].tolist(), table["token"], strict=True)
    show = links.token if links else lambda token_id, token: token_text(token)
    return fragment(*(show(token_id, token) for token_id, token in pairs), separator=" ")


def cluster_number(cluster: int) -> str:
    """The number of a cluster; ``MISSING`` for -1, no cluster."""
    return markup.MISSING if cluster < 0 else str(cluster)
