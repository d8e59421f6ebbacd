"""``ontogeny trajectory`` on a run: its tables, its page, JSON, and one line for each mistake."""

import json
from pathlib import Path

import pytest
from tiny_run import copied, tiny_run

from cluster.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of a small run on disk."""
    return copied(tiny_run(), str(tmp_path_factory.mktemp("run"))).uri


def test_the_command_prints_curves_and_writes_a_page_that_verify_knows(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trajectory", place, "--metrics", "loss", "induction", "--steps", "0,3,7"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "loss: 2.68 to" in said
    assert "induction L" in said
    page = Path(place) / "analysis" / "trajectory" / "index.html"
    assert "<svg" in page.read_text()
    assert main(["verify", place]) == 0
    page.write_text("changed")
    capsys.readouterr()
    assert main(["verify", place]) == 3
    assert "analysis/trajectory/index.html" in capsys.readouterr().out


def test_json_holds_the_three_tables(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trajectory", place, "--name", "two", "--metrics", "loss", "--checkpoints", "2"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in found["trajectory"]] == [0, 24]
    assert found["metrics"][0]["metric"] == "loss"
    assert found["checkpoints"][1] == {"step": 24, "source": "checkpoint"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "lss"], "--metrics: got 'lss', which is no metric. Did you mean loss?"),
        (["--steps", "0,25"], "--steps: got 25, but the last checkpoint is at 24"),
        (["--steps", "24"], "a trajectory needs 2 checkpoints, found 1"),
        (["--checkpoints", "1"], "--checkpoints: got 1, must be at least 2"),
        (["--text", "a.txt"], "--text: is given, but "),
        (["--shots", "2"], "--shots: is given without --concept"),
        (["--concept", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(
    place: str, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["trajectory", place, "--name", "wrong", *options]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (Path(place) / "analysis" / "trajectory" / "wrong").exists()
