"""A run that has lost its last marker, or was interrupted, is not read without a word."""

import pytest
from tiny import make_run, tiny_config
from tiny_run import copied, tiny_run

from analysis.run.run import open_run
from capture.errors import IncompleteRunWarning
from capture.format.chain import read_segments, require_start
from capture.format.extent import read_extent
from capture.format.markers import segment_key
from capture.store import Store, lease
from cluster.cli import main


@pytest.fixture
def store(tmp_path) -> Store:
    """Return a copy of a whole run of 24 steps whose last marker is lost."""
    found = copied(tiny_run(), f"{tmp_path}/run")
    found.delete(segment_key(3))
    return found


def test_the_extent_is_that_of_the_plan():
    store = Store(tiny_run())
    extent = read_extent(store, require_start(store))
    assert extent
    assert (extent.num_steps, extent.segment_steps, extent.window_steps) == (24, 7, 12)
    run = open_run(tiny_run())
    assert run.num_steps == extent.num_steps
    ends = [n for n, marker in enumerate(read_segments(store)) if marker.files_of("tallies")]
    assert [extent.segment_of_window(window) for window in range(2)] == ends


def test_a_whole_run_is_opened_without_a_warning():
    assert open_run(tiny_run()).steps_done == 24


def test_a_reader_is_warned_of_a_lost_last_marker(store):
    with pytest.warns(IncompleteRunWarning, match=r"shorter than it was: .*segment-000003\.json"):
        assert open_run(store.uri).steps_done == 21


def test_a_reader_is_warned_of_a_run_without_its_last_files(store):
    for key in ("steps/segment-000003.parquet", "outliers/segment-000003-w00.parquet"):
        store.delete(key)
    with pytest.warns(IncompleteRunWarning, match="holds 21 of 24 steps: capture was interrupted"):
        open_run(store.uri)


def test_a_reader_is_not_warned_while_a_capture_runs(store):
    with lease.hold_lease(store, lambda event: None):
        assert open_run(store.uri).steps_done == 21


@pytest.mark.parametrize("command", ["attribute --min-count 1", "info", "verify"])
def test_commands_say_that_the_run_is_shorter(store, command, capsys):
    name, *options = command.split()
    assert main([name, store.uri, *options]) == (3 if name == "verify" else 0)
    said = capsys.readouterr()
    text = said.out if name == "verify" else said.err
    assert "is shorter than it was: segments/segment-000003.json is missing" in text
    assert "Traceback" not in text


def test_verify_says_that_a_capture_runs(store, capsys):
    with lease.hold_lease(store, lambda event: None):
        assert main(["verify", store.uri]) == 0
    assert "A capture is running: process" in capsys.readouterr().out


def test_an_interrupted_run_is_intact_and_verify_says_how_much_it_holds(tmp_path, capsys):
    config = tiny_config(tmp_path)
    make_run(config)
    store = Store(config.run.uri)
    for file in read_segments(store)[-1].files:
        store.delete(file.key)
    store.delete(segment_key(3))
    assert main(["verify", config.run.uri]) == 0
    assert "The run holds 24 of 28 steps" in capsys.readouterr().out
