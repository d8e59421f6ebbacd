"""The chapter on influence: the datums that each stored answer names, with the words marked."""

from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.jobs.influence_wording import (
    datum_titles,
    explanation,
    influence_of_words,
    joined_by,
    strongest_words,
    words_of,
)
from analysis.report.drawing import markup
from analysis.report.drawing.markup import element, fragment, section
from analysis.report.pages.influence.answers import Answer, AnswerSet, read_answers
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.website import ReportPage, command_note
from analysis.run.run import Run

KEY, TITLE = "influence.html", "Influence"


def influence_page(data: ReportData) -> ReportPage:
    """The chapter, or the command that computes an answer."""
    sets = list(read_answers(data.run))
    if not sets:
        command = f"ontogeny influence {data.run.uri} QUERY --name NAME"
        body = command_note("Not computed. Run:", command)
    else:
        body = fragment(introduction(), *(set_section(data.run, found) for found in sets))
    return ReportPage(KEY, TITLE, fragment(element("h1", TITLE), body), KEY)


def introduction() -> Markup:
    lead = (
        "Which training data made the model do this? For each query that was asked of the run, the "
        "datums that raised it most and those that lowered it most."
    )
    reading = (
        "Path influence says what a datum did as training happened; unrolled influence predicts "
        "what the query would be without it. Other methods score datums, and claim no causes. "
    )
    return fragment(
        markup.paragraph(lead, kind="lead"),
        markup.paragraph(
            reading,
            "Marks show ",
            element("mark", "the words"),
            " whose loss carried most of a datum's influence.",
            kind="soft",
        ),
    )


def set_section(run: Run, found: AnswerSet) -> Markup:
    """The answers of one set of tables."""
    heading = f"Answers named {found.name}" if found.name else "Answers without a name"
    answers = [answer_part(run, answer) for answer in found.answers]
    note = markup.paragraph(f"{found.more} more queries are in the tables.", kind="soft")
    return section(heading, *answers, note if found.more else None)


def answer_part(run: Run, answer: Answer) -> Markup:
    """One query: what was computed, how far it can be trusted, and the strongest datums."""
    lines = explanation(answer.query, answer.checks)
    sides = zip(datum_titles(answer.query), (answer.raised, answer.lowered), strict=True)
    return fragment(
        element("h3", answer.query["query"]),
        markup.paragraph(f"Method {answer.query['method']}. " + " ".join(lines)),
        *(datum_list(run, title, datums, answer.positions) for title, datums in sides),
    )


def datum_list(run: Run, title: str, datums: pd.DataFrame, positions: pd.DataFrame) -> Markup:
    items = [datum_item(run, row, positions) for row in rows_of(datums)]
    shown = element("ol", *items, class_="passages") if items else markup.paragraph("None.")
    return fragment(element("h4", title), shown)


def datum_item(run: Run, row: Any, positions: pd.DataFrame) -> Markup:
    """A datum with its influence, and its text or picture."""
    caption = f"datum {row.datum:,} · {markup.significant(row.influence)}"
    if not pd.isna(row.times):
        caption += f" · in {row.times} step{'' if row.times == 1 else 's'}"
    picture = None if run.has_numbered_datums else run.datum(row.datum).picture
    if picture is None:
        text = marked_words(run, row.datum, positions[positions["datum"] == row.datum])
    else:
        shown = Markup(picture.as_svg(f"datum {row.datum}"))
        text = element("blockquote", str(run.texts[row.datum]), shown)
    return element("li", element("div", caption, class_="caption"), text)


def marked_words(run: Run, datum: int, positions: pd.DataFrame) -> Markup:
    """The text of a datum, the words that carried its influence marked."""
    if run.has_numbered_datums:
        return element("blockquote", str(run.texts[datum]))
    words: list[object] = list(words_of(run, datum))
    for place in strongest_words(influence_of_words(len(words), positions)):
        words[place] = element("mark", words[place])
    return element("blockquote", fragment(*words, separator=joined_by(run)))
