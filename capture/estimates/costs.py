"""What a run will take, kind by kind: bytes, objects, requests and time, from its plan.

Objects follow from the plan exactly, and so do the bytes of checkpoints and corpus. Bytes of other
tables are what a calibration found for a row, brought to the length of the run's own segments.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from capture.config.records import KINDS
from capture.engine.step_plan import Plan
from capture.estimates.calibration import EVERYTHING, PLAIN, Calibration
from capture.format.corpus_tables import corpus_tables
from capture.format.factor_parts import rows_of_parts
from capture.format.markers import File
from capture.format.tally_tables import TOKENS_PER_GROUP
from capture.shards import encoding as shards
from capture.shifts.tallies import tallied_units
from capture.store.config import PART_BYTES

MARKER_BYTES, FILE_BYTES = 350, 300
"""Of a marker, and what each file that it names adds."""
EVALUATION_BYTES = 3_000
"""A table of one or two losses."""
RUN_YAML_BYTES = 2_500
FLOAT_BYTES = 4
ENCODING_COPIES = 3
"""A segment's rows in memory while they are sorted and packed, counted in copies."""
ROW_BYTES = 28
"""An outlier in memory."""
CHECKPOINT_COPIES = 2
"""Of a checkpoint while it is stored: the tensors and their bytes."""
PACKING_COPIES = 4.3
"""Of a table of factors while it is packed: as it came, in planes, and Parquet's (measured)."""


@dataclass(frozen=True)
class Cost:
    """What one kind of file takes over a whole run."""

    kind: str
    num_bytes: int = 0
    objects: int = 0
    requests: int = 0
    """Writes, as an object store counts them: large objects go in parts."""
    step_seconds: float = 0.0
    """What making it adds to a step, neither packed nor stored."""
    memory_bytes: int = 0
    """Held at most, besides the model's own."""


@dataclass(frozen=True)
class Course:
    """How many of everything a run has."""

    steps: int
    datums: int
    """Shown to the model, over all epochs."""
    segments: int
    evaluations: int
    """Segments in which a held-out split is evaluated."""
    evaluated: int
    """Held-out datums, over all epochs."""
    windows: tuple[tuple[int, int], ...]
    """Of training, for tallies: different targets and different inputs."""


