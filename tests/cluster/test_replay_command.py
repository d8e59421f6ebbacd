"""``ontogeny replay``: several processes, output, interruption and wrong requests."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import contents, make_run, tiny_config

from capture.config.records import KINDS
from capture.errors import ConfigError, RunError
from capture.format.chain import read_segments
from capture.format.replay_markers import parse_replay_key, replay_key
from capture.maintenance.verify import verify
from capture.store import Store
from cluster.cli import main
from cluster.commands.replay import chosen_segments
from cluster.local import processes

BAD_INPUT = 2


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A run with checkpoints only. Tests must not change it."""
    folder = tmp_path_factory.mktemp("bare")
    make_run(tiny_config(folder, "capture.record=checkpoints"))
    return folder / "run"


@pytest.fixture
def uri(bare, tmp_path) -> str:
    shutil.copytree(bare, tmp_path / "run")
    return str(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(uri, bare, tmp_path, capsys):
    shutil.copytree(bare, tmp_path / "alone")
    kinds = "--record=outliers,factors,tallies"
    assert main(["replay", uri, kinds, "--workers=2"]) == 0
    said = capsys.readouterr().out
    assert "4 segments, 0 of them had all" in said
    assert "outliers added to 4 segments" in said
    assert "tallies added to 2 segments" in said
    assert "4 ended exactly where they did" in said
    assert "every step audited, largest relative error" in said
    assert main(["replay", str(tmp_path / "alone"), kinds, "--workers=1"]) == 0
    assert contents(uri) == contents(str(tmp_path / "alone"))
    assert verify(Store(uri)) == []
    assert multiprocessing.active_children() == []
    capsys.readouterr()  # drop the output of the other replay
    assert main(["replay", uri, kinds, "--workers=1"]) == 0
    assert "4 segments, 4 of them had all" in capsys.readouterr().out


def test_only_the_chosen_segments_are_replayed_and_precision_can_differ(uri, capsys):
    half = "capture.factors.precision=float16"
    asked = ["--segments=1,3", "--record=factors", "--workers=1", "--quiet"]
    assert main(["replay", uri, half, *asked]) == 0
    assert capsys.readouterr().out == ""
    store = Store(uri)
    there = [parse_replay_key(key) for key in store.keys() if parse_replay_key(key)]
    assert there == [(1, "factors"), (3, "factors")]
    assert main(["info", uri]) == 0
    assert "factors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--segments=4"], "--segments: got '4', the run has segments 0 to 3."),
        (["--segments=2-1"], "--segments: got '2-1', the run has segments 0 to 3."),
        (["--segments=a"], "--segments: got 'a'. Write numbers and ranges: 0-9,12."),
        (["--record=everything"], "--record: got 'everything', must be some of: outliers,"),
        (["--workers=-1"], "--workers: got -1, must be at least 1."),
        (["run.seed=1"], "run.seed: cannot differ from what the run was captured with."),
        (["capture.factors.precision=int8"], "must be one of float32, float16."),
        (["run.sed=1"], "run.sed: unknown key"),
    ],
)
def test_a_wrong_request_is_one_line_and_changes_nothing(uri, capsys, arguments, said):
    before = Store(uri).keys()
    assert main(["replay", uri, *arguments]) == BAD_INPUT
    found = capsys.readouterr().err
    assert said in found
    assert "Traceback" not in found
    assert Store(uri).keys() == before


def test_a_run_without_segments_is_refused(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "none")]) == BAD_INPUT
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(RunError, match="no committed segment yet"):
        chosen_segments(None, 0, "run")


def test_lists_of_segments_are_parsed():
    assert chosen_segments(None, 3, "run") == [0, 1, 2]
    assert chosen_segments("2, 0-1,1", 3, "run") == [0, 1, 2]
    with pytest.raises(ConfigError, match="--segments"):
        chosen_segments("", 3, "run")


@pytest.mark.slow
def test_an_error_in_a_process_is_one_line(uri, capsys):
    store = Store(uri)
    key = read_segments(store)[1].files_of("checkpoints")[0].key
    store.put(key, b"something else")
    assert main(["replay", uri, "--segments=1-2", "--workers=2"]) == 3
    said = capsys.readouterr().err
    assert f"{key}: is not the file that its marker names" in said
    assert "Traceback" not in said
    assert not any(store.exists(replay_key(1, kind)) for kind in KINDS)


def die(past, segment, kinds):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_ends_the_replay_with_one_line(uri, monkeypatch, capsys):
    monkeypatch.setattr(processes, "replay_segment", die)
    assert main(["replay", uri, "--workers=2"]) == BAD_INPUT
    assert "was killed, perhaps for lack of memory. Run the command" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_the_command_can_be_repeated(uri, tmp_path):
    command = [sys.executable, "-m", "cluster", "replay", uri, "--workers=2", "--record=factors"]
    folder = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list((Path(uri) / "factors").glob("*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode in (0, 130)
    assert "Traceback" not in said
    assert main(["replay", uri, "--record=factors", "--quiet"]) == 0
    assert verify(Store(uri)) == []
