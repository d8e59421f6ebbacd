"""The report's chapter on influence shows every stored answer, with the words that carried it."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from report_pages import Reader, build, contents
from report_run import report_run
from tiny_run import copied, tiny_run

import ontogeny
from analysis.influence.tables import SCHEMAS, Influence
from analysis.jobs.influence_wording import REPLAYED, explanation, strongest_words
from analysis.jobs.question import Question
from analysis.jobs.tables import write_tables
from analysis.report.pages.influence.answers import read_answers
from analysis.run.run import Run, open_run

URI = "memory://report-influence"
ASKED = ("datum:validation:0", "token:w3")


@pytest.fixture(scope="module")
def run() -> Run:
    return report_run(URI, "attribute")


@pytest.fixture(scope="module")
def answer(run: Run) -> Influence:
    """Return an answer by path influence; the run also holds scores by shared words."""
    words = ontogeny.InfluenceConfig(method="bm25")
    ontogeny.influence(run, ASKED, words, save=True, name="words")
    return ontogeny.influence(run, ASKED, ontogeny.InfluenceConfig(method="path"), save=True)


@pytest.fixture(scope="module")
def text(run: Run, answer: Influence) -> str:
    build(run, max_neurons=1)
    return contents(f"{URI}/report")["influence.html"].decode()


def test_each_answer_has_its_datums_and_says_what_it_means(answer: Influence, text: str):
    page = Reader(text)
    assert "Answers without a name" in page.text
    assert "Answers named words" in page.text
    assert page.text.count("Books: complete") == 2
    assert page.text.count("no claim about causes") == 2
    for query in answer.queries["query"]:
        assert page.text.count(query) >= 2
        for raised in (True, False):
            for datum in answer.strongest(query, 5, raised=raised)["datum"]:
                assert f"datum {datum:,} ·" in page.text


def test_the_words_that_carried_the_influence_are_marked(run: Run, answer: Influence, text: str):
    query = answer.queries["query"][0]
    first = answer.strongest(query, 1, raised=True)["datum"].item()
    own = answer.positions.query("query == @query and datum == @first").sort_values("position")
    marked = strongest_words(np.append(0, own["influence"]))
    words = [run.tokens[run.token_NT[first][0]], *(run.tokens[t] for t in run.target_NT[first])]
    wanted = " ".join(f"<mark>{w}</mark>" if t in marked else w for t, w in enumerate(words))
    assert marked
    assert wanted in re.sub(r"\s+", " ", text)


def test_tables_of_another_version_are_left_out():
    run = open_run(copied(tiny_run(), "memory://report-influence-old").uri)
    found = ontogeny.influence(run, ASKED[:1], ontogeny.InfluenceConfig(method="bm25"))
    frames: dict[str, pd.DataFrame] = {name: getattr(found, name) for name in SCHEMAS}
    write_tables(run, "influence", frames, SCHEMAS, Question.of("influence"))
    assert len(list(read_answers(run))) == 1
    old = SCHEMAS | {"datums": SCHEMAS["datums"].remove(SCHEMAS["datums"].get_field_index("times"))}
    frames["datums"] = frames["datums"].drop(columns="times")
    write_tables(run, "influence", frames, old, Question.of("influence"))
    assert list(read_answers(run)) == []


@pytest.mark.parametrize("method", ["path", "unrolled"])
def test_tables_from_before_newer_columns_are_shown(method: str):
    """Earlier tables lack ``from_factors``, ``computed_from`` and the first step of checks."""
    run = open_run(copied(tiny_run(), f"memory://report-influence-before-{method}").uri)
    how = ontogeny.InfluenceConfig(method=method, checks=0)
    found = ontogeny.influence(run, ASKED[:1], how)
    frames: dict[str, pd.DataFrame] = {name: getattr(found, name) for name in SCHEMAS}
    check = {"query": found.queries["query"][0], "retraining": "a", "left_out": 2, "first_step": 0}
    frames["checks"] = pd.DataFrame([check | {"predicted": 0.1, "change": 0.2}])
    write_tables(run, "influence", frames, SCHEMAS)
    (now,) = read_answers(run)
    old = dict(SCHEMAS)
    for table, newer in (
        ("queries", ("from_factors", "computed_from")),
        ("checks", ("first_step",)),
    ):
        old[table] = pa.schema([own for own in SCHEMAS[table] if own.name not in newer])
        frames[table] = frames[table].drop(columns=list(newer))
    write_tables(run, "influence", frames, old)
    (before,) = read_answers(run)
    lines, same = (
        explanation(own.answers[0].query, own.answers[0].checks) for own in (before, now)
    )
    assert [line.replace(f" {REPLAYED}", "") for line in same] == lines
    pd.testing.assert_frame_equal(before.answers[0].raised, now.answers[0].raised)


def test_without_answers_the_page_has_the_command():
    run = report_run("memory://report-no-influence", "attribute")
    build(run, max_neurons=1)
    page = Reader(contents(f"{run.uri}/report")["influence.html"].decode())
    assert f"ontogeny influence {run.uri} QUERY" in page.text
