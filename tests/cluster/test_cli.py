"""The command line: what users see, what scripts can rely on."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tiny import contents, make_run, tiny_config

from capture.engine.evaluation import Evaluation
from capture.store.lease import TakenOver
from capture.training.loop import Progress
from capture.training.write_queue import WriteDelay
from cluster.cli import main, parse_arguments
from cluster.terminal.progress import Lines, capture_report, clock, short

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    make_run(tiny_config(folder))
    return folder / "run"


def tiny_overrides(folder: Path) -> list[str]:
    config = tiny_config(folder)
    return [
        f"run.uri={config.run.uri}",
        "corpus.kind=text",
        f"corpus.path={config.corpus.path}",
        "corpus.window=8",
        "corpus.validation_share=0.05",
        "model.layers=2",
        "model.width=12",
        "model.hidden=10",
        "model.heads=3",
        "training.epochs=2",
        "training.batch=4",
        "training.device=cpu",
        "capture.segment_steps=8",
        "capture.outliers.k=30",
    ]


def test_capture_prints_plain_lines_and_a_summary_when_not_in_a_terminal(tmp_path, run, capsys):
    assert main(["capture", "demo", *tiny_overrides(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"step 28/28  epoch 2/2  loss \d\.\d\d  \S+ rows/s  \S+ kB  ETA 0:00:00", out)
    assert re.search(r"epoch 1: validation loss \d\.\d{3}, perplexity \d+\.\d", out)
    assert "28 of 28 steps" in out
    assert re.search(r"3,360 outliers in \S+ kB \(\d+\.\d bytes a row\)", out)
    assert re.search(r"largest relative error \d\.\de-\d\d", out)
    assert f"ontogeny attribute {tmp_path}/run" in out.replace("\n", "")
    assert contents(str(tmp_path / "run")) == contents(str(run))


def test_quiet_prints_nothing(tmp_path, capsys):
    assert main(["capture", "demo", *tiny_overrides(tmp_path), "--quiet"]) == 0
    assert main(["verify", str(tmp_path / "run"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["capture", "nosuch"],
            "nosuch: no such file. Give a YAML file or one of: demo, digits, gpt2-tiny, ",
        ),
        (["capture", "demo", "modle.layers=2"], "modle.layers: unknown key; allowed here: run,"),
        (["info", "nowhere"], "nowhere: holds no run. Make one with: ontogeny capture CONFIG"),
        (["verify", "nowhere"], "nowhere: holds no run."),
        (["attribute", "nowhere"], "nowhere: holds no run."),
        (["ablate", "nowhere"], "nowhere: holds no run."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, text, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"ontogeny: {text}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "line",
    [
        "capture demo training.epochs=1 --resume run.seed=4",
        "capture --resume demo training.epochs=1 run.seed=4",
        "capture demo --resume training.epochs=1 run.seed=4",
    ],
)
def test_settings_may_stand_before_and_behind_options(line):
    arguments = parse_arguments(line.split())
    assert arguments is not None
    assert (arguments.config, arguments.resume) == ("demo", True)
    assert sorted(arguments.overrides) == ["run.seed=4", "training.epochs=1"]


@pytest.mark.parametrize(
    "line", ["capture demo --resume more", "capture demo --seed=4", "info a b=1"]
)
def test_an_unknown_word_is_not_taken_for_a_setting(line, capsys):
    assert main(line.split()) == 2
    assert "unrecognized arguments: " + line.split()[-1] in capsys.readouterr().err


def test_an_existing_run_is_refused_and_named(run, tmp_path, capsys):
    overrides = [*tiny_overrides(tmp_path), f"run.uri={run}"]
    assert main(["capture", "demo", *overrides]) == 2
    assert "holds a run already. Add --resume to go on with it or --overwrite" in (
        capsys.readouterr().err
    )


def test_help_shows_examples_and_explains_options(capsys):
    for arguments in ([], ["capture"], ["attribute"], ["ablate"], ["verify"], ["demo"], ["info"]):
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--help"])
        assert left.value.code == 0
    out = capsys.readouterr().out
    assert "ontogeny demo" in out
    assert "pandas.read_parquet" in out
    assert "highest relative frequency" in out


def test_info_shows_settings_progress_sizes_and_loss(run, capsys):
    assert main(["info", str(run)]) == 0
    out = capsys.readouterr().out
    for text in (
        "28 of 28 steps, 4 segments (complete)",
        "2 layers, width 12",
        "outliers",
        "3,360",
    ):
        assert text in out
    assert re.search(r"1 +\d\.\d{3} +\d\.\d{3}", out)
    assert re.search(r"waiting +\d+\.\d s for the store, at most \d+\.\d kB pending", out)


def test_verify_exits_with_3_for_a_damaged_shard(run, tmp_path, capsys):
    assert main(["verify", str(run)]) == 0
    assert "Intact: " in capsys.readouterr().out
    make_run(tiny_config(tmp_path))
    shard = tmp_path / "run/outliers/segment-000001-w00.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert main(["verify", str(tmp_path / "run")]) == 3
    assert "outliers/segment-000001-w00.parquet" in capsys.readouterr().out.replace("\n", "")


def test_a_failed_audit_exits_with_3(tmp_path, capsys):
    overrides = [*tiny_overrides(tmp_path), "capture.audit_tolerance=1e-12"]
    overrides += ["model.dropout=0", "training.learning_rate=1e6", "training.clip=1e6"]
    assert main(["capture", "demo", *overrides, "--quiet"]) == 3
    assert "ontogeny: step 0: " in capsys.readouterr().err


def test_stopping_says_how_to_continue(tmp_path, monkeypatch, capsys):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("capture.training.loop.capture_run", stopped)
    assert main(["capture", "demo", f"run.uri={tmp_path}/run", "--quiet"]) == 130
    error = capsys.readouterr().err.replace("\n", " ")
    assert f"ontogeny capture demo run.uri={tmp_path}/run --resume" in error


def test_the_module_and_the_command_are_the_same():
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith("ontogeny ")


def read_terminal(terminal: int) -> str:
    """Read all output of a pseudo-terminal whose other end is closed, and close this end."""
    pieces = []
    with contextlib.suppress(OSError):  # raised at the end of the output
        while piece := os.read(terminal, 100_000):
            pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


def test_a_terminal_sees_a_bar_and_a_pipe_sees_lines():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        console = Console(file=terminal, width=110, force_terminal=True, highlight=False)
        with capture_report(console, quiet=False) as report:
            report(standing(5))
            report(Evaluation(5, 0, "validation", 6.0, 403.4, 100))
            report(standing(10))
    seen = read_terminal(master)
    assert "10/10" in seen
    assert "epoch 1: validation loss 6.000, perplexity 403.4" in seen
    text = io.StringIO()
    with capture_report(Console(file=text, width=110), quiet=False) as report:
        report(standing(5))
        report(standing(6))
        report(standing(10))
    assert [line[:10] for line in text.getvalue().splitlines()] == ["step 5/10 ", "step 10/10"]


def standing(steps_done: int) -> Progress:
    return Progress(steps_done, 10, 0, 2, 6.5, steps_done * 20_000, 12_000_000)


def test_lines_show_rate_and_time_left(monkeypatch):
    clock_now = [100.0]
    monkeypatch.setattr("cluster.terminal.progress.time.monotonic", lambda: clock_now[0])
    text = io.StringIO()
    lines = Lines(Console(file=text, width=110))
    lines(standing(2))
    clock_now[0] = 120.0
    lines(standing(6))
    assert text.getvalue().splitlines()[1] == (
        "step 6/10  epoch 1/2  loss 6.50  4.0k rows/s  12.0 MB  ETA 0:00:20"
    )


def test_an_unavailable_store_is_reported_every_few_seconds(monkeypatch):
    clock_now = [100.0]
    monkeypatch.setattr("cluster.terminal.progress.time.monotonic", lambda: clock_now[0])
    text = io.StringIO()
    lines = Lines(Console(file=text, width=110))
    for seconds in range(25):
        clock_now[0] = 100.0 + seconds
        lines(WriteDelay("s3://b/run/x: [503] Slow Down", seconds, 600.0))
    lines(WriteDelay("120 MB wait to be written", 26, None))
    clock_now[0] = 200.0
    lines(WriteDelay("120 MB wait to be written", 100, None))
    lines(TakenOver("process 7 on host, since noon", "it has died"))
    away = "the store has been unavailable for {} s, retrying for up to 600 s: "
    assert text.getvalue().splitlines() == [
        *(f"{away.format(n)}s3://b/run/x: [503] Slow Down" for n in (0, 10, 20)),
        "training waits for the store, 100 s so far: 120 MB wait to be written",
        "took the lease over from process 7 on host, since noon: it has died",
    ]


def test_numbers_and_times_are_abbreviated():
    assert [short(n) for n in (7, 999, 1234, 12_345_678)] == ["7", "999", "1.2k", "12.3M"]
    assert [clock(s) for s in (5, 65, 3700)] == ["0:00:05", "0:01:05", "1:01:40"]
