"""Capture on many machines: a group of workers that Ray Train places, joins and starts again.

The driver looks whether the run can be made here at all, hands out the work and shows what it is
told; it holds nothing that would be lost with it. A lost worker or node ends its group, which is
started again, up to ``workers.max_failures`` times, and goes on from the last marker; nodes that a
cloud takes back (spot) are counted apart, up to the same number. What a worker refuses
(``CaptureError``) would be refused again, and ends the capture.
"""

import os
import tempfile
import threading
import uuid
from contextlib import suppress
from typing import Any

import ray
from ray.train import (
    ControllerError,
    FailureConfig,
    PreemptionError,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from capture.config.settings import Config
from capture.errors import CaptureError, ClusterError, ConfigError
from capture.process_group import PATIENCE
from capture.store import lease
from capture.store.store import Store
from capture.training.run_start import may_begin
from cluster.on_ray.driver_mailbox import Desk, Task, work
from cluster.on_ray.network import require_reach
from cluster.on_ray.session import connect, first_line
from cluster.terminal.progress import Report

LOOK_SECONDS = 0.2
"""Between looks at what workers have told."""
FAREWELL_SECONDS = 20.0
"""For workers to end in order when the driver is stopped."""
PLACINGS = 10
"""How often in all Ray looks again for room for a group, a minute each time."""
GO_ON = "go on with --resume; what was committed is safe"


def capture_on_workers(
    config: Config, report: Report, *, resume: bool = False, overwrite: bool = False
) -> None:
    """As ``capture_run``, by ``workers.count`` workers of the cluster that is there or made here.

    Raises what ``capture_run`` raises, ``ConfigError`` where the cluster has no room,
    ``StoreError`` for a run that not all of its nodes can reach, and ``ClusterError`` for workers
    that were lost too often.
    """
    store = Store(config.run.uri, config.store)
    lease.left_behind(store)
    may_begin(store, config, resume=resume, overwrite=overwrite)
    with connect():
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        use_gpu = require_room(config, [node["Resources"] for node in nodes])
        require_reach(store, {node["NodeID"]: node["NodeName"] for node in nodes})
        group = uuid.uuid4().hex
        beside = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here())
        desk: Any = beside.remote(config.workers.max_failures)
        task = Task(
            config=config,
            folder=os.getcwd(),
            group=group,
            resume=resume,
            overwrite=overwrite,
            desk=desk,
        )
        fitting = Fitting(task, use_gpu=use_gpu)
        try:
            fitting.follow(report)
        finally:
            leave(fitting, store)


class Fitting:
    """A group at work, which a thread of the driver waits for."""

    def __init__(self, task: Task, *, use_gpu: bool) -> None:
        self.task = task
        self.use_gpu = use_gpu
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.fit, name="workers", daemon=True)
        self.thread.start()

    def fit(self) -> None:
        """Ray Train's part. What it keeps is about itself and of no use afterwards."""
        try:
            with tempfile.TemporaryDirectory(prefix="ontogeny-") as folder:
                trainer(self.task, folder, use_gpu=self.use_gpu).fit()
        except BaseException as error:  # raised anew by the thread that follows
            self.error = error

    def follow(self, report: Report) -> None:
        """Show what the workers tell until they are done; raises what ended them."""
        while self.thread.is_alive():
            self.thread.join(LOOK_SECONDS)
            for event in ray.get(self.task.desk.hear.remote()):
                report(event)
        if isinstance(self.error, TrainingFailedError):
            raise explained(self.error, self.task.config) from self.error
        if self.error:
            raise self.error

    def end(self) -> bool:
        """Have the workers end, if they have not; whether they did."""
        if self.thread.is_alive():
            self.task.desk.end.remote()
            self.thread.join(FAREWELL_SECONDS)
        return not self.thread.is_alive()


def leave(fitting: Fitting, store: Store) -> None:
    """Have the workers end, and remove their lease; if the store is away, it expires by itself.

    What ended the capture is on its way to the user: nothing here may take its place.
    """
    if fitting.end():
        with suppress(CaptureError):
            lease.withdraw(store, fitting.task.group)


class Refusals(UserCallback):
    """Ends the capture at an error that a new start would only meet again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, CaptureError):
                raise error
            if isinstance(error, KeyboardInterrupt):
                raise ClusterError("workers", "were stopped")


def trainer(task: Task, folder: str, *, use_gpu: bool) -> TorchTrainer:
    """NCCL joins workers with GPUs, gloo others."""
    wanted = task.config.workers
    failures = FailureConfig(
        max_failures=wanted.max_failures,
        max_preemption_failures=wanted.max_failures,
        controller_failure_limit=PLACINGS,
    )
    return TorchTrainer(
        work,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=wanted.count,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": wanted.cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=task.group, storage_path=folder, failure_config=failures, callbacks=[Refusals()]
        ),
    )


def explained(error: TrainingFailedError, config: Config) -> CaptureError:
    """What ended a group, for the user."""
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, CaptureError):
            return cause
        problem = f"could not be placed: {first_line(cause)}"
        return ClusterError("workers", problem, f"Make room on the cluster, then {GO_ON}")
    times = config.workers.max_failures + 1
    often = "" if times == 1 else f" {times} times"
    problem = f"were lost{often}, last {last_loss(error)}"
    return ClusterError("workers", problem, f"Put that right, then {GO_ON}")


def last_loss(error: TrainingFailedError) -> str:
    if isinstance(error, PreemptionError):
        ranks = ", ".join(map(str, error.preemption_info.preempted_ranks))
        return f"workers {ranks} with a node that was taken away"
    assert isinstance(error, WorkerGroupError)
    rank, cause = min(error.worker_failures.items())
    return f"worker {rank}: {type(cause).__name__}: {first_line(cause)}"


# --- before anything is started -------------------------------------------------------------------


def require_room(config: Config, nodes: list[dict[str, float]]) -> bool:
    """Whether workers take GPUs; raises ``ConfigError`` if the nodes have no room for all of them.

    ``nodes``: what each node has in all, whoever uses it now. A worker's cores and its GPU are on
    one node.
    """
    wanted, device = config.workers, config.training.device
    places = [int(has.get("CPU", 0)) // wanted.cpus for has in nodes]
    gpus = [int(has.get("GPU", 0)) for has in nodes]
    with_gpu = sum(map(min, places, gpus))
    cores = sum(int(has.get("CPU", 0)) for has in nodes)
    have = f"the cluster has {cores} cores and {sum(gpus)} GPUs, room for"
    remedy = "Ask for fewer, or add nodes to the cluster"
    if device == "cuda" and with_gpu < wanted.count:
        each = "with a GPU each (training.device = cuda)"
        raise ConfigError("workers.count", f"got {wanted.count} {each}, {have} {with_gpu}", remedy)
    if sum(places) < wanted.count:
        each = f"with {wanted.cpus} core{'s' if wanted.cpus > 1 else ''} each"
        raise ConfigError(
            "workers.count", f"got {wanted.count} {each}, {have} {sum(places)}", remedy
        )
    return device != "cpu" and with_gpu >= wanted.count


def here() -> NodeAffinitySchedulingStrategy:
    node = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node, soft=False)
