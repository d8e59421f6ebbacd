"""Law 4: a segment replayed from its checkpoint has the same bytes as if recorded in training."""

import dataclasses
import logging
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tiny import contents, make_run, tiny_config

from analysis.run.run import open_run
from analysis.run.tallies import read_tally, tally_units
from capture.engine import observer
from capture.errors import AuditError, ReplayError, RunError, ShardError
from capture.format import checkpoint
from capture.format.chain import read_segments
from capture.format.markers import segment_key
from capture.format.replay_markers import parse_replay_key, replay_key
from capture.maintenance.garbage import listed_keys
from capture.maintenance.verify import verify
from capture.replay import segments as replay
from capture.replay.segments import ReplayResult, read_replayable_run, replay_segment, replay_step
from capture.store import Store

ALL = ("outliers", "tallies", "factors")
WINDOWS = "capture.tally.window_steps=12"
"""The run has 28 steps in segments of 8; windows end in the second, third and fourth segment."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that recorded everything during training; tests must not change it."""
    folder = tmp_path_factory.mktemp("whole")
    make_run(tiny_config(folder, "capture.factors.enabled=true", WINDOWS))
    return folder / "run"


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A run of the same settings that stores checkpoints alone; tests must not change it."""
    folder = tmp_path_factory.mktemp("bare")
    make_run(tiny_config(folder, "capture.record=checkpoints", WINDOWS))
    return folder / "run"


@pytest.fixture
def run(bare, tmp_path) -> Store:
    """A copy of ``bare`` to which a test may add records."""
    shutil.copytree(bare, tmp_path / "run")
    return Store(str(tmp_path / "run"))


def without_steps(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out ``steps``, which have no audit error in a run of checkpoints alone."""
    return {key: data for key, data in files.items() if not key.startswith("steps/")}


def test_replayed_records_equal_recorded_ones_byte_for_byte(whole, run):
    replayable = read_replayable_run(run)
    for segment in (2, 0, 3, 1):
        found = replay_segment(replayable, segment, ALL)
        assert found.difference == 0.0
        assert 0 < found.audit_error < 1e-5
    assert without_steps(contents(run.uri)) == without_steps(contents(str(whole)))
    assert verify(run) == []
    late, early = open_run(run.uri), open_run(str(whole))
    assert late.shifts().equals(early.shifts())
    for unit in tally_units(early):
        assert np.array_equal(
            read_tally(late, unit).update_norm_VI, read_tally(early, unit).update_norm_VI
        )
    datum = early.steps()["datums"][20][1]
    found = late.gradient(20, datum, "layers.0.linear1.bias")
    assert np.array_equal(found, early.gradient(20, datum, "layers.0.linear1.bias"))


def test_existing_records_are_skipped(whole, run):
    replayable = read_replayable_run(run)
    assert replay_segment(replayable, 1, ["outliers"]).added == ("outliers",)
    before = {key: run.get(key) for key in run.keys()}
    assert replay_segment(replayable, 1, ["outliers"]) == ReplayResult(1, ())
    assert {key: run.get(key) for key in run.keys()} == before
    assert replay_segment(replayable, 1, ALL).added == ("tallies", "factors")
    assert replay_segment(replayable, 0, ["tallies"]) == ReplayResult(0, ()), "no window ends there"
    assert replay_segment(read_replayable_run(Store(str(whole))), 2, ALL) == ReplayResult(2, ())


def test_a_record_exists_exactly_when_its_marker_does(run, monkeypatch):
    """Laws 5 and 7: replay after an interruption between files and marker."""
    replayable = read_replayable_run(run)
    replay_segment(replayable, 0, ["outliers"])
    assert len(open_run(run.uri).shards("outliers")) == 1
    key = replay_key(0, "outliers")
    assert parse_replay_key(key) == (0, "outliers")
    run.delete(key)
    assert open_run(run.uri).shards("outliers") == []
    assert [f.state for f in verify(run)] == ["unlisted"]  # a replay may be running
    monkeypatch.setattr("capture.maintenance.verify.GRACE", timedelta(0))
    assert {f.state for f in verify(run)} == {"unlisted", "missing"}
    replay_segment(replayable, 0, ["outliers"])
    assert verify(run) == []
    assert {key, "outliers/segment-000000-w00.parquet"} <= listed_keys(run)[0]


