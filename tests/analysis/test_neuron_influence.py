"""What a neuron would be without some data: tables of the run, on its page and in Python."""

import json
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from report_pages import build, contents
from report_run import NEURONS, report_run

from analysis.influence.judge.tables import SCHEMAS as JUDGED
from analysis.influence.tables import SCHEMAS as INFLUENCE
from analysis.jobs.neuron_influence import DATUMS, JUDGEMENTS, QUERIES, neuron_influences
from analysis.jobs.tables import read_table, write_tables
from analysis.report.pages.website import neuron_key
from analysis.run.run import Run, open_run
from ontogeny.neuron import DATUMS as OWN_DATUMS
from ontogeny.neuron import TOKENS, WINDOWS, Neuron

(UNIT, NUMBER), OTHER = NEURONS[2], NEURONS[3]
QUERY = f"neuron {UNIT}:{NUMBER}"
VALUES = {QUERY: 0.25, "neuron b": 0.5, "neuron c": 0.75}


@pytest.fixture(scope="module")
def run() -> Run:
    """A run in which one neuron has tables of influence, and a retraining that judged it."""
    found = report_run("memory://neuron-influence", "attribute")
    add_influence(found)
    add_judgements(found)
    return open_run(found.uri)


def add_influence(run: Run) -> None:
    asked = {"kind": "effect", "level": "neuron", "unit": UNIT, "number": NUMBER, "token": "w1"}
    queries = [
        {"query": QUERY, "method": "unrolled", "description": json.dumps(asked)}
        | {"end_step": run.steps_done, "reliable_from": 2, "departure": 1.4},
        {"query": "held-out loss", "method": "unrolled", "description": '{"kind": "split"}'}
        | {"end_step": run.steps_done, "reliable_from": 0, "departure": 0.2},
    ]
    datums = [
        {"query": row["query"], "datum": datum, "influence": (datum % 5 - 2) / 100}
        for row in queries
        for datum in range(run.num_datums)
    ]
    frames = {"queries": queries, "datums": datums}
    write(run, "influence/effect", INFLUENCE, frames)


def add_judgements(run: Run) -> None:
    rows = [
        {"test": "removal", "setting": 0.05, "method": method, "query": query}
        | {"value": value if method == "unrolled" else 0.9, "retrainings": count}
        for method, count in (("unrolled", 1), ("random", 3), ("bm25", 1))
        for query, value in VALUES.items()
    ]
    write(run, "lds/neurons", JUDGED, {"judgements": rows})


def write(run: Run, job: str, schemas: dict, rows: dict[str, list[dict]]) -> None:
    frames = {
        name: pd.DataFrame(rows.get(name, []), columns=schema.names)
        for name, schema in schemas.items()
    }
    write_tables(run, job, frames, schemas)


def test_the_columns_that_are_read_are_columns_of_the_tables():
    for mine, theirs in (
        (QUERIES, INFLUENCE["queries"]),
        (DATUMS, INFLUENCE["datums"]),
        (JUDGEMENTS, JUDGED["judgements"]),
    ):
        for field in mine:
            assert field.equals(theirs.field(field.name))


def test_the_datums_of_a_set_are_read_once(run: Run):
    asked: list[str] = []

    def watched(run: Run, job: str, name: str, *given: object):
        asked.append(f"{job}/{name}")
        return read_table(run, job, name, *given)  # pyright: ignore[reportArgumentType]

    with mock.patch("analysis.jobs.neuron_influence.read_table", watched):
        neuron_influences(run)
    assert asked.count("influence/effect/datums") == 1


def test_only_neurons_are_read_and_the_strongest_datums_come_first(run: Run):
    found = neuron_influences(run)
    assert list(found) == [(UNIT, NUMBER)]
    (own,) = found[UNIT, NUMBER]
    assert own.datums["influence"].is_monotonic_decreasing
    assert own.datums["datum"].iloc[0] == 4
    assert own.left is not None
    assert (own.left.share, own.left.left, own.left.random_sets) == (0.05, 0.25, 3)
    assert own.left.random == pytest.approx(0.9)
    assert own.left.mean == pytest.approx(np.mean(list(VALUES.values())))
    assert own.left.low < own.left.mean < own.left.high


def test_the_page_shows_datums_and_what_retraining_left(run: Run):
    build(run)
    files = contents(f"{run.uri}/report")
    page = files[neuron_key((UNIT, NUMBER))].decode()
    for text in (
        "What it would be without some data",
        "Only steps 2 to",
        "NOT CONFIRMED: training was repeated without random datums",
        "datum 4 · influence 0.02",
        "0.25 of the effect is left",
        "Without as many random datums: 0.90 (mean of 3 sets)",
        "Mean over the 3 queries",
    ):
        assert text in page
    other = files[neuron_key(OTHER)].decode()
    assert f"ontogeny influence {run.uri} neuron:{OTHER[0]}:{OTHER[1]}" in other


def bare_neuron(run: Run, unit: str, number: int) -> Neuron:
    """A neuron without evidence of its own."""
    tokens, windows, datums = (
        pd.DataFrame(columns=columns) for columns in (TOKENS, WINDOWS, OWN_DATUMS)
    )
    return Neuron(run, unit, number, tokens, windows, datums)


def test_a_neuron_in_python_says_the_same(run: Run):
    neuron = bare_neuron(run, UNIT, NUMBER)
    assert neuron.without["datum"].iloc[0] == 4
    assert neuron.without["text"].iloc[0] == str(run.texts[4])
    assert neuron.effect_left["left"].tolist() == [0.25]
    assert "0.25 of" in repr(neuron)
    assert neuron.without["departure"].iloc[0] == 1.4
    assert f"NOT CONFIRMED by retraining: {QUERY} (departure 1.40)" in repr(neuron)
    other = bare_neuron(run, *OTHER)
    assert other.without.empty
    assert other.effect_left.empty
    assert "without" not in other.summary()
