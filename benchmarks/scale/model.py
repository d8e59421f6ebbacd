"""Predict the cost of a run on many GPUs from measured costs and stated assumptions.

Pure functions. Several things happen at once during a step, and the slowest one sets its length:
training with recording, the store receiving bytes, the first worker writing a checkpoint, and the
store handling requests. Training, all-reduce and recording are assumed not to overlap, so their sum
is an upper bound. The slowest one is the bottleneck; the prediction shows how it changes with the
number of GPUs.

A replica is the number of GPUs that hold the weights and the optimizer's state. The slots of a
batch are distributed over replicas. Replay has no all-reduce: each replica takes whole segments.

Units: bytes, seconds, GPUs.
"""

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.scale.workloads import FLOAT_BYTES, Workload

Kind = Literal["outliers", "tallies", "factors", "checkpoints", "dense"]
KINDS: tuple[Kind, ...] = ("outliers", "tallies", "checkpoints", "factors", "dense")
"""Kinds of record, by size for a large model. Every run also stores its checkpoints."""
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Costs measured on two CPU cores; docs/scale.md names the source of each."""

    recording: dict[Kind, float]
    """Time that recording adds, as a share of a plain step."""
    outlier_bytes: float
    """Bytes of an outlier row on the store."""
    factor_share: float
    """Bytes of factors on the store over their bytes as float32."""
    rows_per_core_second: float
    """Outlier rows that one core adds up per second in attribution."""
    shard_seconds: float
    """Worker time of an analysis per shard, without that for its rows."""
    task_seconds: float
    """Driver time per task, including the merge of its result."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """Values that were not measured. docs/scale.md lists every field."""

    gpu_flops: float = 4.0e14
    """Sustained per second by a GPU in training: 40 % of an H100's dense bfloat16."""
    gpu_memory_bytes: float = 80e9
    training_bytes: float = 18.0
    """Bytes per parameter in training: weight, gradient, two moments, a copy in bfloat16."""
    memory_share: float = 0.6
    """Share of a GPU's memory for these; activations and per-datum shifts take the rest."""
    gpus_per_node: int = 8
    cores_per_gpu: int = 8
    """CPU cores for analyses."""
    network_bytes_per_second: float = 50e9
    """Speed of a GPU in an all-reduce: 400 Gbit/s."""
    latency_seconds: float = 20e-6
    """Latency of a hop of the all-reduce."""
    node_store_bytes_per_second: float = 5e9
    """Speed between a node and the store: 40 Gbit/s."""
    store_bytes_per_second: float = 1e12
    """Speed of the store, summed over all nodes."""
    put_per_prefix_second: float = 3500.0
    """Amazon S3's documented rate per prefix; that of reads is 5,500."""
    get_per_prefix_second: float = 5500.0
    prefixes: int = 1
    """Number of partitions into which the store has split the run's keys."""
    part_bytes: float = 8 * 2**20
    """Part size of Ontogeny's multipart uploads; larger if ``most_parts`` would not suffice."""
    most_parts: int = 10_000
    checkpoint_nodes: int = 1
    """Number of nodes that write a checkpoint; in Ontogeny only that of the first worker."""
    step_seconds: float = 0.005
    """Overhead of a step of any size: kernel launches, the training loop."""
    merge_bytes_per_second: float = 1e9
    """Speed of merging two partials on one core."""
    reading_row_bytes: float = 16.0
    """Bytes of an outlier row in a partial, if no two rows share an entry."""


# --- what is stored -------------------------------------------------------------------------------


def datum_bytes(work: Workload, kind: Kind, measured: Measured) -> float:
    """Return the bytes on the store per datum and step; 0 for tallies and checkpoints.

    Those grow with the number of windows and segments, not with the batch.
    """
    sizes: dict[Kind, float] = {
        "outliers": work.outliers * measured.outlier_bytes,
        "factors": FLOAT_BYTES * work.window * work.token_floats * measured.factor_share,
        "dense": FLOAT_BYTES * work.captured,
    }
    return sizes.get(kind, 0.0)


