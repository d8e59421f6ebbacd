"""Decisions about workers that need none: resources, the end of a group, and its explanation."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo
from tiny import tiny_config

from capture.config.reading import make_config
from capture.errors import AuditError, StoreError
from capture.store import Store, lease
from cluster.on_ray.driver_mailbox import Task
from cluster.on_ray.network import require_mark, require_reachable
from cluster.on_ray.workers import explain_failure, stop_workers, trainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # in Ray itself

# --- after the end --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stopped:
    """A group of workers that has stopped."""

    task = SimpleNamespace(group="ours")

    def stop(self) -> bool:
        return True


def test_the_lease_of_stopped_workers_is_removed():
    store = Store("memory://ended")
    store.put(lease.KEY, lease.encode(lease.new_lease("ours.2")))
    stop_workers(Stopped(), store)  # pyright: ignore[reportArgumentType]
    assert not store.exists(lease.KEY)


def test_an_unavailable_store_does_not_hide_the_error_of_the_capture(
    monkeypatch: pytest.MonkeyPatch,
):
    def away(*given: object) -> None:
        raise StoreError("s3://x", "does not answer")

    store = Store("memory://away")
    monkeypatch.setattr(store.backend, "open", away)
    stop_workers(Stopped(), store)  # pyright: ignore[reportArgumentType]


# --- reaching the run, the end of a group ---------------------------------------------------------


def test_a_run_in_the_memory_of_one_process_is_refused_before_any_node_is_asked():
    with pytest.raises(StoreError, match=r"^memory://x: lies in the memory .* s3://"):
        require_reachable(Store("memory://x"), {"id": "a node"})


def test_an_unreachable_run_is_refused_with_the_name_of_the_node():
    require_mark("runs/x", "m", [("a", "m"), ("b", "m")])
    message = r"^runs/x: cannot be reached from node b \(it is not there\)\. Put the run on s3://"
    with pytest.raises(StoreError, match=message):
        require_mark("runs/x", "m", [("a", "m"), ("b", "it is not there")])


def test_the_end_of_a_group_is_explained_in_one_line():
    config = make_config({}, ["workers.max_failures=2"])
    audit = AuditError("step 3", "shifts miss the applied change", "Nothing was stored")
    assert explain_failure(ControllerError(audit), config) is audit
    placed = explain_failure(ControllerError(TimeoutError("no room\nat all")), config)
    assert str(placed).startswith("workers: could not be placed: no room. Make room")
    died = WorkerGroupError("…", {1: RuntimeError("connection closed\nby peer")})
    lost = explain_failure(died, config)
    assert "were lost 3 times, last worker 1: RuntimeError: connection closed. " in str(lost)
    assert str(pickle.loads(pickle.dumps(lost))) == str(lost)
    taken = explain_failure(PreemptionError(PreemptionInfo(None, {"a": [2, 3]})), config)
    assert "were lost 3 times, last workers 2, 3 with a node that was taken away. Remove" in str(
        taken
    )


def test_preempted_nodes_count_as_losses(tmp_path: Path):
    config = tiny_config(tmp_path, "workers.count=2", "workers.max_failures=2")
    task = Task(
        config=config,
        folder=str(tmp_path),
        group="ours",
        resume=False,
        overwrite=False,
        mailbox=None,  # pyright: ignore[reportArgumentType]
    )
    failures = trainer(task, str(tmp_path), use_gpu=False).run_config.failure_config
    assert failures
    assert (failures.max_failures, failures.max_preemption_failures) == (2, 2)
