"""``verify`` and ``gc`` beside a capture, a replay or an analysis that writes to the run."""

import functools
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from damage import damaged, intact
from tiny import contents, make_run, tiny_config
from tiny_run import copied, tiny_run
from tiny_run import make_run as tiny_run_with

from capture.errors import RunError
from capture.format import window_markers
from capture.format.markers import Marker, read_marker, segment_key, segment_of, write_marker
from capture.format.replay_markers import replay_key
from capture.maintenance import garbage, verify
from capture.maintenance.garbage import remove_garbage
from capture.replay import segments
from capture.replay.segments import read_replayable_run, replay_segment
from capture.store import Store, lease

NOW = timedelta(0)
TABLE = "analysis/attribute/numbers.parquet"


def bad(store: Store) -> dict[str, str]:
    findings = verify.verify(store)
    return {finding.key: finding.state for finding in findings if finding.state != "unlisted"}


def between(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, act: Callable[[], object]
) -> None:
    """Let ``act`` happen once, right after the first call of a function."""
    before, calls = getattr(module, name), []

    def then_act(*args: object, **options: object) -> object:
        found = before(*args, **options)
        if not calls:
            calls.append(name)
            act()
        return found

    monkeypatch.setattr(module, name, then_act)


# --- gc -------------------------------------------------------------------------------------------


def test_a_capture_that_resumes_while_gc_removes_loses_nothing(tmp_path, monkeypatch):
    """It writes the same keys again, and would commit files that gc found old enough to remove."""
    config = tiny_config(tmp_path)
    make_run(config)
    whole = contents(config.run.uri)
    for number in (2, 3):
        (tmp_path / "run" / segment_key(number)).unlink()
    hour_ago = time.time() - 3600
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (hour_ago, hour_ago))
    refused = []

    def resume() -> None:
        try:
            make_run(config, resume=True)
        except RunError as error:
            refused.append(error.problem)

    between(monkeypatch, garbage, "find_garbage", resume)
    assert remove_garbage(Store(config.run.uri))
    assert refused[0].startswith("is being cleaned (ontogeny gc) by process")
    make_run(config, resume=True)
    assert verify.verify(Store(config.run.uri)) == []
    assert contents(config.run.uri) == whole


def test_gc_stops_if_its_lease_is_lost(monkeypatch):
    store = copied(tiny_run(), "memory://gc-lease")
    store.put("outliers/segment-000009-w00.parquet", b"left")
    between(monkeypatch, garbage, "find_garbage", lambda: store.delete(lease.KEY))
    with pytest.raises(RunError, match="is gone"):
        remove_garbage(store, NOW)
    assert store.exists("outliers/segment-000009-w00.parquet")


def test_a_file_that_was_written_again_is_kept(tmp_path, monkeypatch):
    store = copied(tiny_run(), f"{tmp_path}/run")
    path = tmp_path / "run/analysis/attribute/older.parquet"
    store.put("analysis/attribute/older.parquet", b"old")
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    between(monkeypatch, garbage, "find_garbage", lambda: os.utime(path))
    found = remove_garbage(store)
    assert [(each.kept, each.reason) for each in found] == [(True, "too young")]
    assert path.exists()


def test_a_file_that_a_marker_lists_by_now_is_kept(monkeypatch):
    marker = "analysis/attribute/tables.json"
    with damaged({}, {marker}) as store:
        between(monkeypatch, garbage, "find_garbage", lambda: store.put(marker, intact()[marker]))
        found = remove_garbage(store, NOW)
        assert [(each.key, each.reason) for each in found] == [(TABLE, "a marker names it by now")]
        assert store.exists(TABLE)


def test_a_record_that_is_committed_meanwhile_is_kept(monkeypatch):
    store = replayed("memory://gc-replay", "outliers")
    key = replay_key(0, "outliers")
    marker, shard = store.get(key), store.keys("outliers")[0]
    store.delete(key)
    # As if the record had not been complete when gc looked.
    monkeypatch.setattr(garbage, "lost_records", lambda *args: [])
    between(monkeypatch, garbage, "find_garbage", lambda: store.put(key, marker))
    found = remove_garbage(store, NOW)
    assert [(each.key, each.reason) for each in found] == [(shard, "a marker names it by now")]
    assert bad(store) == {}


# --- verify ---------------------------------------------------------------------------------------


def test_the_open_segment_of_a_running_capture_is_not_missing():
    last = segment_key(3)
    gone = {last, "analysis/attribute/tables.json", TABLE}
    with damaged({}, gone) as store, lease.hold_lease(store, lambda event: None):
        found = verify.verify(store)
        assert {finding.state for finding in found} == {"unlisted"}
        assert {finding.detail for finding in found} == {"no marker lists it; a capture is running"}


def test_verify_beside_a_capture_finds_no_damage(tmp_path):
    config = tiny_config(tmp_path, "training.epochs=6", "capture.segment_steps=2")
    thread = threading.Thread(target=make_run, args=[config])
    thread.start()
    found, times = {}, 0
    while thread.is_alive():
        try:
            found |= bad(Store(config.run.uri))
            times += 1
        except RunError:
            continue  # the run has not begun
    thread.join()
    assert found == {}
    assert times > 3


