"""A segment with more files than its marker can list is refused before anything is written."""

import pytest
from tiny import make_run, tiny_config

from capture.errors import CaptureError, ConfigError, StoreError
from capture.format import factor_parts, markers
from capture.format.chain import read_segments
from capture.format.markers import START, File, Marker, max_files, write_marker
from capture.maintenance.verify import verify
from capture.replay.segments import read_replayable_run, replay_segment
from capture.store import Store


def file(number: int) -> File:
    name = f"factors/segment-{number:06d}-w00-{number:06d}-{number:05d}.parquet"
    return File(name, "factors", 256, 24 * 2**20, "a" * 64, "b" * 64)


def test_readers_accept_a_marker_with_as_many_files_as_are_allowed():
    store = Store("memory://many-files")
    assert max_files() > 10_000
    write_marker(store, START, Marker(0, 0, tuple(map(file, range(max_files())))))
    assert len(markers.read_marker(store, START).files) == max_files()


def test_a_marker_that_readers_would_refuse_is_not_written():
    store = Store("memory://too-many-files")
    with pytest.raises(StoreError, match="more than fit into 4,194,304 bytes"):
        write_marker(store, START, Marker(0, 0, tuple(map(file, range(2 * max_files())))))
    assert store.keys() == []


@pytest.fixture
def small_markers(monkeypatch):
    """Lower the limit of readers, so that a segment of 8 steps with 4 datums has too many files."""
    monkeypatch.setattr(markers, "MAX_BYTES", 16 * 2**10)
    monkeypatch.setattr(factor_parts, "PART_ROWS", 1)
    monkeypatch.setattr(factor_parts, "OTHER_FILES", 20)


def test_capture_refuses_too_many_files_before_it_writes_any(small_markers, tmp_path):
    factors = "capture.factors.enabled=true"
    config = tiny_config(tmp_path, factors)
    with pytest.raises(
        ConfigError, match=r"^capture\.segment_steps: a segment would have 32 tab"
    ) as e:
        make_run(config)
    store = Store(config.run.uri)
    assert store.keys("factors") == []
    assert verify(store) == []
    steps = e.value.remedy.split()[3]
    make_run(tiny_config(tmp_path, factors, f"capture.segment_steps={steps}"), overwrite=True)
    assert read_segments(store)[-1].end_step == 28
    assert verify(store) == []


def test_replay_refuses_too_many_files_before_it_writes_any(small_markers, tmp_path):
    config = tiny_config(tmp_path)
    make_run(config)
    store = Store(config.run.uri)
    with pytest.raises(CaptureError, match="a segment would have 32 tables of factors"):
        replay_segment(read_replayable_run(store), 0, ["factors"])
    assert store.keys("factors") == []
