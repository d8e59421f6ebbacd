"""Ctrl-C and SIGTERM stop a capture in order and say how to continue; a second signal kills it."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import contents, make_run, tiny_config

from capture.format.chain import read_segments
from capture.maintenance.verify import verify
from capture.store import Store
from cluster.cli import main
from cluster.local.signals import Stopped, exit_code, stoppable

ROOT = Path(__file__).parents[2]
SETTINGS = [
    *("corpus.kind=text", "corpus.window=8", "corpus.validation_share=0.05"),
    *("model.layers=2", "model.width=12", "model.hidden=10", "model.heads=3"),
    *("training.batch=4", "training.device=cpu", "training.epochs=15"),
    *("capture.segment_steps=8", "capture.outliers.k=30", "capture.tally.enabled=false"),
]
LONG = ("training.epochs=15", "capture.tally.enabled=false")


def command(folder: Path) -> list[str]:
    tiny_config(folder)
    settings = [f"run.uri={folder}/run", f"corpus.path={folder}/text.txt", *SETTINGS]
    return [sys.executable, "-m", "cluster", "capture", "demo", *settings]


def started(folder: Path) -> "subprocess.Popen[str]":
    """Start a capture; return once it has committed a segment and is far from its end."""
    process = subprocess.Popen(
        command(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    while not (folder / "run" / "segments" / "segment-000001.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT]
)
def test_a_signal_stops_a_capture_which_can_be_resumed(tmp_path: Path, number: int) -> None:
    process = started(tmp_path)
    began = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert time.monotonic() - began < 30
    assert "Stopped. Committed segments are safe; continue with: " in error
    assert "Traceback" not in error
    words_to_continue = re.search(r"capture demo .* --resume$", error.strip())
    assert words_to_continue is not None
    store = Store(str(tmp_path / "run"))
    assert not store.exists("lease.json")
    assert verify(store) == []
    committed = len(read_segments(store))
    assert 2 <= committed < 27
    words = shlex.split(words_to_continue[0])
    assert words[-1] == "--resume"
    assert f"run.uri={tmp_path}/run" in words
    if number == signal.SIGTERM:
        assert main([*words, "--quiet"]) == 0
        make_run(tiny_config(tmp_path, *LONG, name="whole"))
        assert contents(str(tmp_path / "run")) == contents(str(tmp_path / "whole"))


def test_the_first_signal_raises_and_the_second_kills() -> None:
    code = (
        "import os, signal\n"
        "from cluster.local.signals import stoppable\n"
        "with stoppable():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n"
        "        print('once', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('twice', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "once\n")


@pytest.mark.parametrize(
    ("words", "where", "said"),
    [
        (["runs", "."], "cluster.commands.listings.runs.run_folders", "Run the command again."),
        (["verify", "run"], "capture.store.Store", "Run the command again."),
        (
            ["replay", "run", "--record", "factors"],
            "capture.store.Store",
            "Committed segments are safe; run the command again.",
        ),
    ],
)
def test_only_commands_that_store_segments_call_them_safe(
    words: list[str],
    where: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stopped)
    assert main(words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"Stopped. {said}"


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert exit_code(stopped.value) == 143
    assert exit_code(KeyboardInterrupt()) == 130
