"""What a run costs on how many GPUs: measured costs and stated assumptions in, predictions out.

Pure functions. A step is the slowest of what happens at once: training with its recording (forward,
backward, then all-reduce; no overlap is assumed, so this is an upper bound), the store taking
bytes, the store taking requests. The slowest is the bottleneck; where it moves when GPUs are added
is what the prediction is for.

A replica is as many GPUs as the weights and their optimizer need; slots of the batch are dealt out
to replicas. Replay has no all-reduce: each replica takes whole segments.

Units: bytes, seconds, GPUs.
"""

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.scale.workloads import FLOAT_BYTES, Workload

Kind = Literal["outliers", "tallies", "factors", "checkpoints", "dense"]
KINDS: tuple[Kind, ...] = ("outliers", "tallies", "checkpoints", "factors", "dense")
"""In the order of their size at a large model. Every run keeps its checkpoints besides."""
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on two CPU cores; where each number comes from stands in docs/scale.md."""

    recording: dict[Kind, float]
    """Share of a plain step's time that recording adds."""
    outlier_bytes: float
    """On the store, a row."""
    factor_share: float
    """Bytes of factors on the store over those of their float32."""
    rows_per_core_second: float
    """Outlier rows that attribution adds up."""
    shard_seconds: float
    """What a shard costs an analysis beside its rows, on its worker."""
    task_seconds: float
    """What a task costs the driver, merging its result included."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What was not measured. Each field is a line of the table in docs/scale.md."""

    gpu_flops: float = 4.0e14
    """Sustained by a GPU in training: 40 % of an H100's dense bfloat16."""
    gpu_memory_bytes: float = 80e9
    training_bytes: float = 18.0
    """A parameter, while it trains: weight, gradient, two moments, a copy in bfloat16."""
    memory_share: float = 0.6
    """Of a GPU's memory for these; the rest is activations and per-datum shifts."""
    gpus_per_node: int = 8
    cores_per_gpu: int = 8
    """That analyses may use."""
    network_bytes_per_second: float = 50e9
    """Of a GPU in an all-reduce: 400 Gbit/s."""
    latency_seconds: float = 20e-6
    """Of a hop of the all-reduce."""
    node_store_bytes_per_second: float = 5e9
    """A node to and from the store: 40 Gbit/s."""
    store_bytes_per_second: float = 1e12
    """The store in all, however many nodes ask."""
    put_per_prefix_second: float = 3500.0
    """What Amazon S3 promises of a prefix; readers get 5,500."""
    get_per_prefix_second: float = 5500.0
    prefixes: int = 1
    """Partitions that the store has split the run's keys into."""
    part_bytes: float = 8 * 2**20
    """Of a multipart upload (ours), larger where there would be more than ``most_parts``."""
    most_parts: int = 10_000
    checkpoint_nodes: int = 1
    """That write a checkpoint: the first worker's (ours)."""
    step_seconds: float = 0.005
    """Of a step, whatever its size: launches, the loop."""
    merge_bytes_per_second: float = 1e9
    """Of two partials into one, on one core."""
    reading_row_bytes: float = 16.0
    """Of a row of outliers in a partial, where no two fall together."""


# --- what is stored -------------------------------------------------------------------------------


def datum_bytes(work: Workload, kind: Kind, measured: Measured) -> float:
    """On the store, of one visit of a datum; tallies and checkpoints grow with time alone."""
    sizes: dict[Kind, float] = {
        "outliers": work.outliers * measured.outlier_bytes,
        "factors": FLOAT_BYTES * work.window * work.token_floats * measured.factor_share,
        "dense": FLOAT_BYTES * work.captured,
    }
    return sizes.get(kind, 0.0)


def window_bytes(work: Workload) -> float:
    """Uncompressed bytes of a window's tallies: two a neuron and token, by target and input."""
    return 2.0 * 2.0 * FLOAT_BYTES * work.neurons * work.vocabulary


def record_bytes(work: Workload, kind: Kind, measured: Measured) -> float:
    """Of the whole run's record of this kind, checkpoints left out unless they are the kind."""
    if kind == "checkpoints":
        return work.checkpoint_bytes * (work.segments + 1)
    if kind == "tallies":
        return window_bytes(work) * work.tally_windows
    return datum_bytes(work, kind, measured) * work.datums


# --- where the time goes --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run on so many GPUs."""

    gpus: int
    replicas: int
    """That have slots to work on."""
    training_seconds: float
    """Of a step: forward, backward and update, on the replica with the most slots."""
    all_reduce_seconds: float
    recording_seconds: float
    bandwidth_seconds: float
    """Until the store has taken a step's bytes."""
    checkpoint_seconds: float
    """Until those who write the checkpoint have, a step's share of it."""
    request_seconds: float
    """Until it has taken a step's share of requests."""
    objects: float
    """Put by the whole run."""
    stored_bytes: float
    """By the whole run, checkpoints included."""
    steps: int

    @property
    def step_seconds(self) -> float:
        busy = self.training_seconds + self.all_reduce_seconds + self.recording_seconds
        stored = (self.bandwidth_seconds, self.checkpoint_seconds, self.request_seconds)
        return max(busy, *stored)

    @property
    def days(self) -> float:
        return self.steps * self.step_seconds / DAY_SECONDS

    @property
    def bottleneck(self) -> str:
        """What would have to be faster for the step to be."""
        busy = {
            "training": self.training_seconds,
            "all-reduce": self.all_reduce_seconds,
            "recording": self.recording_seconds,
        }
        whole = {
            max(busy, key=busy.__getitem__): sum(busy.values()),
            "store bandwidth": self.bandwidth_seconds,
            "checkpoint": self.checkpoint_seconds,
            "requests": self.request_seconds,
        }
        return max(whole, key=whole.__getitem__)


