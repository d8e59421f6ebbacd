"""Runs on a store with stale listings: new keys are not listed, deleted keys still are.

This is the worst case of eventual consistency, without a time limit. Reads by name are up to date,
as on every store that we know of.
"""

from pathlib import Path

import pytest
from tiny import contents, make_run, tiny_config

from analysis.run.run import open_run
from capture.format.chain import read_segments
from capture.format.markers import segment_key
from capture.maintenance.verify import verify
from capture.store import Store


@pytest.fixture
def lagging(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make every listing of a prefix return what its first listing returned."""
    known: dict[tuple[str, str], list[str]] = {}
    listed = Store.keys

    def keys(store: Store, prefix: str = "") -> list[str]:
        if (store.uri, prefix) not in known:
            known[store.uri, prefix] = listed(store, prefix)
        return list(known[store.uri, prefix])

    monkeypatch.setattr(Store, "keys", keys)
    return monkeypatch


def remove_segment(uri: str, segment: int) -> None:
    """Delete the last segment, as if the capture had been killed while writing it."""
    store = Store(uri)
    files = read_segments(store)[segment].files
    store.delete(segment_key(segment))
    for file in files:
        store.delete(file.key)


def test_capture_and_resume_need_no_listing(lagging, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    Store(config.run.uri).keys()
    make_run(config)
    remove_segment(config.run.uri, 3)
    make_run(config, resume=True)
    run = open_run(config.run.uri)
    shifts, steps = run.shifts(), run.steps()
    assert verify(run.store) == []
    lagging.undo()
    make_run(tiny_config(tmp_path, name="whole"))
    assert contents(config.run.uri) == contents(str(tmp_path / "whole"))
    whole = open_run(str(tmp_path / "whole"))
    assert shifts.equals(whole.shifts())
    assert steps.equals(whole.steps())
    assert verify(run.store) == []


def test_verify_finds_damage_in_unlisted_files(lagging, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    Store(config.run.uri).keys()
    make_run(config)
    (tmp_path / "run" / "outliers" / "segment-000002-w00.parquet").write_bytes(b"damaged")
    found = verify(Store(config.run.uri))
    assert [(f.key, f.state) for f in found] == [("outliers/segment-000002-w00.parquet", "damaged")]


def test_files_of_a_replaced_run_are_not_taken_for_the_new_one(lagging, tmp_path) -> None:
    """The old markers are at first missing in the listing, later deleted but still listed."""
    long, short = tiny_config(tmp_path), tiny_config(tmp_path, "training.epochs=1")
    Store(long.run.uri).keys()
    make_run(long)
    make_run(short, overwrite=True)
    assert open_run(short.run.uri).steps_done == 14
    lagging.undo()
    assert len(read_segments(Store(short.run.uri))) == 2


def test_a_deleted_marker_that_is_still_listed_is_gone(lagging, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    make_run(config)
    lagging.undo()
    store = Store(config.run.uri)
    stale = store.keys("segments")
    remove_segment(config.run.uri, 3)
    lagging.setattr(Store, "keys", lambda store, prefix="": stale)
    assert [marker.end_step for marker in read_segments(store)] == [8, 16, 24]
