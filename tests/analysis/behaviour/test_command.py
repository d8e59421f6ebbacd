"""The command ``behaviour``: its output and its errors."""

import argparse
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from tiny import contents
from tiny_run import copied, tiny_run

from analysis.behaviour.behaviour import (
    JOB,
    TABLES,
)
from analysis.jobs.tables import read_table
from analysis.run.run import open_run
from capture.errors import CaptureError
from cluster.commands import behaviour as command


def parsed(*arguments: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers())
    return top.parse_args(["behaviour", *arguments])


def printed(*arguments: str) -> str:
    console = Console(width=140, file=io.StringIO(), highlight=False)
    assert command.run(parsed(*arguments), console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def uri() -> str:
    return copied(tiny_run(), "memory://behaviour-command").uri


def test_the_command_prints_the_comparison(uri: str) -> None:
    out = printed(uri, "--target", "w3", "--controls", "2", "--measure", "target")
    assert re.search(r"datums that have the target 'w3': \d+\. Compared: \d+ with \d+ contr", out)
    assert re.search(r"in standard deviations: visits [+-]\d\.\d\d, mean_log_count", out)
    for title in ("Moved more, by unit", "by attention head: ", "by neuron: "):
        assert title in out
    assert re.search(r"layers\.1\.self_attn +\d +\S+ +\S+ +\d+\.\d\d +\S+ to \S+ +\S+", out)
    table = read_table(open_run(uri), JOB, "heads", TABLES["heads"])
    assert set(table["measure"]) == {"rows", "shift", "target"}


def test_quiet_prints_nothing(uri: str) -> None:
    assert printed(uri, "--contains", "w3", "--controls", "2", "--quiet", "--name", "w3") == ""


def test_datum_ids_can_be_read_from_a_file(uri: str, tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("3\n4\n9\n")
    options = [uri, "--replace", "--datums"]
    assert "datums that are among the 3 given: 3." in printed(*options, str(file))
    assert "datums that are among the 2 given: 2." in printed(*options, "3,4")


def test_bad_input_leaves_earlier_tables_unchanged(uri: str, tmp_path: Path) -> None:
    printed(uri, "--contains", "w3", "--controls", "2", "--quiet", "--replace")
    binary = tmp_path / "ids.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    before = contents(uri)
    for arguments, text in (
        (("--contains", "nosuch"), "token 'nosuch': is not in the vocabulary."),
        (("--regex", "*"), "behaviour.regex: '*' is not a regular expression"),
        (("--datums", "3,x"), "--datums: 'x' is not the id of a datum. Give ids"),
        (("--datums", str(binary)), "is not a text file. Give a file of ids."),
        (("--contains", "w3", "--most", "1"), "behaviour.max_datums: got 1, must be at least 2."),
        (("--contains", "w3", "--measure", "target"), "--measure: target is measured for --target"),
    ):
        with pytest.raises(CaptureError) as caught:
            command.run(parsed(uri, "--replace", *arguments), Console(file=io.StringIO()))
        assert text in str(caught.value)
        assert caught.value.exit_code == 2
    assert contents(uri) == before


@pytest.mark.parametrize("arguments", [(), ("--contains", "a", "--target", "b")])
def test_exactly_one_condition_is_required(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parsed("run", *arguments)
    assert left.value.code == 2
    assert "--contains" in capsys.readouterr().err
