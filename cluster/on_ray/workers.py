"""Capture on many machines: a group of workers that Ray Train places, connects and restarts.

The driver checks that the cluster can make the run, starts the workers and shows their progress. It
holds no state that would be lost with it. The loss of a worker or node ends the group, which is
started again up to ``workers.max_failures`` times and continues from the last marker; nodes that a
cloud takes back (spot) are counted separately, up to the same number. An error that capture itself
raises (``CaptureError``) would occur again, so it ends the capture.
"""

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
from capture.errors import CaptureError, ClusterError
from capture.process_group import gradient_timeout
from capture.store import Store, lease
from capture.training.run_start import begins_new_run
from capture.training.write_queue import RESUME_ADVICE
from cluster.on_ray.driver_mailbox import Mailbox, Task, run_worker
from cluster.on_ray.job import working_folder
from cluster.on_ray.network import require_reachable
from cluster.on_ray.room import nodes_with_cores, wait_for_workers_room
from cluster.on_ray.session import connect, first_line
from cluster.terminal.progress import Report

POLL_SECONDS = 0.2
"""Interval at which the driver drains the mailbox."""
STOP_SECONDS = 20.0
"""Time for the workers to stop in order when the driver is stopped."""
PLACEMENT_ATTEMPTS = 10
"""How often Ray tries to place the group, over the whole capture; each try takes a minute."""


def capture_on_workers(
    config: Config, report: Report, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Like ``capture_run``, on ``workers.count`` workers of a running cluster or of a new one.

    Raises what ``capture_run`` raises, ``ConfigError`` if the cluster has too few cores or GPUs and
    no node joins that has them, ``StoreError`` if not all of its nodes can reach the run, and
    ``ClusterError`` if workers were lost too often.
    """
    store = Store(config.run.uri, config.store)
    lease.stale_lease(store)
    begins_new_run(store, config, resume=resume, overwrite=overwrite)
    with connect():
        use_gpu = wait_for_workers_room(config, report)
        require_reachable(store, {node["NodeID"]: node["NodeName"] for node in nodes_with_cores()})
        group = uuid.uuid4().hex
        actor = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=on_this_node())
        mailbox: Any = actor.remote(config.workers.max_failures)
        task = Task(
            config=config,
            folder=working_folder(),
            group=group,
            resume=resume,
            overwrite=overwrite,
            mailbox=mailbox,
        )
        training = TrainerThread(task, use_gpu=use_gpu)
        try:
            training.follow(report)
        finally:
            stop_workers(training, store)


class TrainerThread:
    """A thread of the driver that runs Ray Train's trainer until the workers are done."""

    def __init__(self, task: Task, *, use_gpu: bool) -> None:
        self.task = task
        self.use_gpu = use_gpu
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.fit, name="workers", daemon=True)
        self.thread.start()

    def fit(self) -> None:
        """Run the trainer, whose own files are of no use afterwards."""
        try:
            with tempfile.TemporaryDirectory(prefix="ontogeny-") as folder:
                trainer(self.task, folder, use_gpu=self.use_gpu).fit()
        except BaseException as error:  # ``follow`` raises it in the main thread
            self.error = error

    def follow(self, report: Report) -> None:
        """Report events until the workers are done; raises the error that ended them."""
        while self.thread.is_alive():
            self.thread.join(POLL_SECONDS)
            for event in ray.get(self.task.mailbox.drain.remote()):
                report(event)
        if isinstance(self.error, TrainingFailedError):
            raise explain_failure(self.error, self.task.config) from self.error
        if self.error:
            raise self.error

    def stop(self) -> bool:
        """Have the workers stop; returns whether they did in time."""
        if self.thread.is_alive():
            self.task.mailbox.stop.remote()
            self.thread.join(STOP_SECONDS)
        return not self.thread.is_alive()


def stop_workers(training: TrainerThread, store: Store) -> None:
    """Stop the workers and remove their lease. If the store does not answer, the lease expires.

    This runs while the error that ended the capture propagates; it must not raise another one.
    """
    if training.stop():
        with suppress(CaptureError):
            lease.remove_group_lease(store, training.task.group)


class StopOnCaptureError(UserCallback):
    """Ends the capture at an error that would occur again after a restart."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, CaptureError):
                raise error
            if isinstance(error, KeyboardInterrupt):
                raise ClusterError("workers", "were stopped")


def trainer(task: Task, folder: str, *, use_gpu: bool) -> TorchTrainer:
    """The trainer of a group. Workers with GPUs communicate by NCCL, others by gloo."""
    wanted = task.config.workers
    timeout = gradient_timeout(task.config.store.patience_seconds)
    failures = FailureConfig(
        max_failures=wanted.max_failures,
        max_preemption_failures=wanted.max_failures,
        controller_failure_limit=PLACEMENT_ATTEMPTS,
    )
    return TorchTrainer(
        run_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=int(timeout.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=wanted.count,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": wanted.cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=task.group,
            storage_path=folder,
            failure_config=failures,
            callbacks=[StopOnCaptureError()],
        ),
    )


def explain_failure(error: TrainingFailedError, config: Config) -> CaptureError:
    """The error for the user that explains why a group ended."""
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, CaptureError):
            return cause
        problem = f"could not be placed: {first_line(cause)}"
        return ClusterError("workers", problem, f"Make room on the cluster, then {RESUME_ADVICE}")
    times = config.workers.max_failures + 1
    often = "" if times == 1 else f" {times} times"
    problem = f"were lost{often}, last {describe_loss(error)}"
    return ClusterError("workers", problem, f"Remove the cause, then {RESUME_ADVICE}")


def describe_loss(error: TrainingFailedError) -> str:
    if isinstance(error, PreemptionError):
        ranks = ", ".join(map(str, error.preemption_info.preempted_ranks))
        return f"workers {ranks} with a node that was taken away"
    assert isinstance(error, WorkerGroupError)
    rank, cause = min(error.worker_failures.items())
    return f"worker {rank}: {type(cause).__name__}: {first_line(cause)}"


def on_this_node() -> NodeAffinitySchedulingStrategy:
    node = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node, soft=False)
