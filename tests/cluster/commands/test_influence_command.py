"""``ontogeny influence``: what it prints and writes, and one-line errors."""

import json
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny_run import copied, make_run

from analysis.influence.config import METHODS
from analysis.jobs.influence_wording import check_lines
from analysis.run.run import open_run
from capture.store import Store
from cluster.cli import main
from cluster.options.choices import JUDGE_METHODS
from cluster.terminal.influence.influence import marked_text, show_windows, strongest_words

RUN = "memory://influence-command"
SHORT = ("training.epochs=1", "training.batch=8", "capture.segment_steps=3")
COMPLETION = ("--prompt", "w1 w3", "--completion", "w4")


@pytest.fixture(scope="module")
def run() -> str:
    return make_run(RUN, *SHORT)


def test_help_lists_the_methods():
    assert JUDGE_METHODS == METHODS


def test_no_numbers_are_shown_beyond_the_horizon(capsys: pytest.CaptureFixture[str]):
    """The horizon lies within the second window, of which only the steps behind it count."""
    windows = pd.DataFrame({"first_step": [0, 10, 20], "end_step": [10, 20, 30], "decay": 0.0})
    steps = pd.DataFrame({"step": range(5, 30), "raised": 1e16, "lowered": -0.5, "decay": 0.0})
    steps["reliable"] = steps["step"] >= 17
    steps.loc[steps["reliable"], "raised"] = 1.5
    show_windows(Console(width=80), windows, steps)
    *beyond, cut, whole = capsys.readouterr().out.splitlines()[-5:-1]
    assert [line.split() for line in beyond] == [
        ["0–9", "beyond", "the", "horizon"],
        ["10–16", "beyond", "the", "horizon"],
    ]
    assert cut.split() == ["17–19", "+4.5", "-1.5"]
    assert whole.split() == ["20–29", "+15", "-5"]


def test_path_says_that_its_books_close(run: str, capsys: pytest.CaptureFixture[str]):
    words = ["influence", run, "datum:validation:0", "--method", "path", "--rows", "2", "--units"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Books: complete" in out
    assert "Datums that lowered it most (helpful)" in out
    assert "Through which captured units" in out
    assert "[w" in out  # marked words
    assert Store(run).exists("analysis/influence/tables.json")
    assert not Store(run).keys("analysis/influence/unfinished")


def test_unrolled_says_how_far_back_it_reaches(run: str, capsys: pytest.CaptureFixture[str]):
    assert main(["influence", run, *COMPLETION, "--rival", "w5", "--name", "fact"]) == 0
    out = capsys.readouterr().out
    assert "w1 w3 → w4 rather than w5" in out
    assert "Horizon: going back 6 steps" in out
    assert "All steps are within the horizon" in out
    assert "Check: retraining without 5 random datums changed it by" in out


def test_an_answer_that_retraining_does_not_confirm_says_so(
    run: str, capsys: pytest.CaptureFixture[str]
):
    with mock.patch("analysis.influence.confirmation.departure", return_value=2.6):
        assert main(["influence", run, "loss", "--checks", "1", "--name", "refuted"]) == 0
    out = capsys.readouterr().out
    assert "Off by 260% of the change." in out
    assert "NOT CONFIRMED" in out
    assert main(["influence", run, "loss", "--checks", "0", "--name", "unchecked"]) == 0
    assert "the horizon alone proves nothing. Use --checks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"), [(0.0, "did not change it at all; predicted +1e-09."), (np.nan, "diverged")]
)
def test_a_check_without_a_finite_departure_is_said_in_words(change: float, said: str):
    checks = pd.DataFrame({"first_step": [0], "left_out": [5], "predicted": [1e-9]})
    lines = check_lines(checks.assign(change=change), departure=np.inf)
    assert said in lines[0]
    assert "inf" not in lines[0]
    assert lines[1].startswith("NOT CONFIRMED")


def test_beyond_the_horizon_nothing_is_shown(run: str, capsys: pytest.CaptureFixture[str]):
    with (
        mock.patch("analysis.influence.sums.LIMIT", 1e-9),
        mock.patch("capture.unrolled.horizon.LIMIT", 1e-9),
    ):
        assert main(["influence", run, "loss", "--name", "chaotic"]) == 0
    out = capsys.readouterr().out
    assert "No step is within the horizon: training is chaotic" in out
    assert out.count("  none") == 2


def test_a_baseline_does_not_say_that_datums_moved_the_query(
    run: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["influence", run, "loss", "--method", "bm25", "--name", "scored"]) == 0
    out = capsys.readouterr().out
    assert "no claim about causes" in out
    assert "Datums with the highest scores:" in out
    assert "Datums with the lowest scores:" in out
    assert not {"raised", "lowered", "helpful", "harmful"} & set(out.replace("(", " ").split())


def test_json_holds_every_table(run: str, capsys: pytest.CaptureFixture[str]):
    words = ["influence", run, "loss", "--method", "bm25", "--name", "words", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"queries", "datums", "positions", "windows", "units", "steps"}
    assert len(found["datums"]) == open_run(run).num_datums


def test_a_method_that_takes_no_steps_does_not_go_back_through_them(
    run: str, capsys: pytest.CaptureFixture[str]
):
    words = ["influence", run, "loss", "--name", "progress", "--replace", "--method"]
    with mock.patch("cluster.terminal.progress.SECONDS_BETWEEN_LINES", 0):
        assert main([*words, "bm25"]) == 0
        assert "scoring datums by bm25: 100% of 1 pass\n" in capsys.readouterr().out
        assert main([*words, "path"]) == 0
        assert "going back through training: 100% of 6 steps\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "QUERY: is missing"),
        (["--prompt", "w1"], "--completion: is missing"),
        (["token:w77"], "is not in the vocabulary"),
        (["loss", "--steps", "4:99"], "Its steps are 0 to 5"),
        (["loss", "--memory", "0"], "--memory: got 0.0"),
        (["loss", "--memory", "1e-9"], "max_bytes"),
        (["loss", "--method", "unroled"], "Did you mean unrolled"),
        (["loss", "--units"], "is for method path"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], wanted: str, run: str, capsys: pytest.CaptureFixture[str]
):
    place = copied(run, "memory://influence-command-bad")
    assert main(["influence", place.uri, *words, "--name", "bad"]) == 2
    err = capsys.readouterr().err
    assert wanted in err
    assert len(err.strip().splitlines()) == 1


def test_words_that_carry_half_of_the_influence_are_marked(run: str):
    assert strongest_words(np.array([0.0, 1, 5, -3, 2])) == {2}
    assert strongest_words(np.array([0.0, -1, -1, 3, -2])) == {4}
    assert strongest_words(np.array([0.0, -2, -1, 3, -2])) == {1, 4}
    assert strongest_words(np.zeros(4)) == set()
    opened = open_run(run)
    positions = pd.DataFrame({"position": [0, 1], "influence": [0.0, 2.0]})
    words = [opened.tokens[token] for token in opened.target_NT[3]]
    assert f"{words[0]} [{words[1]}] {words[2]}" in marked_text(opened, 3, positions).plain