def course_of(plan: Plan) -> Course:
    """Counted, not estimated."""
    training, capture = plan.config.training, plan.config.capture
    held_out = [datums for datums in (plan.corpus.validation, plan.corpus.test) if datums]
    ends = {turn // capture.segment_steps for turn in epoch_ends(plan)} if held_out else set()
    return Course(
        plan.num_steps,
        plan.num_steps * training.batch,
        len(lengths(plan)),
        len(ends),
        training.epochs * sum(map(len, held_out)),
        tuple(tokens_by_window(plan)),
    )


def epoch_ends(plan: Plan) -> Iterable[int]:
    """The last step of each epoch."""
    per_epoch = plan.steps_per_epoch
    return range(per_epoch - 1, plan.num_steps, per_epoch)


def tokens_by_window(plan: Plan) -> Iterator[tuple[int, int]]:
    """Different targets and inputs of each window of training."""
    datums: list[np.ndarray] = []
    train = plan.corpus.train
    for turn in plan.turns(0):
        datums.append(turn.datum_N)
        if turn.ends_window:
            seen = np.concatenate(datums)
            yield len(np.unique(train.target_NT[seen])), len(np.unique(train.token_NT[seen]))
            datums = []


def costs_of(plan: Plan, found: Calibration) -> list[Cost]:
    """What each kind of file takes, whether the configuration records it or not."""
    course = course_of(plan)
    added = {kind: added_seconds(found, kind) for kind in KINDS}
    each = [
        start(plan),
        files("steps", course.segments, steps_bytes(course, found)),
        files("evaluations", course.evaluations, EVALUATION_BYTES * course.evaluations),
        checkpoints(course, found),
        outliers(plan, course, found, added["outliers"]),
        tallies(plan, course, found, added["tallies"]),
        factors(plan, course, found, added["factors"]),
    ]
    return [*each, markers(plan, course, each)]


def added_seconds(found: Calibration, kind: str) -> float:
    """What a kind adds to a step: the way from factors to it, the tape's share included."""
    alone = next(own for kinds, own in found.step_seconds.items() if kinds == {kind})
    return max(0.0, alone - found.step_seconds[PLAIN])


def files(kind: str, objects: int, num_bytes: float, **others: Any) -> Cost:
    """So many files of one size."""
    size = num_bytes / objects if objects else 0
    return Cost(kind, round(num_bytes), objects, objects * put_requests(size), **others)


def put_requests(num_bytes: float) -> int:
    """Requests that writing an object takes: one, or its parts, their begin and their end."""
    return 1 if num_bytes <= 2 * PART_BYTES else 2 + math.ceil(num_bytes / PART_BYTES)


def start(plan: Plan) -> Cost:
    """Configuration and corpus."""
    tables = corpus_tables(plan.corpus).values()
    sizes = [len(shards.encode(table)) for table in tables]
    requests = 1 + sum(map(put_requests, sizes))
    return Cost("corpus", sum(sizes) + RUN_YAML_BYTES, 1 + len(sizes), requests)


def checkpoints(course: Course, found: Calibration) -> Cost:
    """One before the first step and one after each segment."""
    size = segment_checkpoint_bytes(found)
    requests = put_requests(found.start_bytes) + course.segments * put_requests(size)
    total = checkpoint_bytes(found, course.segments)
    memory = CHECKPOINT_COPIES * size
    return Cost("checkpoints", total, course.segments + 1, requests, memory_bytes=memory)


def outliers(plan: Plan, course: Course, found: Calibration, seconds: float) -> Cost:
    """A table for each segment and worker."""
    config = plan.config.capture
    per_step = config.outliers.k
    per_step *= plan.config.training.batch if config.outliers.scope == "datum" else 1
    steps = min(config.segment_steps, course.steps)
    size = row_bytes(found, "outliers") * per_step * course.steps
    memory = ENCODING_COPIES * ROW_BYTES * per_step * steps
    objects = course.segments * plan.config.workers.count
    return files("outliers", objects, size, step_seconds=seconds, memory_bytes=memory)


def tallies(plan: Plan, course: Course, found: Calibration, seconds: float) -> Cost:
    """Tables of a column a neuron: each group of rows has a frame, which small ones mostly are."""
    widths = tallied_units(found.layout, plan.config.capture.tally)
    (few, short), (many, long) = (size_of(files, "tallies") for files in found.segments)
    if not many > few:
        return Cost("tallies")
    row = (long - short) / (many - few)
    frame = (long - row * many) / (2 * len(widths))
    tokens = [count for window in course.windows for count in window]
    groups = sum(math.ceil(count / TOKENS_PER_GROUP) for count in tokens)
    size = len(widths) * (frame * groups + row * sum(tokens))
    vocabulary = len(plan.corpus.vocabulary.tokens)
    sums = 2 * 2 * vocabulary * sum(widths.values()) * FLOAT_BYTES
    objects = len(widths) * len(tokens)
    return files("tallies", objects, size, step_seconds=seconds, memory_bytes=2 * sums)


def factors(plan: Plan, course: Course, found: Calibration, seconds: float) -> Cost:
    """Tables that are packed as soon as they are full; the next one fills meanwhile."""
    size = row_bytes(found, "factors") * course.datums
    tables = [table for steps in lengths(plan) for table in tables_of(plan, found, steps)]
    held = max(tables) * found.factor_row_bytes
    memory = round(held * (1 + PACKING_COPIES * max(1, found.packers)))
    return files("factors", len(tables), size, step_seconds=seconds, memory_bytes=memory)


def tables_of(plan: Plan, found: Calibration, steps: int) -> list[int]:
    """Rows of the tables of factors that a segment of so many steps is cut into, by each worker."""
    workers = plan.config.workers.count
    datums = plan.config.training.batch // workers
    return rows_of_parts(found.factor_row_bytes, steps=steps, datums=datums) * workers


def lengths(plan: Plan) -> list[int]:
    """Steps of each segment."""
    most = plan.config.capture.segment_steps
    return [min(most, plan.num_steps - first) for first in range(0, plan.num_steps, most)]


def markers(plan: Plan, course: Course, each: Sequence[Cost]) -> Cost:
    """The start's and the segments' markers, which name the files of what is recorded."""
    named = sum(cost.objects for cost in each if is_recorded(plan, cost.kind))
    objects = course.segments + 1
    return files("markers", objects, MARKER_BYTES * objects + FILE_BYTES * named)


def is_recorded(plan: Plan, kind: str) -> bool:
    """Whether the configuration makes files of this kind."""
    return kind not in KINDS or kind in plan.config.capture.kinds


def steps_bytes(course: Course, found: Calibration) -> float:
    """A table's frame, and its rows: what three more of them have added, which is soon less."""
    (few, short), (many, long) = (size_of(files, "steps") for files in found.segments)
    row = (long - short) / (many - few)
    return course.segments * (long - row * many) + course.steps * row


def row_bytes(found: Calibration, kind: str) -> float:
    rows, num_bytes = size_of(found.segments[1], kind)
    return num_bytes / rows if rows else 0.0


def size_of(files: Iterable[File], kind: str) -> tuple[int, int]:
    """Rows and bytes of a segment's files of one kind."""
    own = [file for file in files if file.kind == kind]
    return sum(file.rows or 0 for file in own), sum(file.num_bytes for file in own)


# --- the whole ------------------------------------------------------------------------------------


def training_seconds(plan: Plan, found: Calibration) -> float:
    """The whole run as configured: steps with their recording, evaluations, windows of tallies."""
    course = course_of(plan)
    return (
        course.steps * found.recorded_seconds
        + course.evaluated * found.evaluation_seconds
        + window_seconds(plan, course, found)
    )


def window_seconds(plan: Plan, course: Course, found: Calibration) -> float:
    """Storing all windows' tallies: as long a token as it took for those of a few steps."""
    rows = size_of(found.segments[1], "tallies")[0]
    if not rows or "tallies" not in plan.config.capture.kinds:
        return 0.0
    tokens = sum(count for window in course.windows for count in window)
    units = len(tallied_units(found.layout, plan.config.capture.tally))
    return found.window_seconds * units * tokens / rows


def checkpoint_bytes(found: Calibration, segments: int) -> int:
    """Of all of a run; the first holds weights alone."""
    return found.start_bytes + segments * segment_checkpoint_bytes(found)


def segment_checkpoint_bytes(found: Calibration) -> int:
    """Weights and the optimizer's state."""
    return size_of(found.segments[1], "checkpoints")[1]


def dense_bytes(course: Course, found: Calibration) -> int:
    """What the study's way takes: every captured parameter's shift of every datum, as float32."""
    return FLOAT_BYTES * found.layout.size * course.datums


@dataclass(frozen=True)
class Spacing:
    """What checkpoints every so many steps cost, and what they save."""

    segment_steps: int
    num_bytes: int
    reach_seconds: float
    """To take again, everything recorded, the steps to one in the middle of a segment."""


def spacings(plan: Plan, found: Calibration, steps: Iterable[int]) -> list[Spacing]:
    """Storage against latency: the farther apart checkpoints are, the more there is to replay."""
    replayed = found.step_seconds[EVERYTHING]
    return [
        Spacing(
            each,
            checkpoint_bytes(found, math.ceil(plan.num_steps / each)),
            replayed * min(each, plan.num_steps) / 2,
        )
        for each in steps
    ]
