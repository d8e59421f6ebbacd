"""The command ``bigrams``: its output and its errors."""

import re

import pytest
from tiny_run import copied, make_run, tiny_run

from analysis.run.run import open_run
from capture.store import Store
from cluster.cli import main
from cluster.options.ranges import parse_steps
from cluster.terminal.bigram_tables import excerpt


@pytest.fixture
def uri() -> str:
    return copied(tiny_run(), "memory://bigrams-command/run").uri


def test_shifts_of_the_whole_run_with_their_datums(uri: str, capsys) -> None:
    assert main(["bigrams", uri, "--top", "3", "--datums", "2"]) == 0
    out = capsys.readouterr().out
    assert "Largest shifts of bigram logits" in out
    rows = re.findall(
        r"^ +0–23 +(\S+) +(\S+) +([+-]\d+\.\d{3}) +[+-]\d+% +\d+: ", out, re.MULTILINE
    )
    assert len(rows) == 3
    sizes = [abs(float(shift)) for _, _, shift in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert len(re.findall(r"^ +[+-]\d+% +\d+: ", out, re.MULTILINE)) == 3
    assert re.search(
        r"the shares of all datums add up to 100 % \(to within \de-\d\d of a logit\)", out
    )
    assert sorted(Store(uri).keys("analysis/bigrams")) == [
        "analysis/bigrams/bigrams.parquet",
        "analysis/bigrams/datums.parquet",
        "analysis/bigrams/tables.json",
    ]


def test_with_each_step_the_largest_are_printed(uri: str, capsys) -> None:
    given = ["--steps", "6:9", "--each-step", "--top", "2", "--datums", "1"]
    assert main(["bigrams", uri, *given]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^ +[678] +\S+ +\S+ +[+-]\d+\.\d{3} ", out, re.MULTILINE)) == 2
    assert "The 2 largest of 6 are shown." in out


def test_without_datums_there_are_no_shares(uri: str, capsys) -> None:
    assert main(["bigrams", uri, "--token", "w3", "--datums", "0"]) == 0
    out = capsys.readouterr().out
    assert out.count(" w3 ") >= 20
    assert "shares" not in out
    assert "%" not in out


def test_the_contribution_of_momentum_is_printed_as_carry(capsys) -> None:
    settings = ("training.optimizer.momentum=0.9", "training.epochs=1", "training.learning_rate=1")
    uri = make_run("memory://bigrams-command/momentum", *settings)
    assert main(["bigrams", uri, "--steps", "8", "--datums", "1", "--top", "3"]) == 0
    out = capsys.readouterr().out
    carried = r"^ +[+-]\d+% +carry: momentum and weight decay, no datum of the step"
    assert len(re.findall(carried, out, re.MULTILINE)) == 3
    assert "the shares of all datums and the carry add up to 100 %" in out


def test_quiet_prints_nothing(uri: str, capsys) -> None:
    assert main(["bigrams", uri, "--steps", "2", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(":", (0, None)), ("3:9", (3, 9)), ("3:", (3, None)), (":9", (0, 9)), ("7", (7, 8))],
)
def test_parse_steps(text: str, wanted: tuple[int, int | None]) -> None:
    assert parse_steps(text) == wanted


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("--steps x", "--steps: got 'x', must be like 0:100, 100: or 7."),
        ("--steps 1:2:3", "--steps: got '1:2:3', must be like"),
        ("--steps=-1:2", "--steps: got '-1:2', must be like"),
        ("--steps 9:99", "run: has steps 0:24, which do not contain 9:99. Give steps FIRST:END"),
        ("--steps 24", "run: has steps 0:24, which do not contain 24:25."),
        ("--token w33", "token 'w33': is not in the vocabulary. Did you mean w3."),
        ("--top 0", "bigrams.top: got 0, must be at least 1."),
        ("--datums -1", "bigrams.datums: got -1, must be at least 0."),
    ],
)
def test_bad_arguments_end_in_one_line(given: str, text: str, uri: str, capsys) -> None:
    assert main(["bigrams", uri, *given.split(" ")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert Store(uri).keys("analysis") == []


def test_an_excerpt_shows_the_bigram_or_else_one_of_its_tokens(uri: str) -> None:
    run = open_run(uri)
    token_T, target_T = run.token_NT[0], run.target_NT[0]
    words = [run.tokens[t] for t in (*token_T, target_T[-1])]
    at_end = excerpt(run, 0, int(token_T[-1]), int(target_T[-1]))
    assert at_end == "… " + " ".join(words[3:])
    absent = next(v for v in range(run.num_tokens) if v not in token_T and v not in target_T)
    assert excerpt(run, 0, absent, absent) == " ".join(words[:6]) + " …"
    assert excerpt(run, 0, int(token_T[-1]), absent) == "… " + " ".join(words[3:])
