"""The lease: a second capture is refused, a dead one is replaced, an overwritten one stops."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tiny import contents, make_run, tiny_config

from capture.errors import RunError, StoreError
from capture.format.chain import read_segments
from capture.maintenance.verify import verify
from capture.store import Store, lease
from capture.store.lease import KEY, Lease, TakenOver, hold_lease, new_lease, stale_lease
from capture.training.loop import Progress, capture_run


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)


@pytest.fixture(params=["memory", "folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "s3":
        yield Store(request.getfixturevalue("s3"))
    elif request.param == "folder":
        yield Store(str(tmp_path / "run"))
    else:
        store = Store(f"memory://{tmp_path.name}")
        yield store
        store.delete(KEY)


def unexpected(event: TakenOver) -> None:
    pytest.fail(f"took over from {event.holder}")


def put(store: Store, **changes: Any) -> Lease:
    """Put a lease with these fields changed, as another capture would."""
    found = replace(new_lease(), **changes)
    store.put(KEY, lease.encode(found))
    return found


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_lease_exists_within_the_block_only(store: Store) -> None:
    with hold_lease(store, unexpected) as held:
        held.require()
        assert store.keys() == [KEY]
        values = json.loads(store.get(KEY))
        assert values["pid"] == os.getpid()
        assert datetime.fromisoformat(values["expires"]) > datetime.now(UTC)
    assert store.keys() == []


def test_a_second_holder_is_refused_with_the_name_of_the_first(store: Store) -> None:
    with (
        hold_lease(store, unexpected),
        pytest.raises(RunError) as refused,
        hold_lease(store, unexpected),
    ):
        pytest.fail("the lease was held twice")
    assert f"is being captured by process {os.getpid()} on " in str(refused.value)
    assert "its lease expires at " in str(refused.value)
    assert store.keys() == []


def test_a_lease_of_another_machine_is_stale_only_after_it_expires(store: Store) -> None:
    put(store, machine="another", pid=1, expires=in_seconds(30))
    with pytest.raises(RunError, match="Let it end, stop it, or wait until its lease expires"):
        stale_lease(store)
    expired = put(store, machine="another", expires=in_seconds(-1))
    notes: list[TakenOver] = []
    with hold_lease(store, notes.append):
        assert notes == [TakenOver(expired.holder, f"its lease expired at {expired.expires}")]
        assert json.loads(store.get(KEY))["owner"] != expired.owner
    assert store.keys() == []


def test_a_lease_of_an_ended_process_of_this_machine_is_stale(store: Store) -> None:
    """Also if another process has its id now."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for changes in ({"pid": gone.pid}, {"process": "an earlier start"}):
        put(store, **changes)
        found = stale_lease(store)
        assert found is not None
        assert found.reason == "it has died"


def test_an_ended_process_that_nobody_waited_for_has_no_start_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert lease.process_start(child.pid) == ""
    child.wait()
    assert lease.process_start(os.getpid()) == lease.new_lease().process != ""


def test_an_overwritten_holder_stops_and_leaves_the_new_lease(store: Store) -> None:
    with hold_lease(store, unexpected) as held:
        other = put(store, pid=77, host="elsewhere")
        with pytest.raises(RunError, match="was taken over by process 77 on elsewhere"):
            held.require()
    assert json.loads(store.get(KEY))["owner"] == other.owner
    store.delete(KEY)
    with hold_lease(store, unexpected) as held:
        store.delete(KEY)
        with pytest.raises(RunError, match="is gone: the run was deleted, or another"):
            held.require()


def test_without_put_if_absent_the_last_writer_gets_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every put-if-absent reports success; another capture writes during the wait."""
    store = Store(f"{tmp_path}/run")
    monkeypatch.setattr(Store, "put_if_absent", lambda store, key, data: not store.put(key, data))
    monkeypatch.setattr(lease, "has_put_if_absent", lambda store: False)
    monkeypatch.setattr("capture.store.lease.time.sleep", lambda seconds: put(store, pid=78))
    with (
        pytest.raises(RunError, match="was taken over by process 78"),
        hold_lease(store, unexpected),
    ):
        pytest.fail("two captures hold the lease")
    assert json.loads(store.get(KEY))["pid"] == 78


def test_a_lease_is_renewed_while_it_is_held(store: Store) -> None:
    with hold_lease(store, unexpected) as held:
        put(store, owner=held.lease.owner, expires=in_seconds(-1))
        held.renew()
        found = lease.read_lease(store)
        assert found is not None
        assert datetime.fromisoformat(found.expires) > datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", "[" * 5000, '{"pid": 1}', "x" * 9000])
def test_an_invalid_lease_file_is_named(tmp_path: Path, text: str) -> None:
    store = Store(str(tmp_path))
    store.put(KEY, text.encode())
    with pytest.raises(RunError, match=r"lease\.json: is not a valid lease\. Delete it if no"):
        stale_lease(store)


def test_a_lease_with_invalid_values_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for changes in ({"pid": "1"}, {"expires": "soon"}, {"expires": "2030-01-01T00:00:00"}):
        put(store, **changes)
        with pytest.raises(RunError, match="is not a valid lease"):
            stale_lease(store)


# --- whole captures -------------------------------------------------------------------------------


def test_a_second_capture_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    refusals = []

    def try_too(event: object) -> None:
        if isinstance(event, Progress) and event.steps_done in (3, 12):
            for options in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(RunError, match="is being captured by process") as refused:
                    make_run(config, **options)
                refusals.append(refused)

    capture_run(config, try_too)
    assert len(refusals) == 6
    whole = tiny_config(tmp_path, name="whole")
    make_run(whole)
    assert contents(config.run.uri) == contents(whole.run.uri)
    assert verify(Store(config.run.uri)) == []


def test_an_overwritten_capture_writes_no_more_markers(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    store = Store(config.run.uri)

    def take(event: object) -> None:
        if isinstance(event, Progress) and event.steps_done == 12:
            put(store, machine="another")

    with pytest.raises(RunError, match="This capture stops, so that only one writes the run"):
        capture_run(config, take)
    assert len(read_segments(store)) <= 1  # the first marker may have been written before
    with pytest.raises(RunError, match="is being captured by process"):
        make_run(config, resume=True)
    put(store, machine="another", expires=in_seconds(-1))
    assert isinstance(make_run(config, resume=True)[0], TakenOver)
    assert [marker.end_step for marker in read_segments(store)] == [8, 16, 24, 28]


def test_verify_and_overwrite_accept_a_stale_lease(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    make_run(config)
    put(Store(config.run.uri), machine="another", expires=in_seconds(-1))
    assert verify(Store(config.run.uri)) == []
    make_run(config, overwrite=True)
    assert not Store(config.run.uri).exists(KEY)


@pytest.mark.parametrize(("failures", "found"), [(1, True), (2, True), (3, False)])
def test_a_lease_that_is_renewed_while_it_is_read_is_read_again(monkeypatch, failures, found):
    """An object store needs two requests, and the value may change between them."""
    store = Store("memory://lease-renewed")
    store.put(lease.KEY, lease.encode(lease.new_lease()))
    opened, calls = Store.open, []

    def replaced(store: Store, key: str) -> object:
        calls.append(key)
        if len(calls) <= failures:
            raise StoreError(key, "was replaced while it was being read")
        return opened(store, key)

    monkeypatch.setattr(Store, "open", replaced)
    if found:
        assert lease.running_capture(store)
    else:
        with pytest.raises(StoreError, match="was replaced"):
            lease.running_capture(store)