def window_bytes(work: Workload) -> float:
    """Return the uncompressed bytes of a window's tallies.

    Every neuron and token has two values, each by target token and by input token.
    """
    return 2.0 * 2.0 * FLOAT_BYTES * work.neurons * work.vocabulary


def record_bytes(work: Workload, kind: Kind, measured: Measured) -> float:
    """Return the bytes of the whole run's record of this kind, without checkpoints of others."""
    if kind == "checkpoints":
        return work.checkpoint_bytes * (work.segments + 1)
    if kind == "tallies":
        return window_bytes(work) * work.tally_windows
    return datum_bytes(work, kind, measured) * work.datums


# --- where the time goes --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted times of a step, and totals of the run."""

    gpus: int
    replicas: int
    """Number of replicas that have slots."""
    training_seconds: float
    """Forward, backward and update, on the replica with the most slots."""
    all_reduce_seconds: float
    recording_seconds: float
    bandwidth_seconds: float
    """Time of the store to receive the bytes of a segment, divided by its steps."""
    checkpoint_seconds: float
    """Time of the writing nodes to send a checkpoint, divided by the steps of a segment."""
    request_seconds: float
    """Time of the store for the requests of a segment, divided by its steps."""
    objects: float
    """Number of objects that the whole run writes."""
    stored_bytes: float
    """Bytes that the whole run writes, checkpoints included."""
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
        """The slowest part of the step, which has to become faster for a shorter step."""
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
    """Predict training with this record; raises ``ValueError`` if one replica needs more GPUs."""
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
    """Return the time of a ring all-reduce over replicas, in which each GPU has its own ring.

    Each GPU sends its part of the gradient twice: once to reduce it, once to gather it.
    """
    if replicas == 1:
        return 0.0
    share = FLOAT_BYTES * work.parameters / replica
    sent = 2.0 * (replicas - 1) / replicas * share / assumed.network_bytes_per_second
    return sent + 2.0 * (replicas - 1) * assumed.latency_seconds


def store_speed(gpus: int, assumed: Assumed) -> float:
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    return min(nodes * assumed.node_store_bytes_per_second, assumed.store_bytes_per_second)


def segment_bytes(work: Workload, kind: Kind, measured: Measured) -> float:
    """Return the bytes of a segment: its record, a checkpoint, and its share of the tallies."""
    record = datum_bytes(work, kind, measured) * work.batch * work.segment_steps
    tallies = window_bytes(work) * work.tally_windows / work.segments if kind == "tallies" else 0.0
    return record + tallies + work.checkpoint_bytes


def segment_objects(kind: Kind, replicas: int) -> float:
    """Return the number of objects: four by the first worker, and one shard by every worker.

    The first worker writes the steps, the checkpoint, its metadata and the marker.
    """
    return 4.0 + (0 if kind == "checkpoints" else replicas)


def segment_puts(
    work: Workload, kind: Kind, replicas: int, measured: Measured, assumed: Assumed
) -> float:
    """Return the put requests of a segment: one per object, or one per part of a large object."""

    def parts(size: float) -> float:
        return min(max(1.0, size / assumed.part_bytes), assumed.most_parts)

    record = segment_bytes(work, kind, measured) - work.checkpoint_bytes
    shards = segment_objects(kind, replicas) - 4.0
    others = 3.0 + parts(work.checkpoint_bytes)
    return others + (shards * parts(record / shards) if shards else 0.0)


def replay_days(
    work: Workload, kind: Kind, gpus: int, measured: Measured, assumed: Assumed
) -> float:
    """Return the days to replay the whole run for a record.

    Each replica replays one segment at a time, without all-reduce.
    """
    replica = gpus_per_replica(work, assumed)
    replicas = min(gpus // replica, work.segments)
    waves = math.ceil(work.segments / replicas)
    datums = work.batch * work.segment_steps
    compute = datums * work.datum_flops / (replica * assumed.gpu_flops)
    busy = compute * (1.0 + measured.recording[kind]) + work.segment_steps * assumed.step_seconds
    moved = (segment_bytes(work, kind, measured)) * replicas / store_speed(gpus, assumed)
    return waves * max(busy, moved) / DAY_SECONDS
