"""The section of a neuron's page on similar neurons: its cluster, topics and neighbours."""

import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup
from analysis.report.drawing.markup import element, fragment, section
from analysis.report.pages.neuron_table import top_tokens
from analysis.report.pages.report_data import ReportData
from analysis.report.pages.website import Links, Neuron, command_note, token_text


def related_neurons(data: ReportData, neuron: Neuron, links: Links) -> Markup:
    """The neuron's cluster, the topics of its tokens, and its neighbours on the map."""
    heading = "Related neurons"
    if "neurons" in data.sources.missing:
        note = command_note("Not computed. Run:", data.sources.missing["neurons"])
        return section(heading, note)
    clustered = data.clustered.get(neuron)
    if clustered is None:
        return section(
            heading, markup.paragraph("This neuron has too few outliers to be clustered.")
        )
    nearest = [
        element("li", links.neuron(other), " ", top_tokens(data, other))
        for other in data.nearest_neurons(neuron)
    ]
    membership = (
        "This neuron is in no cluster."
        if clustered.cluster < 0
        else f"Cluster {clustered.cluster} (membership {clustered.membership:.2f})."
    )
    return section(
        heading,
        markup.paragraph(
            membership, " ", element("a", "All clusters", href=f"{links.root}clusters.html")
        ),
        topics(clustered),
        element("h3", "Nearest on the map") if nearest else None,
        element("ul", *nearest) if nearest else None,
    )


def topics(clustered: pd.Series) -> Markup | None:
    """The token topics of a polysemantic neuron; None for other neurons."""
    if clustered.topics < 2:
        return None
    groups = [
        element("li", fragment(*(token_text(token) for token in tokens), separator=" "))
        for tokens in clustered.topic_tokens
    ]
    words = f"Polysemantic: the tokens of its evidence form {clustered.topics} topics."
    return fragment(markup.paragraph(words), element("ul", *groups))
