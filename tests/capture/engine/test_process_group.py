"""Law 3: the number of workers does not change a run, except for the order of sums."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from same_runs import read_all, same_rounded_run, same_run
from spawned import (
    SETTINGS,
    capture_all,
    capture_twice,
    everything,
    exercise,
    on_workers,
    resume_later,
)
from tiny import contents, make_run, tiny_config

from analysis.run.run import Run, open_run
from capture.config.reading import make_config
from capture.engine.evaluation import evaluate
from capture.errors import ConfigError, RunError
from capture.process_group import SINGLE_PROCESS, Group, SingleProcess, heartbeat
from capture.store import Store, lease


class Numbered(SingleProcess):
    """One of several workers, for operations that need no other worker."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(size=st.integers(1, 12), share=st.integers(1, 9))
def test_slots_of_all_workers_are_those_of_the_batch_in_order(size: int, share: int):
    groups: list[Group] = [Numbered(rank, size) for rank in range(size)]
    dealt = [slot for group in groups for slot in group.slots(size * share)]
    assert dealt == list(range(size * share))
    assert {len(group.slots(size * share)) for group in groups} == {share}


@dataclass(frozen=True)
class Pair:
    """What two workers have done."""

    folder: Path
    """Holds their runs."""
    results: list[dict[str, Any]]
    """By rank."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(folder, on_workers(2, everything, folder))


@pytest.mark.slow
def test_operations_over_three_workers_give_every_one_the_same(tmp_path: Path):
    same_on_all(on_workers(3, exercise, tmp_path))


def test_operations_over_two_workers_give_both_the_same(pair: Pair):
    same_on_all([result["operations"] for result in pair.results])


def same_on_all(results: list[dict[str, Any]]) -> None:
    first, size = results[0], len(results)
    ranks = [*range(size)]
    assert [found["apart"] for found in results] == [[rank, size, ranks] for rank in ranks]
    assert all(other | {"apart": first["apart"]} == first for other in results)
    assert first["floats"] == [[1.5 * size, sum(ranks)]]
    assert first["numbers"] == size * 10**12 + sum(ranks)
    assert first["joined"] == [[], [1, 2], [2, 3, 4, 5]][:size]
    assert first["gathered"] == [{"rank": rank, "text": "é" * rank} for rank in ranks]
    assert first["same"] == ""
    assert first["other"].startswith("step 7: the workers' copies of the weights differ")
    assert first["waited"] is True


def test_the_first_worker_gives_a_sign_now_and_then(monkeypatch: pytest.MonkeyPatch):
    now, sent = [0.0], list[tuple[float, object]]()
    monkeypatch.setattr("capture.process_group.time.monotonic", lambda: now[0])
    group = Numbered(0, 2)
    monkeypatch.setattr(group, "all_gather_object", lambda value: sent.append((now[0], value)))
    with heartbeat(group) as alive:
        for now[0] in range(26):
            alive()
    assert sent == [(10, True), (20, True), (25, False)]


def test_an_evaluation_gives_a_sign_after_every_batch():
    signs: list[int] = []
    model = torch.nn.Embedding(5, 5)
    token_NT = torch.arange(12).view(6, 2) % 5
    evaluate(model, token_NT, token_NT, batch=4, alive=lambda: signs.append(1))
    assert len(signs) == 2


def test_a_single_process_sends_and_changes_nothing():
    x = torch.tensor([1.0, 2.0])
    SINGLE_PROCESS.all_reduce([x])
    assert x.tolist() == [1, 2]
    assert [row.tolist() for row in SINGLE_PROCESS.all_gather(x)] == [[1, 2]]
    assert SINGLE_PROCESS.all_gather_object({"a": 1}) == [{"a": 1}]
    assert SINGLE_PROCESS.for_other_thread() is SINGLE_PROCESS


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one run per setting, each recorded by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, overrides in SETTINGS.items():
        make_run(tiny_config(folder, "training.epochs=1", *overrides, name=name))
    return folder


def test_two_workers_record_what_one_process_records(alone: Path, pair: Pair):
    same_as_alone(alone, pair.folder, [result["steps"] for result in pair.results])


@pytest.mark.slow
def test_four_workers_record_what_one_process_records(alone: Path, tmp_path: Path):
    same_as_alone(alone, tmp_path, on_workers(4, capture_all, tmp_path))


def same_as_alone(alone: Path, folder: Path, steps: list[list[int]]) -> None:
    """Compare the runs of one process and of several; ``steps``: those that each reported."""
    assert steps[0] == [*range(1, 15)] * len(SETTINGS)
    assert all(reported == [] for reported in steps[1:])
    for name in SETTINGS.keys() - {"rounded"}:
        same_run(str(alone / name), str(folder / name), len(steps))
    same_gradients(open_run(str(alone / "datum")), open_run(str(folder / "datum")))
    same_rounded_run(str(alone / "rounded"), str(folder / "rounded"))


def same_gradients(wanted: Run, found: Run) -> None:
    """Return a gradient from factors, which each worker stores for its own slots."""
    for step in (0, 13):
        for datum in wanted.steps()["datums"].iloc[step]:
            at = (step, int(datum), "layers.1.linear1.weight")
            assert_allclose(found.gradient(*at), wanted.gradient(*at), rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_two_workers_give_the_same_bytes_each_time_and_nearly_those_of_one(
    alone: Path, tmp_path: Path
):
    """The order of sums changes losses by 1e-6 after 14 steps; after 60 the runs have diverged."""
    on_workers(2, capture_twice, tmp_path)
    first, second = (contents(str(tmp_path / name)) for name in ("first", "second"))
    assert first == second
    wanted, found = (read_all(str(path), "steps") for path in (alone / "last", tmp_path / "first"))
    assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)


@pytest.mark.slow
def test_a_run_of_one_process_is_resumed_by_two_workers(tmp_path: Path):
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    make_run(tiny_config(wanted))
    make_run(tiny_config(tmp_path, name="resumed"))
    store = Store(str(tmp_path / "resumed"))
    for segment in (2, 3):
        store.delete(f"segments/segment-{segment:06d}.json")
        store.delete(f"outliers/segment-{segment:06d}-w00.parquet")
    keys, _ = on_workers(2, resume_later, tmp_path)
    assert [key[-18:-8] for key in keys if key.endswith("w01.parquet")] == [
        "000002-w01",
        "000003-w01",
    ]
    same_run(str(wanted / "run"), store.uri, 2)
    assert open_run(store.uri).steps_done == 28


def test_stopped_workers_resume_with_the_sums_of_the_open_tally_window(pair: Pair):
    """Each worker stores its own sums: added up before the window ends, they would round
    otherwise."""
    assert [result["steps taken again"] for result in pair.results] == [0, 0]
    assert contents(str(pair.folder / "stopped")) == contents(str(pair.folder / "whole"))


# --- the lease of a group -------------------------------------------------------------------------


def test_a_restarted_group_takes_over_its_own_lease(tmp_path: Path):
    store = Store(str(tmp_path))
    with lease.hold_lease(store, lambda event: None, "g.1") as first:
        with pytest.raises(RunError, match="is being captured"):
            lease.stale_lease(store, "other.1")
        with pytest.raises(RunError, match="is being captured"):
            lease.stale_lease(store)
        taken: list[lease.TakenOver] = []
        with lease.hold_lease(store, taken.append, "g.2") as second:
            second.require()
            with pytest.raises(RunError, match="was taken over"):
                first.require()
        assert [event.reason for event in taken] == ["its group was started again"]


def test_the_driver_withdraws_only_the_lease_of_its_own_group(tmp_path: Path):
    store = Store(str(tmp_path))
    store.put(lease.KEY, lease.encode(lease.new_lease("g.2")))
    lease.remove_group_lease(store, "other")
    assert store.exists(lease.KEY)
    lease.remove_group_lease(store, "g")
    assert not store.exists(lease.KEY)
    lease.remove_group_lease(store, "g")


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workers.count=3", r"^workers\.count: got 3, must divide training\.batch = 20\.$"),
        ("workers.count=40", r"got 40, must be at most training\.batch = 20: one slot each"),
        ("workers.count=10 training.accumulate=4", r"accumulate: got 4, must divide the 2 slots"),
        ("workers.count=0", r"^workers\.count: got 0, must be at least 1\.$"),
        ("workers.cpus=0", r"^workers\.cpus: got 0, must be at least 1\.$"),
        ("workers.max_failures=-1", r"^workers\.max_failures: got -1, must be at least 0\.$"),
    ],
)
def test_impossible_groups_are_refused_with_the_reason(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        make_config({}, override.split())
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
