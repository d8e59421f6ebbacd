"""The command ``lds``: its output, its errors, and retrainings in other processes."""

import argparse
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from tiny import contents, make_run, tiny_config

from capture.errors import CaptureError
from cluster.commands.influence import lds as command

SMOOTH = (
    *("training.optimizer.kind=adamw", "training.learning_rate=0.003", "training.clip=1"),
    *("model.dropout=0", "training.epochs=1"),
)
FAST = ("--methods", "gradient,bm25,random", "--keep", "0.8", "--subsets", "3")


def parsed(*arguments: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers())
    return top.parse_args(["lds", *arguments])


def printed(*arguments: str) -> str:
    console = Console(width=140, file=io.StringIO(), highlight=False)
    assert command.run(parsed(*arguments), console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = tiny_config(tmp_path_factory.mktemp("lds"), *SMOOTH)
    make_run(config)
    return config.run.uri


def test_the_command_prints_methods_with_intervals_beside_the_null(uri: str) -> None:
    asked = (uri, "datum:validation:0", "datum:validation:1", *FAST)
    out = printed(*asked, "--top", "0.1", "--controls", "1", "--removals", "3")
    for title in ("random subsets that keep 80%", "3 removals of one", "without the 10.0%"):
        assert title in out
    assert re.search(r"gradient +-?\d\.\d\d +\S+ to \S+ +2 +-?\d\.\d\d +-?\d\.\d\d", out)
    assert len(re.findall(r"^ *random +", out, re.MULTILINE)) == 4
    assert "q1: loss of validation datum 0" in out


@pytest.mark.slow
def test_retrainings_in_other_processes_are_the_same(uri: str) -> None:
    asked = (uri, "datum:validation:0", *FAST, "--replace", "--quiet")
    assert printed(*asked) == ""
    before = contents(uri)
    kept = [key for key in before if key.startswith("analysis/retrain") and "model" in key]
    for key in contents(uri):
        if key.startswith("analysis/retrain/"):
            Path(uri, key).unlink()
    for marker in Path(uri, "analysis/retrain").rglob("*.json"):
        marker.unlink()
    printed(*asked, "--workers", "2")
    after = contents(uri)
    made = [key for key in kept if key in after]
    assert len(made) == 3
    assert all(after[key] == before[key] for key in made)


def test_bad_input_is_one_line(uri: str) -> None:
    for arguments, text in (
        (("nonsense",), "query 'nonsense': has an unknown form"),
        (("loss", "--keep", "half"), "--keep: got 'half', must be numbers with commas"),
        (("loss", "--keep", "1.5"), "keep: got 1.5, must be above 0 and below 1"),
        (("loss", "--methods", "magic"), "methods: got 'magic', must be some of: unrolled"),
        (("loss", "--workers", "0"), "--workers: got 0, must be at least 1"),
        (("loss", "--subsets", "1"), "subsets: got 1, a correlation needs at least 3"),
    ):
        with pytest.raises(CaptureError) as caught:
            command.run(parsed(uri, *arguments), Console(file=io.StringIO()))
        assert text in str(caught.value)
        assert caught.value.exit_code == 2
