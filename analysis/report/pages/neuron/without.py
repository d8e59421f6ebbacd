"""The section of a neuron's page on what it would be without some data."""

from markupsafe import Markup

from analysis.jobs.neuron_influence import EffectLeft, NeuronInfluence
from analysis.report.drawing import markup
from analysis.report.drawing.markup import element, fragment, section
from analysis.report.pages.report_data import DATUMS_SHOWN, ReportData
from analysis.report.pages.website import Neuron, command_note

HEADING = "What it would be without some data"


def without_data(data: ReportData, neuron: Neuron) -> Markup:
    """The datums that the neuron's effect depends on, and what retraining without them left."""
    found = data.influences_by_neuron.get(neuron)
    if not found:
        unit, number = neuron
        command = f"ontogeny influence {data.run.uri} neuron:{unit}:{number} --name NAME"
        return section(HEADING, command_note("Not computed. Run:", command))
    return section(HEADING, *(of_query(data, own) for own in found))


def of_query(data: ReportData, own: NeuronInfluence) -> Markup:
    words = (
        "Unrolled influence, through all later training, predicts that this effect would be "
        "smaller without the datums below. "
    )
    if own.reliable_from:
        words += (
            f"Only steps {own.reliable_from:,} to {own.end_step - 1:,} count: before these, "
            "training amplified small changes too much. "
        )
    if own.departure >= 1:
        words += (
            "NOT CONFIRMED: training was repeated without random datums, and the prediction was no "
            f"better than none (departure {markup.decimals(own.departure, 2)}). "
        )
    elif own.departure >= 0:
        words += (
            "Training was repeated without random datums: the predicted change departs from the "
            f"true one by {markup.decimals(own.departure, 2)} of it. "
        )
    items = [
        element("li", *passage(data, int(datum), float(value)))
        for datum, value in own.datums.head(DATUMS_SHOWN).to_numpy()
        if value > 0
    ]
    return fragment(
        element("h3", own.query),
        markup.paragraph(words, effect_left(own.left)),
        element("ol", *items, class_="passages"),
    )


def passage(data: ReportData, datum: int, influence: float) -> list[Markup]:
    """The text of a datum with its influence."""
    caption = f"datum {datum:,} · influence {markup.significant(influence)} nats"
    picture = None if data.run.has_numbered_datums else data.run.datum(datum).picture
    shown = None if picture is None else Markup(picture.as_svg(f"datum {datum}"))
    text = str(data.run.texts[datum])
    return [element("div", caption, class_="caption"), element("blockquote", text, shown)]


def effect_left(own: EffectLeft | None) -> str:
    """What retraining without the named datums left, in a few sentences."""
    if own is None:
        return "No retraining has confirmed it: ontogeny lds … --top 0.05 does."
    words = (
        f"Trained again without the {markup.percent(own.share)} of the datums that raise it most: "
        f"{markup.decimals(own.left, 2)} of the effect is left (1: unchanged). "
    )
    if own.random_sets:
        sets = "set" if own.random_sets == 1 else "sets"
        words += (
            f"Without as many random datums: {markup.decimals(own.random, 2)} "
            f"(mean of {own.random_sets} {sets}). "
        )
    if own.queries > 1:
        words += (
            f"Mean over the {own.queries} queries that were judged together: "
            f"{markup.decimals(own.mean, 2)} (95 % interval {markup.decimals(own.low, 2)} to "
            f"{markup.decimals(own.high, 2)})."
        )
    return words