def test_a_window_marker_that_is_replaced_between_two_reads_is_not_damaged(monkeypatch):
    """A fast capture replaces it with each segment, so a second look can meet a newer one, too."""
    hidden = [segment_key(2), segment_key(3)]
    gone = {*hidden, "analysis/attribute/tables.json", TABLE}
    with (
        damaged({window_markers.KEY: b""}, gone) as store,
        lease.hold_lease(store, lambda event: None),
    ):

        def store_window(segment: int) -> None:
            own = read_marker(store, segment_key(segment))
            write_marker(store, window_markers.KEY, Marker(0, own.end_step, ()), after=own)

        def commit_then_return(found: object) -> object:
            if hidden:
                key = hidden.pop(0)
                store.put(key, intact()[key])
                store_window(segment_of(key) or 0)
            return found

        store_window(1)
        read_chain = verify.read_chain
        monkeypatch.setattr(verify, "read_chain", lambda *a: commit_then_return(read_chain(*a)))
        assert bad(store) == {}


def test_a_table_that_is_replaced_while_it_is_verified_is_not_damaged(monkeypatch):
    key = "analysis/attribute/tables.json"
    with damaged({TABLE: b"another table"}) as store:

        def replace() -> None:
            store.put(TABLE, intact()[TABLE])
            store.put(key, intact()[key])

        between(monkeypatch, verify, "survey", replace)
        assert verify.verify(store) == []


def test_damage_stays_damage_while_a_capture_runs():
    key = "outliers/segment-000001-w00.parquet"
    with damaged({key: b""}) as store, lease.hold_lease(store, lambda event: None):
        assert bad(store) == {key: "damaged"}


def test_tables_of_a_longer_run_tell_that_markers_were_lost():
    last = json.loads(intact()[segment_key(3)])
    with damaged({}, {segment_key(3), *(file["key"] for file in last["files"])}) as store:
        (finding,) = [found for found in verify.verify(store) if found.state == "damaged"]
    assert finding.key == "analysis/attribute/tables.json"
    assert finding.detail.startswith("was made from 24 steps, but markers are left of 21")


@pytest.mark.parametrize("data", [b"{}", b"", b"no lease"])
def test_a_lease_that_capture_refuses_is_found(data):
    with damaged({lease.KEY: data}) as store:
        assert bad(store) == {lease.KEY: "damaged"}


# --- a lost marker --------------------------------------------------------------------------------


def replayed(uri: str, kind: str, *, numbers: range = range(1)) -> Store:
    """Return a copy of a run without a record, which a replay has added to some segments."""
    store = copied(without(kind), uri)
    run = read_replayable_run(store)
    for segment in numbers:
        replay_segment(run, segment, [kind])  # pyright: ignore[reportArgumentType]
    return store


@functools.cache
def without(kind: str) -> str:
    """Return the URI of a run that does not record this kind. Tests must not change it."""
    settings = {
        "factors": [],
        "outliers": ["capture.record=checkpoints"],
        "tallies": ["capture.tally.enabled=false"],
    }
    return tiny_run_with(f"memory://without-{kind}", *settings[kind])


@pytest.mark.parametrize("kind", ["factors", "outliers", "tallies"])
def test_a_record_whose_marker_a_running_replay_has_yet_to_write_is_not_damaged(kind, monkeypatch):
    found: list[dict[str, str]] = []
    details: set[str] = set()

    def look(store: Store, *arguments: object) -> None:
        found.append(bad(store))
        details.update(finding.detail for finding in verify.verify(store))
        write_replay(store, *arguments)

    write_replay: Callable[..., None] = segments.write_replay
    monkeypatch.setattr(segments, "write_replay", look)
    store = replayed(f"memory://half-way-{kind}", kind, numbers=range(2))
    assert found
    assert set(map(str, found)) == {"{}"}
    assert all(detail.startswith("no marker lists it yet; a replay may be") for detail in details)
    assert bad(store) == {}


@pytest.mark.parametrize("kind", ["factors", "outliers", "tallies"])
def test_a_lost_marker_of_a_replayed_record_is_missing_and_gc_keeps_the_record(kind, monkeypatch):
    monkeypatch.setattr(verify, "GRACE", NOW)
    store = replayed(f"memory://lost-{kind}", kind, numbers=range(2))
    key = replay_key(1, kind)
    whole = {each: store.get(each) for each in store.keys()}
    assert bad(store) == {}
    store.delete(key)
    assert bad(store) == {key: "missing"}
    found = remove_garbage(store, NOW)
    assert found
    assert all(key in each.reason for each in found)
    assert {each: store.get(each) for each in store.keys()} == {
        each: data for each, data in whole.items() if each != key
    }
    replay_segment(read_replayable_run(store), 1, [kind])
    assert bad(store) == {}


def test_what_an_interrupted_replay_left_is_unlisted_and_can_be_removed(monkeypatch):
    monkeypatch.setattr("capture.format.factor_parts.PART_ROWS", 4)
    store = replayed("memory://half-replay", "factors")
    files = store.keys("factors")
    assert len(files) > 2
    for key in (replay_key(0, "factors"), files[-1]):
        store.delete(key)
    assert bad(store) == {}
    assert all(not each.kept for each in remove_garbage(store, NOW))
    assert store.keys("factors") == []


def test_the_lost_last_marker_of_a_run_with_checkpoints_only_is_missing():
    store = Store(tiny_run_with("memory://checkpoints", "capture.record=checkpoints"))
    store.delete(segment_key(3))
    assert bad(store) == {segment_key(3): "missing"}
