"""Killed at any moment, a run goes on as if nothing had been: the same bytes, nothing twice."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from killed import NEVER, Death, Mortals, any_death, mortals
from s3_server import environment
from tiny import contents

from analysis.run.run import open_run
from capture.format.markers import read_segments
from capture.maintenance.verify import verify
from capture.store.store import Store

MANY = ("training.epochs=4", "capture.segment_steps=2", "capture.tally.window_steps=10")
SOME = ("training.epochs=1", "capture.segment_steps=1", "capture.tally.window_steps=6")
FEW = ("training.epochs=1", "capture.segment_steps=5", "capture.tally.window_steps=4")
ROWS_A_STEP = 4 * 30
OPENING, A_SEGMENT = 32, 12
"""Operations on the store before the first write of a resumed capture (and one more for each
segment), and of a segment."""


@pytest.fixture(scope="module")
def warm() -> Iterator[Mortals]:
    with mortals() as found:
        yield found


@pytest.fixture(params=["folder", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.slow])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> "Place":
    if request.param == "folder":
        return Place(str(tmp_path / "run"), {})
    uri = request.getfixturevalue("s3")
    return Place(uri, environment(request.getfixturevalue("s3_server").endpoint))


@dataclass(frozen=True)
class Place:
    """Where the killed run lies, and what leads there."""

    uri: str
    environment: dict[str, str]

    @property
    def kind(self) -> str:
        return "s3" if self.environment else "folder"


class Interrupted:
    """A run that is killed again and again, beside one that is not."""

    def __init__(self, warm: Mortals, folder: Path, place: Place, overrides: tuple[str, ...]):
        self.warm = warm
        self.folder = folder
        self.place = place
        self.overrides = overrides
        self.kills = 0

    def go_on(self, death: Death) -> bool:
        """Capture until death; whether the run is whole. What is committed must be sound."""
        uri = f"run.uri={self.place.uri}"
        ending = self.warm.capture(
            self.folder, *self.overrides, uri, environment=self.place.environment, death=death
        )
        self.kills += ending.signal != 0
        store = Store(self.place.uri)
        if store.exists("segments/start.json"):
            assert all(left_open(store, finding.key) for finding in verify(store))
            markers = read_segments(store)
            rows = sum(file.rows or 0 for m in markers for file in m.files_of("outliers"))
            assert rows == ROWS_A_STEP * (markers[-1].end_step if markers else 0)
        return ending.signal == 0

    def check(self) -> None:
        """The run equals one that was never killed, byte for byte and file for file."""
        whole = self.folder / "whole"
        if not whole.exists():
            uri = f"run.uri={whole}"
            self.warm.capture(self.folder, *self.overrides, uri, environment={}, death=NEVER)
        store = Store(self.place.uri)
        assert contents(self.place.uri) == contents(str(whole))
        assert store.keys() == Store(str(whole)).keys()
        assert verify(store) == []
        wanted, found = read_segments(Store(str(whole))), read_segments(store)
        assert [marker.files for marker in found] == [marker.files for marker in wanted]
        rows = open_run(self.place.uri).shifts()
        assert len(rows) == ROWS_A_STEP * wanted[-1].end_step
        assert not rows.duplicated(["epoch", "batch", "datum_ix", "unit", "index"]).any()


def left_open(store: Store, key: str) -> bool:
    """Whether a finding is of the segment that was open, or the lease."""
    markers = read_segments(store)
    files = {file.key for marker in markers for file in marker.files}
    return key not in files and (not store.exists(key) or not key.startswith("segments/"))


def kill_often(run: Interrupted, kills: int, seed: int) -> None:
    """At random moments; then let the run end."""
    rng = random.Random(seed)
    while run.kills < kills:
        store = Store(run.place.uri)
        done = len(store.keys("segments"))
        if run.go_on(any_death(rng, OPENING + done + A_SEGMENT)):
            break
    run.go_on(NEVER)
    run.check()


def test_a_run_that_is_killed_at_random_moments_loses_and_doubles_nothing(warm, place, tmp_path):
    run = Interrupted(warm, tmp_path, place, SOME)
    kill_often(run, kills=8, seed=0)
    assert run.kills == 8


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_fifty_times_and_more(warm, place, tmp_path, seed):
    run = Interrupted(warm, tmp_path, place, MANY)
    kill_often(run, 60, seed)
    print(f"\nkills of one run at random moments, {place.kind}: {run.kills}")
    assert run.kills >= 50


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moment", ["before", "within"])
def test_killed_at_every_operation(warm, place, tmp_path, moment):
    """A run that dies at its first operation, another that dies at its second, and so on."""
    if moment == "within" and place.environment:
        pytest.skip("an object store shows nothing of half a write")
    kills = 0
    for operation in range(1, 1000):
        here = Place(f"{place.uri}-{operation}", place.environment)
        run = Interrupted(warm, tmp_path, here, FEW)
        if run.go_on(Death(operation, moment)):
            break
        run.go_on(NEVER)
        run.check()
        kills += run.kills
    print(f"\nkills {moment} each operation, {place.kind}: {kills}")
    assert kills > 50
