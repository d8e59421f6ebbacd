"""Transitions of tables with planted answers, and of a run through the command line."""

import functools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_run import copied, tiny_run

import ontogeny
from analysis.jobs.loose_tables import read_loose_table, write_loose_tables
from analysis.jobs.question import Question
from analysis.jobs.tables import concat_frames, read_table
from analysis.run.run import open_run
from analysis.trajectory.tables import SCHEMAS as TRAJECTORIES
from analysis.transitions.config import TransitionsConfig
from analysis.transitions.page import transitions_page
from analysis.transitions.runs.compare import CompareConfig
from analysis.transitions.sentences import summarise
from analysis.transitions.sources import evaluated
from analysis.transitions.tables import SCHEMAS, Transitions
from analysis.transitions.transitions import (
    find_transitions,
    transition_window,
    transitions_of,
    transitions_question,
    write_transitions,
)
from capture.errors import ConfigError
from capture.store import Store
from cluster.cli import main
from cluster.local.threads import run_job
from cluster.terminal.dynamics.transitions import show_transitions

U = np.linspace(0, 8, 41)
FEW = TransitionsConfig(draws=99, states=3)


def rows(metric: str, value: np.ndarray, component: str = "") -> pd.DataFrame:
    own = {"step": np.round(np.expm1(U)), "metric": metric, "component": component, "n": 50}
    return pd.DataFrame(own | {"value": value, "standard_error": 0.01})


def frame(seed: int = 0) -> pd.DataFrame:
    """A head that jumps before accuracy does, a smooth loss and a constant."""
    rng = np.random.default_rng(seed)

    def noisy(value: np.ndarray) -> np.ndarray:
        return value + 0.005 * rng.standard_normal(len(U))

    return pd.concat(
        [
            rows("accuracy", noisy(1 / (1 + np.exp(-(U - 6.7) / 0.02)))),
            rows("induction", noisy(1 / (1 + np.exp(-(U - 5.1) / 0.02))), "L1H0"),
            rows("loss", noisy(3 * np.exp(-U / 4))),
            rows("constant", np.ones(len(U))),
            rows("short", np.ones(len(U))).head(5),
        ],
        ignore_index=True,
    )


@functools.cache
def found() -> Transitions:
    return transitions_of({f"runs/{seed}": frame(seed) for seed in range(3)}, FEW)


def test_planted_transitions_are_found_with_their_order_and_lead():
    verdicts = found().curves.groupby("metric", sort=False)["verdict"].unique().str.join(",")
    assert verdicts.to_dict() == {
        "accuracy": "sudden",
        "induction": "sudden",
        "loss": "gradual",
        "constant": "constant",
        "short": "too few points",
    }
    (lead,) = found().warnings.query("metric == 'induction'").to_dict("records")
    assert lead["earlier"]
    assert lead["lead_low"] < np.expm1(6.7) - np.expm1(5.1) < lead["lead_high"]
    chosen = found().order.query("metric == 'induction' and other_metric == 'accuracy'")
    (pair,) = chosen.to_dict("records")
    assert (pair["relation"], pair["runs"]) == ("before", 3)
    name, first, end = transition_window(found(), "runs/1", "")  # pyright: ignore
    assert name == "accuracy"
    assert first <= np.expm1(6.7) <= end
    assert set(found().states["run"]) == {"runs/0", "runs/1", "runs/2"}


def test_every_table_has_the_columns_of_its_schema():
    for name, schema in SCHEMAS.items():
        assert getattr(found(), name).columns.tolist() == schema.names, name


def test_the_text_states_each_claim_with_its_interval_and_null():
    text = "\n".join(summarise(found()))
    assert "induction of L1H0 (runs/0) changes suddenly" in text
    assert "random walks with p =" in text
    assert "95 % interval" in text
    assert "9 of 12 tested curves change: 6 sudden, 3 gradual." in text
    assert "3 of 15 curves have fewer than 8 points" in text
    assert "Measure more checkpoints for them: --steps of ontogeny trajectory." in text