def test_a_replayed_run_can_be_resumed_and_overwritten(bare, tmp_path):
    uri = f"run.uri={tmp_path / 'run'}"
    config = tiny_config(bare.parent, "capture.record=checkpoints", WINDOWS, uri)
    shutil.copytree(bare, tmp_path / "run")
    store = Store(config.run.uri)
    for file in read_segments(store)[3].files:
        store.delete(file.key)
    store.delete(segment_key(3))
    replay_segment(read_replayable_run(store), 2, ["factors"])
    make_run(config, resume=True)
    assert verify(store) == []
    assert [len(s.files_of("factors")) for s in open_run(store.uri).segments] == [0, 0, 1, 0]
    make_run(config, overwrite=True)
    assert not any(parse_replay_key(key) for key in store.keys())
    assert verify(store) == []


def test_a_segment_that_misses_its_checkpoint_adds_nothing(run, monkeypatch):
    monkeypatch.setattr(replay, "TOLERANCE", 1e-9)
    replayable = read_replayable_run(run)
    own = replayable.plan.config
    training = dataclasses.replace(own.training, learning_rate=own.training.learning_rate * 1.001)
    other = dataclasses.replace(own, training=training)
    replayable = dataclasses.replace(
        replayable, plan=dataclasses.replace(replayable.plan, config=other)
    )
    with pytest.raises(
        ReplayError, match=r"step-000016.*replayed weights differ by .* of it, allowed: 1e-09"
    ):
        replay_segment(replayable, 1, ["outliers"])
    assert not run.exists(replay_key(1, "outliers"))
    monkeypatch.setattr(replay, "TOLERANCE", 0.1)
    assert 1e-6 < replay_segment(replayable, 1, ["outliers"]).difference < 0.1


@pytest.mark.parametrize("lost", ["segment", "file"])
def test_a_run_that_changes_during_replay_gets_no_marker(run, monkeypatch, lost):
    original = replay.put_outliers

    def meddling(store, layout, segment, done):
        files = original(store, layout, segment, done)
        if lost == "file":
            store.delete(files[0].key)
        else:
            store.put(segment_key(0), store.get(segment_key(1)))
        return files

    monkeypatch.setattr(replay, "put_outliers", meddling)
    with pytest.raises(ShardError, match="while it" if lost == "segment" else "was removed while"):
        replay_segment(read_replayable_run(run), 0, ["outliers"])
    assert not run.exists(replay_key(0, "outliers"))


def test_a_marker_that_does_not_fit_its_segment_is_reported(run):
    replay_segment(read_replayable_run(run), 1, ["outliers"])
    run.put(replay_key(2, "outliers"), run.get(replay_key(1, "outliers")))
    run.put(replay_key(7, "outliers"), run.get(replay_key(1, "outliers")))
    with pytest.raises(ShardError, match=r"segment-000002-outliers\.json: has other steps"):
        open_run(run.uri)
    found = {f.key: f.detail for f in verify(run)}
    assert found[replay_key(2, "outliers")] == "has other steps than its segment"
    assert found[replay_key(7, "outliers")] == "belongs to a segment that does not exist"
    with pytest.raises(ShardError, match="has other steps"):
        listed_keys(run)


def test_a_damaged_checkpoint_is_refused(run):
    key = checkpoint.key_of(8)
    run.put(key, run.get(key)[:-1] + b"x")
    with pytest.raises(ShardError, match=r"step-000008\.safetensors: is not the file"):
        replay_segment(read_replayable_run(run), 1, ["outliers"])


def test_a_gradient_without_factors_is_replayed_with_a_warning(bare, whole, caplog):
    run, wanted = open_run(str(bare)), open_run(str(whole))
    datum, other = run.steps()["datums"][11][:2]
    unit = "layers.1.linear2.weight"
    with caplog.at_level(logging.WARNING):
        found = run.gradient(11, datum, unit)
        assert np.array_equal(run.shift(11, other, unit), wanted.shift(11, other, unit))
    assert np.array_equal(found, wanted.gradient(11, datum, unit))
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{run.uri}: step 11 has no factors recorded; replaying it"]
    with pytest.raises(RunError, match="no committed segment with step 99"):
        replay_step(read_replayable_run(run.store), 99)


def test_replayed_shifts_are_audited(run, monkeypatch):
    original = observer.sum_shifts
    monkeypatch.setattr(observer, "sum_shifts", lambda *given: original(*given) * 1.001)
    with pytest.raises(AuditError, match="shifts miss the applied change"):
        replay_segment(read_replayable_run(run), 0, ["factors"])
    assert not run.exists(replay_key(0, "factors"))
