"""Selection of the datums that show a behaviour, and errors of the selection."""

import re
from typing import Any

import numpy as np
import pytest
from tiny_run import tiny_run

from analysis.behaviour.behaviour import (
    BehaviourConfig,
    analyse_behaviour,
)
from analysis.behaviour.predicates import Predicate, parse_datums, select_datums
from analysis.run.run import open_run
from capture.errors import ConfigError, RunError
from cluster.local.threads import run_job


@pytest.mark.parametrize(
    ("predicate", "shows"),
    [
        (Predicate(contains="w3"), lambda tokens, targets, text, n: "w3" in tokens),
        (Predicate(target="w3"), lambda tokens, targets, text, n: "w3" in targets),
        (
            Predicate(regex=r"w3 w\d\b"),
            lambda tokens, targets, text, n: re.search(r"w3 w\d\b", text),
        ),
        (Predicate(datums=(4, 2, 4)), lambda tokens, targets, text, n: n in (2, 4)),
    ],
)
def test_a_predicate_selects_the_datums_that_show_it(predicate: Predicate, shows: Any) -> None:
    run = open_run(tiny_run())
    names, texts = np.array(run.tokens), run.texts.to_pylist()
    wanted = [
        bool(shows(names[run.token_NT[n]], names[run.target_NT[n]], texts[n], n))
        for n in range(run.num_datums)
    ]
    assert 0 < sum(wanted) < run.num_datums
    assert select_datums(run, predicate).tolist() == wanted


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        (Predicate(contains="W33"), "token 'W33': is not in the vocabulary. Did you mean w3"),
        (Predicate(target="€"), "token '€': is not in the vocabulary. See the run's corpus/v"),
        (
            Predicate(regex="(w"),
            "behaviour.regex: '(w' is not a regular expression (missing ): (w).",
        ),
        (Predicate(datums=(3, 51)), "has no datum 51: its datums are 0 to 50."),
        (
            Predicate(datums=(7,)),
            "1 of 51 datums seen by training are among the 1 given, at least 2",
        ),
        (
            Predicate(regex="zebra"),
            "0 of 51 datums seen by training have text that matches 'zebra', at",
        ),
        (
            Predicate(regex="w"),
            "all but 0 of 51 datums seen by training have text that matches 'w', at",
        ),
        (
            Predicate(contains="w3"),
            "contain 'w3', at least 40 must not. Narrow it, or ask for fewer",
        ),
    ],
)
def test_selections_that_cannot_be_compared_raise(predicate: Predicate, text: str) -> None:
    run = open_run(tiny_run())
    config = BehaviourConfig(controls=40 if predicate.contains == "w3" else 2)
    with pytest.raises((RunError, ConfigError)) as caught:
        analyse_behaviour(run, run_job, predicate, config)
    assert text in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"contains": "a", "target": "b"}])
def test_a_behaviour_is_one_condition(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must be exactly one\. Give one of: contains, target"):
        Predicate(**values)


@pytest.mark.parametrize("name", ["max_datums", "controls", "resamples", "seed"])
def test_invalid_settings_raise(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^behaviour.{name}: got -1, must be at least"):
        BehaviourConfig(**{name: -1})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1,x", "'x' is not the id of a datum"),
        ("-1", "'-1' is not"),
        ("²", "'²' is not"),
        (" , ", "names no datum"),
    ],
)
def test_ids_are_whole_numbers(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^ids: {problem}"):
        parse_datums(text, "ids")


def test_ids_are_separated_by_commas_or_space() -> None:
    assert parse_datums("3, 1\n2,\t3\n", "ids") == (3, 1, 2, 3)