def test_the_text_says_for_each_metric_when_it_changes_and_how():
    """Also of curves that are not sudden, and not of every head."""
    pairs = [rows("composition", np.exp(-U / (1 + n / 9)), f"L0H{n}") for n in range(26)]
    table = pd.concat([*pairs, frame()])
    answer = transitions_of({"r": table}, TransitionsConfig(draws=99, states=0))
    (line,) = (line for line in summarise(answer) if line.startswith("Steps of half the change"))
    loss = answer.curves.query("metric == 'loss'").iloc[0]
    told = f"loss {loss['half_step']:,.0f} ({loss['half_low']:,.0f} to {loss['half_high']:,.0f}, "
    assert f"{told}gradual)" in line
    assert line.count("composition of") == 1
    assert line.index("induction of L1H0") < line.index("accuracy")
    page = transitions_page(answer, Question("transitions", {}, {}), "r").decode()
    for title in ("accuracy", "induction L1H0", "loss"):
        assert re.search(f"{title}: (sudden|steep|gradual), half at step", page)


def test_a_curve_that_moves_by_rounding_alone_is_constant():
    value = -0.0013 + 6e-9 * (U > 4)
    answer = transitions_of({"r": rows("weight_mean", value).assign(standard_error=np.nan)}, FEW)
    assert answer.curves["verdict"].tolist() == ["constant"]
    assert "1 curve is constant up to rounding." in summarise(answer)


def test_a_curve_that_turns_back_is_said_to_do_so_in_text_and_page():
    value = ((U > 3) & (U < 6)) + 0.005 * np.random.default_rng(0).standard_normal(len(U))
    for ends_high in (False, True):
        end = ends_high * (U >= 6)
        answer = transitions_of({"r": rows("head", value + end)}, FEW)
        text = "\n".join(summarise(answer))
        assert "head changes suddenly" in text
        assert ("turns back" in text) != ends_high
        assert ("Half of the change is made" in text) == ends_high
        page = transitions_page(answer, Question("transitions", {}, {}), "r").decode()
        assert ("then turns back" in page) != ends_high


def test_a_steep_curve_that_fails_by_q_is_told_its_q():
    curves = found().curves
    own = curves["metric"] == "accuracy"
    steep = replace(
        found(), curves=curves.assign(q=0.07).assign(verdict=curves["verdict"].mask(own, "steep"))
    )
    text = "\n".join(summarise(steep))
    assert "accuracy (runs/0) is steep and not sudden by its q: p = 0.010, but q = 0.070" in text


def test_curves_of_single_units_are_tested_only_if_they_are_named():
    units = [rows("weight_norm", np.exp(-U / 4), name) for name in ("", "a.weight", "b.weight")]
    table = pd.concat([*units, rows("loss", np.exp(-U / 4))])
    config = TransitionsConfig(draws=99, states=0)
    answer = transitions_of({"r": table}, config)
    assert answer.curves["component"].tolist() == ["", ""]
    assert "2 curves of single units" in summarise(answer)[-1]
    named = transitions_of({"r": table}, replace(config, metrics="weight_norm"))
    assert named.curves["component"].tolist() == ["", "a.weight", "b.weight"]
    alone = transitions_of({"r": pd.concat(units[1:])}, config)
    assert alone.curves["component"].tolist() == ["a.weight", "b.weight"]


def test_it_is_said_which_curves_are_compared_and_shown():
    rng = np.random.default_rng(0)
    value = np.exp(-U / 4)
    many = [rows("loss", value + rng.normal(0, 0.005, len(U)), f"L{n}") for n in range(42)]
    answer = transitions_of({"r": pd.concat(many)}, TransitionsConfig(draws=99, states=0))
    assert "Compared are the 40 of 42 curves" in "\n".join(summarise(answer))
    console = Console(record=True, width=200)
    show_transitions(console, answer)
    assert "Curves that change (the clearest 30 of 42), earliest first" in console.export_text()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"metrics": ("nothing",)}, "has no 'nothing'. It has: accuracy, induction"),
        ({"target": "constant"}, "'constant' does not change beyond its noise"),
        ({"target": "short"}, "'short' has 2 points and is not tested, which needs 8"),
        ({"target": "nothing"}, "'nothing' is not among the curves"),
        ({"metrics": ("short",)}, "points at most, and a change point needs 8"),
    ],
)
def test_what_cannot_be_asked_is_one_line(settings: dict, problem: str):
    with pytest.raises(ConfigError) as refused:
        transitions_of({"runs/0": frame()}, TransitionsConfig(draws=99, states=0, **settings))
    assert problem in str(refused.value)


