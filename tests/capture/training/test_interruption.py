"""A run that was killed at any moment resumes to the same bytes, without duplicate rows."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from killed import NO_KILL, CaptureServer, KillPoint, capture_server, random_kill
from s3_server import environment
from tiny import contents

from analysis.run.run import open_run
from capture.format.chain import read_segments
from capture.maintenance.verify import verify
from capture.store import Store

MANY = ("training.epochs=4", "capture.segment_steps=2", "capture.tally.window_steps=10")
SOME = ("training.epochs=1", "capture.segment_steps=1", "capture.tally.window_steps=6")
FEW = ("training.epochs=1", "capture.segment_steps=5", "capture.tally.window_steps=4")
ROWS_A_STEP = 4 * 30
OPENING, A_SEGMENT = 32, 12
"""Number of store operations: of a resumed capture before its first write (plus one for each
existing segment), and of one segment."""


@pytest.fixture(scope="module")
def server() -> Iterator[CaptureServer]:
    with capture_server() as found:
        yield found


@pytest.fixture(params=["folder", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.slow])])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> "RunLocation":
    if request.param == "folder":
        return RunLocation(str(tmp_path / "run"), {})
    uri = request.getfixturevalue("s3")
    return RunLocation(uri, environment(request.getfixturevalue("s3_server").endpoint))


@dataclass(frozen=True)
class RunLocation:
    """Location of the killed run, and the environment variables to reach it."""

    uri: str
    environment: dict[str, str]

    @property
    def kind(self) -> str:
        return "s3" if self.environment else "folder"


class Interrupted:
    """A run that is killed repeatedly, and an uninterrupted one to compare with."""

    def __init__(
        self, server: CaptureServer, folder: Path, location: RunLocation, overrides: tuple[str, ...]
    ):
        self.server = server
        self.folder = folder
        self.location = location
        self.overrides = overrides
        self.kills = 0

    def resume_until_killed(self, kill: KillPoint) -> bool:
        """Resume until killed; returns whether the run is complete. Checks what is committed."""
        uri = f"run.uri={self.location.uri}"
        ending = self.server.capture(
            self.folder, *self.overrides, uri, environment=self.location.environment, kill=kill
        )
        self.kills += ending.signal != 0
        store = Store(self.location.uri)
        if store.exists("segments/start.json"):
            assert all(left_open(store, finding.key) for finding in verify(store))
            markers = read_segments(store)
            rows = sum(file.rows or 0 for m in markers for file in m.files_of("outliers"))
            assert rows == ROWS_A_STEP * (markers[-1].end_step if markers else 0)
        return ending.signal == 0

    def check(self) -> None:
        """Check that the run equals an uninterrupted one, byte for byte and file for file."""
        whole = self.folder / "whole"
        if not whole.exists():
            uri = f"run.uri={whole}"
            self.server.capture(self.folder, *self.overrides, uri, environment={}, kill=NO_KILL)
        store = Store(self.location.uri)
        assert contents(self.location.uri) == contents(str(whole))
        assert store.keys() == Store(str(whole)).keys()
        assert verify(store) == []
        wanted, found = read_segments(Store(str(whole))), read_segments(store)
        assert [marker.files for marker in found] == [marker.files for marker in wanted]
        rows = open_run(self.location.uri).shifts()
        assert len(rows) == ROWS_A_STEP * wanted[-1].end_step
        assert not rows.duplicated(["epoch", "batch", "datum_ix", "unit", "index"]).any()


def left_open(store: Store, key: str) -> bool:
    """Return whether a finding concerns the open segment or the lease."""
    markers = read_segments(store)
    files = {file.key for marker in markers for file in marker.files}
    return key not in files and (not store.exists(key) or not key.startswith("segments/"))


def kill_often(run: Interrupted, kills: int, seed: int) -> None:
    """Kill the run at random moments, then let it finish and check it."""
    rng = random.Random(seed)
    while run.kills < kills:
        store = Store(run.location.uri)
        done = len(store.keys("segments"))
        if run.resume_until_killed(random_kill(rng, OPENING + done + A_SEGMENT)):
            break
    run.resume_until_killed(NO_KILL)
    run.check()


def test_a_run_killed_at_random_moments_loses_and_duplicates_nothing(server, location, tmp_path):
    run = Interrupted(server, tmp_path, location, SOME)
    kill_often(run, kills=8, seed=0)
    assert run.kills == 8


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_fifty_times_is_intact(server, location, tmp_path, seed):
    run = Interrupted(server, tmp_path, location, MANY)
    kill_often(run, 60, seed)
    print(f"\nkills of one run at random moments, {location.kind}: {run.kills}")
    assert run.kills >= 50


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_run_killed_at_any_store_operation_is_intact(server, location, tmp_path, moment):
    """Kill a run at its first operation, another at its second, and so on."""
    if moment == "within" and location.environment:
        pytest.skip("an object store shows nothing of half a write")
    kills = 0
    for operation in range(1, 1000):
        here = RunLocation(f"{location.uri}-{operation}", location.environment)
        run = Interrupted(server, tmp_path, here, FEW)
        if run.resume_until_killed(KillPoint(operation, moment)):
            break
        run.resume_until_killed(NO_KILL)
        run.check()
        kills += run.kills
    print(f"\nkills {moment} each operation, {location.kind}: {kills}")
    assert kills > 50