def gpus_per_replica(work: Workload, assumed: Assumed) -> int:
    room = assumed.gpu_memory_bytes * assumed.memory_share
    return math.ceil(work.parameters * assumed.training_bytes / room)


def predict(
    work: Workload, kind: Kind, gpus: int, measured: Measured, assumed: Assumed
) -> Prediction:
    """Training with this record on so many GPUs; raises ``ValueError`` below one replica."""
    replica = gpus_per_replica(work, assumed)
    if gpus < replica:
        raise ValueError(f"{work.name} needs {replica} GPUs to hold it, got {gpus}")
    replicas = min(gpus // replica, work.batch)
    slots = math.ceil(work.batch / replicas)
    compute = slots * work.datum_flops / (replica * assumed.gpu_flops)
    segment = segment_bytes(work, kind, measured)
    puts = segment_puts(work, kind, replicas, measured, assumed)
    put_speed = assumed.put_per_prefix_second * assumed.prefixes
    writing = min(assumed.checkpoint_nodes, math.ceil(gpus / assumed.gpus_per_node))
    checkpoint = work.checkpoint_bytes / (writing * assumed.node_store_bytes_per_second)
    return Prediction(
        gpus=gpus,
        replicas=replicas,
        training_seconds=compute + assumed.step_seconds,
        all_reduce_seconds=all_reduce_seconds(work, replicas, replica, assumed),
        recording_seconds=compute * measured.recording[kind],
        bandwidth_seconds=segment / store_speed(gpus, assumed) / work.segment_steps,
        checkpoint_seconds=checkpoint / work.segment_steps,
        request_seconds=puts / put_speed / work.segment_steps,
        objects=segment_objects(kind, replicas) * work.segments,
        stored_bytes=segment * work.segments,
        steps=work.steps,
    )


def all_reduce_seconds(work: Workload, replicas: int, replica: int, assumed: Assumed) -> float:
    """Of a ring over replicas: each GPU sends and receives its part of the gradient twice."""
    if replicas == 1:
        return 0.0
    share = FLOAT_BYTES * work.parameters / replica
    sent = 2.0 * (replicas - 1) / replicas * share / assumed.network_bytes_per_second
    return sent + 2.0 * (replicas - 1) * assumed.latency_seconds


def store_speed(gpus: int, assumed: Assumed) -> float:
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    return min(nodes * assumed.node_store_bytes_per_second, assumed.store_bytes_per_second)


def segment_bytes(work: Workload, kind: Kind, measured: Measured) -> float:
    """What the store takes of a segment: the record and a checkpoint; tallies spread over time."""
    record = datum_bytes(work, kind, measured) * work.batch * work.segment_steps
    tallies = window_bytes(work) * work.tally_windows / work.segments if kind == "tallies" else 0.0
    return record + tallies + work.checkpoint_bytes


def segment_objects(kind: Kind, replicas: int) -> float:
    """Steps, checkpoint, its note and the marker by one; a shard by every worker."""
    return 4.0 + (0 if kind == "checkpoints" else replicas)


def segment_puts(
    work: Workload, kind: Kind, replicas: int, measured: Measured, assumed: Assumed
) -> float:
    """Of a segment: each object at least one, more where it goes up in parts."""

    def parts(size: float) -> float:
        return min(max(1.0, size / assumed.part_bytes), assumed.most_parts)

    record = segment_bytes(work, kind, measured) - work.checkpoint_bytes
    shards = segment_objects(kind, replicas) - 4.0
    others = 3.0 + parts(work.checkpoint_bytes)
    return others + (shards * parts(record / shards) if shards else 0.0)


def replay_days(
    work: Workload, kind: Kind, gpus: int, measured: Measured, assumed: Assumed
) -> float:
    """To re-execute the whole run for a record, each replica a segment at a time, no all-reduce."""
    replica = gpus_per_replica(work, assumed)
    replicas = min(gpus // replica, work.segments)
    waves = math.ceil(work.segments / replicas)
    datums = work.batch * work.segment_steps
    compute = datums * work.datum_flops / (replica * assumed.gpu_flops)
    busy = compute * (1.0 + measured.recording[kind]) + work.segment_steps * assumed.step_seconds
    moved = (segment_bytes(work, kind, measured)) * replicas / store_speed(gpus, assumed)
    return waves * max(busy, moved) / DAY_SECONDS
