"""The sections of a neuron's page with passages of the training text: the datums behind it."""

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.report.drawing import markup
from analysis.report.drawing.markup import element, fragment, section
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.website import Neuron
from analysis.run.datums.picture import Picture


def evidence_datums(data: ReportData, neuron: Neuron) -> Markup:
    """The datums behind the tokens, and those with the largest recorded shifts.

    If tokens were chosen by tallies, which keep no datums, the update norm of these tokens was
    computed again by datum (``analysis.report.measured.update_norms``).
    """
    return fragment(named_datums(data, neuron), strongest_datums(data, neuron))


# --- by the evidence of the tokens ----------------------------------------------------------------


def named_datums(data: ReportData, neuron: Neuron) -> Markup | None:
    """The datums in which the update norm of the named tokens arises; None without tallies."""
    measured = data.measured(neuron)
    table = measured.datums_by_neuron.get(neuron)
    if table is None:
        return None
    steps = ", ".join(f"{step:,}" for step in measured.steps)
    words = (
        "Tokens were chosen by tallies, which keep no datums. So the update norm of the tokens "
        "above was computed again for each position of "
        f"{measured.searched:,} of {data.run.num_datums:,} training datums, with the weights after "
        f"{steps} steps and without dropout. These datums have the largest sums."
    )
    words += " This is the update norm of single steps, not of lifetime shifts." * data.lifetime
    which = "input" if measured.by_input else "target"
    items = [element("li", *named_passage(data, row)) for row in rows_of(table)]
    return section(
        "Datums behind these tokens",
        markup.paragraph(words, kind="soft"),
        legend(f"Marks show the position with the largest update norm whose {which} is named: "),
        element("ol", *items, class_="passages"),
    )


def named_passage(data: ReportData, row: Any) -> list[Markup]:
    caption = (
        f"datum {row.datum:,} · update norm {markup.significant(row.weight)} per pass over the "
        f"text (units of the weight) · largest with the weights after {row.step:,} steps"
    )
    return [element("div", caption, class_="caption"), marked_text(data, row.datum, row.position)]


# --- by outliers ----------------------------------------------------------------------------------


def strongest_datums(data: ReportData, neuron: Neuron) -> Markup | None:
    """The datums with the most outliers, each with the position of its largest shift marked."""
    table = data.datums_by_neuron.get(neuron)
    if table is None:
        return None
    items = [passage(data, row) for row in rows_of(table)]
    return section(
        "Datums with the largest single shifts",
        markup.paragraph(how_chosen(data, neuron, table), kind="soft"),
        legend("Marks show the position of the datum's largest shift: "),
        element("ol", *items, class_="passages"),
    )


def how_chosen(data: ReportData, neuron: Neuron, table: pd.DataFrame) -> str:
    """How far the datums agree with the tokens, and why they need not."""
    tokens = data.tokens_by_neuron.get(neuron)
    named = [] if tokens is None else tokens["token_id"].tolist()
    place_K = [place_of(data, position) for position in table["position"]]
    target_K = data.run.target_NT[table["datum"].to_numpy(), place_K]
    hits = int(np.isin(target_K, named).sum())
    words = f"{hits} of the {len(table)} marked targets are tokens of its evidence. "
    if tokens is None or tokens["up"].notna().any():
        return words + "Datums and tokens were chosen by the same evidence, outliers."
    words += "This is other evidence than that of the tokens: outliers, the largest single shifts. "
    measured = data.measured(neuron)
    if neuron in measured.datums_by_neuron:
        return words + "The tokens were chosen by tallies, sums over all positions; see above."
    words += "The tokens were chosen by tallies, sums over all positions, which keep no datums."
    if not measured.missing:
        return words
    return (
        words
        + f" The datums behind the tokens cannot be found for this run: it {measured.missing}."
    )


def passage(data: ReportData, row: Any) -> Markup:
    """The text of a datum and its figures, as a list item."""
    sign, kind = "+" if row.shift > 0 else "", "lifetime shift" if data.lifetime else "shift"
    caption = (
        f"datum {row.datum:,} · {row.rows:,} outliers · "
        f"largest {kind} {sign}{markup.significant(row.shift)} at step {row.step:,}"
    )
    text = marked_text(data, row.datum, row.position)
    return element("li", element("div", caption, class_="caption"), text)


# --- text -----------------------------------------------------------------------------------------


def legend(words: str) -> Markup:
    """What the two marks of a passage are."""
    return markup.paragraph(
        words,
        element("mark", "input token"),
        " and ",
        element("mark", "target token", class_="target"),
        ".",
        kind="soft",
    )


def marked_text(data: ReportData, datum: int, position: int) -> Markup:
    """The words of a training datum, with the input and the target of one position marked.

    Words that are the cells of a picture (an image, a maze) are shown as this picture.
    """
    run, position = data.run, place_of(data, position)
    words = [run.tokens[token] for token in run.token_NT[datum]]
    # The inputs lack the last target: with it, the target of position t is word t + 1.
    words.append(run.tokens[run.target_NT[datum, -1]])
    parts: list[object] = list(words)
    parts[position] = element("mark", words[position])
    parts[position + 1] = element("mark", words[position + 1], class_="target")
    picture = picture_of(data, datum)
    cells = 0 if picture is None else picture.cell_RC.size
    shown = None if picture is None else Markup(picture.as_svg(f"datum {datum}"))
    return element("blockquote", fragment(*parts[cells:], separator=" "), shown)


def place_of(data: ReportData, position: int) -> int:
    """Return where in its datum a recorded position lies: its target is there."""
    return data.run.config.corpus.window - 1 if data.run.has_one_position else position


def picture_of(data: ReportData, datum: int) -> Picture | None:
    """Return the picture that a training datum is; None for text and for custom loops."""
    run = data.run
    if run.from_custom_loop:
        return None
    token_M = np.append(run.token_NT[datum], run.target_NT[datum, -1])
    return Picture.of(run.config.corpus, token_M)
