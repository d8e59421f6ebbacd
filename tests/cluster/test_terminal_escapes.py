"""No control character of a run, a file name, a token or a lease reaches the terminal."""

import io
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from tiny import TEXT, make_run, tiny_config

from cluster.cli import main
from cluster.terminal.console import SafeConsole
from cluster.terminal.plain import print_error, printable

CLEAR, TITLE, CLIPBOARD = "\x1b[2J", "\x1b]0;owned\x07", "\x1b]52;c;ZWNobw==\x1b\\"
EIGHT_BITS = "\x9b2J\x9d0;owned\x9c"
HOSTILE = CLEAR + TITLE + CLIPBOARD + EIGHT_BITS + "\u202e\r\x08"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@given(st.text(st.characters(exclude_categories=())))
def test_every_control_character_is_escaped_and_nothing_else(text: str) -> None:
    shown = printable(text)
    assert not CONTROL.search(shown)
    assert printable(shown) == shown
    if not CONTROL.search(text) and text.isascii():
        assert shown == text


@pytest.mark.parametrize("where", ["line", "markup", "cell", "title", "header"])
def test_the_console_escapes_wherever_text_stands(where: str) -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, width=300)
    table = Table(HOSTILE if where == "header" else "name")
    table.add_row(HOSTILE if where == "cell" else "x")
    table.title = HOSTILE if where == "title" else "t"
    match where:
        case "line":
            console.print(HOSTILE, markup=False)
        case "markup":
            console.print(f"[bold]{HOSTILE}[/]")
        case _:
            console.print(table)
    assert not CONTROL.search(file.getvalue())
    assert "\\x1b[2J" in file.getvalue()


def test_tables_keep_their_shape_around_escapes() -> None:
    file = io.StringIO()
    table = Table("a", "b")
    table.add_row("\x1b\x1b\x1b", "x")
    SafeConsole(file=file, width=80).print(table)
    assert len({len(line) for line in file.getvalue().splitlines()}) == 1


def test_an_error_line_is_escaped(capsys) -> None:
    print_error(f"ontogeny: {HOSTILE}")
    error = capsys.readouterr().err
    assert not CONTROL.search(error)
    assert "\\x1b[2J\\x1b]0;owned\\x07" in error


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory) -> Path:
    """A run whose text, provenance, file names and lease hold escape sequences."""
    folder = tmp_path_factory.mktemp("hostile")
    config = tiny_config(folder)
    text = Path(str(config.corpus.path))
    text.write_text(TEXT.replace(" cat ", f" {CLEAR}cat{TITLE} "))
    make_run(config)
    run = folder / "run"
    (run / "steps" / f"{CLEAR}x.parquet").write_text("x")
    return run


def shown(arguments: list[str], capsys) -> str:
    main(arguments)
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_file_names_are_escaped(hostile_run: Path, command: str, capsys) -> None:
    text = shown([command, str(hostile_run)], capsys)
    assert not CONTROL.search(text)
    assert "\\x1b[2Jx.parquet" in text.replace("\n", "")


def test_tokens_are_escaped(hostile_run: Path, capsys) -> None:
    text = shown(["attribute", str(hostile_run), "--rows", "1000"], capsys)
    assert not CONTROL.search(text)
    assert "\\x1b[2jcat" in text  # words are lower case


def test_a_token_of_the_command_line_is_escaped(hostile_run: Path, capsys) -> None:
    assert not CONTROL.search(shown(["attribute", str(hostile_run), "--token", HOSTILE], capsys))


def test_provenance_is_escaped(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: HOSTILE)
    make_run(tiny_config(tmp_path))
    run = tmp_path / "run"
    assert HOSTILE in yaml.safe_load((run / "run.yaml").read_text())["device"]
    text = shown(["info", str(run)], capsys)
    assert not CONTROL.search(text)
    assert "\\x1b[2J" in text


def test_the_host_of_a_lease_is_escaped(hostile_run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(
        "capture.store.lease.running_capture", lambda store: f"process 7 on {HOSTILE}"
    )
    text = shown(["verify", str(hostile_run)], capsys)
    assert "A capture is running: process 7 on \\x1b[2J" in text
    assert not CONTROL.search(text)