def test_constant_metrics_alone_are_said_to_be_constant():
    alone = transitions_of({"r": frame()}, TransitionsConfig(metrics=("constant",), draws=99))
    assert "0 of 1 curves change." in summarise(alone)
    assert not len(alone.states)


def test_one_metric_may_stand_without_a_list():
    assert TransitionsConfig(metrics="loss") == TransitionsConfig(metrics=("loss",))
    assert CompareConfig(metrics="loss") == CompareConfig(metrics=["loss"])


def test_a_table_of_curves_is_answered_as_a_run_is():
    config = TransitionsConfig(draws=99, states=0, metrics=("accuracy",))
    answer = ontogeny.transitions(frame(), config)
    assert answer.curves["verdict"].tolist() == ["sudden"]
    with pytest.raises(ConfigError, match="have no column standard_error"):
        ontogeny.transitions(frame().drop(columns="standard_error"))
    with pytest.raises(ConfigError, match="has no place"):
        ontogeny.transitions(frame(), save=True)


# --- a run ----------------------------------------------------------------------------------------


class EvaluatedTask:
    """A run of which only the evaluations are read."""

    def evaluations(self) -> pd.DataFrame:
        own = {"step": [0, 50], "split": "test", "tokens": 100, "loss": [4.0, 0.1]}
        return pd.DataFrame(own | {"accuracy": [0.2, 1.0]})


def test_accuracy_of_a_task_is_a_curve_with_a_binomial_error():
    table = evaluated(EvaluatedTask())  # pyright: ignore[reportArgumentType]
    assert table["metric"].tolist() == ["test accuracy"] * 2 + ["test loss"] * 2
    assert table["value"].tolist() == [0.2, 1.0, 4.0, 0.1]
    np.testing.assert_allclose(table["standard_error"], [0.04, 0, np.nan, np.nan])


def test_tables_are_written_and_read_again_and_the_record_is_asked():
    run = open_run(copied(tiny_run(), "memory://transitions").uri)
    config = TransitionsConfig(draws=99, states=2, around="gradient norm")
    try:
        answer = find_transitions([run], config, run_job)
    except ConfigError:  # no gradient norm that changes: ask about any curve
        config = TransitionsConfig(draws=99, states=2)
        answer = find_transitions([run], config, run_job)
    question = transitions_question(config, [run.uri])
    write_transitions(run, answer, question)
    for name, schema in SCHEMAS.items():
        stored = read_table(run, "transitions", name, schema)
        assert len(stored) == len(getattr(answer, name)), name
    page = run.tables.get("analysis/transitions/index.html").decode()
    assert "curves change" in page
    assert page.count("<svg") == min(24, answer.curves["half_step"].notna().sum()) + 1
    with pytest.raises(ConfigError, match="names a run twice"):
        find_transitions([run, run], config, run_job)


def test_the_command_prints_the_text_and_json(capsys: pytest.CaptureFixture[str]):
    uri = copied(tiny_run(), "memory://transitions-command").uri
    options = ["--draws", "99", "--states", "0"]
    assert main(["transitions", uri, *options]) == 0
    assert "curves change" in capsys.readouterr().out
    assert main(["transitions", uri, *options, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= set(SCHEMAS)
    assert main(["transitions", uri, "--name", "n", "--metrics", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "has no 'nothing'" in error
    assert error.count("\n") == 1


def test_a_trajectory_of_other_checkpoints_is_answered_where_it_lies(
    capsys: pytest.CaptureFixture[str],
):
    place = Store("memory://others-checkpoints")
    tables = {name: schema.empty_table().to_pandas() for name, schema in TRAJECTORIES.items()}
    curves = [frame().assign(null=np.nan)]
    tables["trajectory"] = concat_frames(curves, TRAJECTORIES["trajectory"])
    question = Question.of("trajectory")
    write_loose_tables(place, "trajectory", tables, TRAJECTORIES, question, {})
    options = ["--draws", "99", "--states", "0"]
    assert main(["transitions", place.uri, *options]) == 0
    assert "accuracy changes suddenly" in capsys.readouterr().out
    curves = read_loose_table(place, "transitions", "curves", SCHEMAS["curves"])
    assert curves["verdict"].tolist()[0] == "sudden"
    assert place.exists("analysis/transitions/index.html")
    assert main(["transitions", "memory://nothing-there", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
