"""Estimate what a run costs for each kind of file: bytes, objects, requests, time and memory.

The number of objects and the bytes of checkpoints and corpus follow from the plan exactly. Bytes of
other tables are estimated from the bytes per row that a calibration measured.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from capture.config.records import KINDS
from capture.engine.step_plan import StepPlan
from capture.estimates.calibration import EVERYTHING, PLAIN, Calibration
from capture.estimates.run_counts import RunCounts, count_run
from capture.estimates.segments import recorded_lengths
from capture.format.corpus_tables import corpus_tables
from capture.format.factor_parts import rows_of_parts
from capture.format.markers import File
from capture.format.tally_tables import TOKENS_PER_GROUP
from capture.shards import encoding as shards
from capture.shifts.tallies import tallied_units
from capture.store.config import PART_BYTES

MARKER_BYTES, FILE_BYTES = 350, 300
"""Size of a marker without files, and what each file that it lists adds."""
EVALUATION_BYTES = 3_000
"""Size of a table with one or two rows."""
RUN_YAML_BYTES = 2_500
FLOAT_BYTES = 4
ENCODING_COPIES = 3
"""Copies of a segment's outliers in memory while they are sorted and encoded."""
ROW_BYTES = 28
"""Size of an outlier in memory."""
CHECKPOINT_COPIES = 2
"""Copies of a checkpoint in memory while it is stored: the tensors and their bytes."""
PACKING_COPIES = 4.3
"""Copies of a factor table in memory while it is packed, as measured: the arrays, their byte planes
and Parquet's buffers."""


@dataclass(frozen=True)
class Cost:
    """What one kind of file costs over a whole run."""

    kind: str
    num_bytes: int = 0
    objects: int = 0
    requests: int = 0
    """Write requests as an object store counts them. Large objects are written in parts."""
    step_seconds: float = 0.0
    """Seconds that making the record adds to a step, without packing and storing."""
    memory_bytes: int = 0
    """Peak memory of the record, beside the model's own."""


def estimate_costs(plan: StepPlan, found: Calibration) -> list[Cost]:
    """Estimate every kind of file, including those that the configuration does not record."""
    counts = count_run(plan)
    added = {kind: added_seconds(found, kind) for kind in KINDS}
    each = [
        corpus_cost(plan),
        cost_of_files("steps", counts.segments, steps_bytes(counts, found)),
        cost_of_files("evaluations", counts.evaluations, EVALUATION_BYTES * counts.evaluations),
        checkpoint_cost(counts, found),
        outlier_cost(plan, counts, found, added["outliers"]),
        tally_cost(plan, counts, found, added["tallies"]),
        factor_cost(plan, counts, found, added["factors"]),
    ]
    return [*each, marker_cost(plan, counts, each)]


def added_seconds(found: Calibration, kind: str) -> float:
    """Return the seconds that a kind of record adds to a step, including the cost of the tape."""
    alone = next(own for kinds, own in found.step_seconds.items() if kinds == {kind})
    return max(0.0, alone - found.step_seconds[PLAIN])


def cost_of_files(kind: str, objects: int, num_bytes: float, **others: Any) -> Cost:
    """Return the cost of ``objects`` files of equal size, ``num_bytes`` in all."""
    size = num_bytes / objects if objects else 0
    return Cost(kind, round(num_bytes), objects, objects * put_requests(size), **others)


def put_requests(num_bytes: float) -> int:
    """Return the requests for one object: one, or begin, end and one for each part."""
    return 1 if num_bytes <= 2 * PART_BYTES else 2 + math.ceil(num_bytes / PART_BYTES)


def corpus_cost(plan: StepPlan) -> Cost:
    """Return the cost of the configuration and the corpus."""
    tables = corpus_tables(plan.corpus).values()
    sizes = [len(shards.encode(table)) for table in tables]
    requests = 1 + sum(map(put_requests, sizes))
    return Cost("corpus", sum(sizes) + RUN_YAML_BYTES, 1 + len(sizes), requests)


def checkpoint_cost(counts: RunCounts, found: Calibration) -> Cost:
    """Return the cost of one checkpoint before the first step and one after each segment."""
    size = segment_checkpoint_bytes(found)
    requests = put_requests(found.start_bytes) + counts.segments * put_requests(size)
    total = checkpoint_bytes(found, counts.segments)
    memory = CHECKPOINT_COPIES * size
    return Cost("checkpoints", total, counts.segments + 1, requests, memory_bytes=memory)


def outlier_cost(plan: StepPlan, counts: RunCounts, found: Calibration, seconds: float) -> Cost:
    """Return the cost of one table of outliers per recorded segment and worker."""
    config, lengths = plan.config.capture, recorded_lengths(plan, "outliers")
    per_step = config.outliers.rows_of_step(found.layout.sizes, plan.config.training.batch)
    size = row_bytes(found, "outliers") * per_step * sum(lengths)
    memory = ENCODING_COPIES * ROW_BYTES * per_step * max(lengths, default=0)
    objects = len(lengths) * plan.config.workers.count
    seconds *= sum(lengths) / counts.steps
    return cost_of_files("outliers", objects, size, step_seconds=seconds, memory_bytes=memory)


def tally_cost(plan: StepPlan, counts: RunCounts, found: Calibration, seconds: float) -> Cost:
    """Return the cost of tallies, which have bytes per row and an overhead per row group."""
    widths = tallied_units(found.layout, plan.config.capture.tally)
    (few, short), (many, long) = (rows_and_bytes(files, "tallies") for files in found.segments)
    if not many > few:
        return Cost("tallies")
    row = (long - short) / (many - few)
    overhead = (long - row * many) / (2 * len(widths))
    tokens = [count for window in counts.windows for count in window]
    groups = sum(math.ceil(count / TOKENS_PER_GROUP) for count in tokens)
    size = len(widths) * (overhead * groups + row * sum(tokens))
    vocabulary = len(plan.corpus.vocabulary.tokens)
    # Two tallies (update norm, ablation estimate) by two kinds of token (target, input).
    sums = 2 * 2 * vocabulary * sum(widths.values()) * FLOAT_BYTES
    objects = len(widths) * len(tokens)
    return cost_of_files("tallies", objects, size, step_seconds=seconds, memory_bytes=2 * sums)


def factor_cost(plan: StepPlan, counts: RunCounts, found: Calibration, seconds: float) -> Cost:
    """Return the cost of factor tables, each packed as soon as it is full."""
    lengths = recorded_lengths(plan, "factors")
    share = sum(lengths) / counts.steps
    size = row_bytes(found, "factors") * counts.datums * share
    tables = [rows for steps in lengths for rows in factor_table_rows(plan, found, steps)]
    held = max(tables, default=0) * found.factor_row_bytes
    memory = round(held * (1 + PACKING_COPIES * max(1, found.packing_threads)))
    seconds *= share
    return cost_of_files("factors", len(tables), size, step_seconds=seconds, memory_bytes=memory)


def factor_table_rows(plan: StepPlan, found: Calibration, steps: int) -> list[int]:
    """Return the rows of each factor table of a segment with ``steps`` steps, of all workers."""
    workers = plan.config.workers.count
    datums = plan.config.training.batch // workers
    return rows_of_parts(found.factor_row_bytes, steps=steps, datums=datums) * workers


def marker_cost(plan: StepPlan, counts: RunCounts, each: Sequence[Cost]) -> Cost:
    """Return the cost of the start's and the segments' markers, which list the recorded files."""
    listed = sum(cost.objects for cost in each if is_recorded(plan, cost.kind))
    objects = counts.segments + 1
    return cost_of_files("markers", objects, MARKER_BYTES * objects + FILE_BYTES * listed)


def is_recorded(plan: StepPlan, kind: str) -> bool:
    """Whether the configuration records this kind of file."""
    return kind not in KINDS or kind in plan.config.capture.kinds


def steps_bytes(counts: RunCounts, found: Calibration) -> float:
    """Estimate the bytes of all ``steps`` tables, rather too high for long segments."""
    (few, short), (many, long) = (rows_and_bytes(files, "steps") for files in found.segments)
    row = (long - short) / (many - few)
    return counts.segments * (long - row * many) + counts.steps * row


def row_bytes(found: Calibration, kind: str) -> float:
    """Return the bytes per row of one kind, as measured in the longer segment."""
    rows, num_bytes = rows_and_bytes(found.segments[1], kind)
    return num_bytes / rows if rows else 0.0


def rows_and_bytes(files: Iterable[File], kind: str) -> tuple[int, int]:
    """Return the rows and the bytes of a segment's files of one kind."""
    own = [file for file in files if file.kind == kind]
    return sum(file.rows or 0 for file in own), sum(file.num_bytes for file in own)


# --- totals ---------------------------------------------------------------------------------------


def training_seconds(plan: StepPlan, found: Calibration) -> float:
    """Estimate the run as configured: steps with their recording, evaluations, tally windows."""
    counts = count_run(plan)
    return (
        counts.steps * mean_step_seconds(plan, found)
        + counts.evaluated * found.evaluation_seconds
        + window_seconds(plan, counts, found)
    )


def mean_step_seconds(plan: StepPlan, found: Calibration) -> float:
    """Return the seconds of a step with its records, on average over all segments."""
    left_out = sum(
        added_seconds(found, kind) * (1 - sum(recorded_lengths(plan, kind)) / plan.num_steps)
        for kind in plan.config.capture.kinds
    )
    return max(found.step_seconds[PLAIN], found.recorded_seconds - left_out)


def window_seconds(plan: StepPlan, counts: RunCounts, found: Calibration) -> float:
    """Estimate the time for storing all tallies, from the time per token of a few steps."""
    rows = rows_and_bytes(found.segments[1], "tallies")[0]
    if not rows or "tallies" not in plan.config.capture.kinds:
        return 0.0
    tokens = sum(count for window in counts.windows for count in window)
    units = len(tallied_units(found.layout, plan.config.capture.tally))
    return found.window_seconds * units * tokens / rows


def checkpoint_bytes(found: Calibration, segments: int) -> int:
    """Return the bytes of all checkpoints. The first one has no optimizer state."""
    return found.start_bytes + segments * segment_checkpoint_bytes(found)


def segment_checkpoint_bytes(found: Calibration) -> int:
    """Return the bytes of a checkpoint with weights and optimizer state."""
    return rows_and_bytes(found.segments[1], "checkpoints")[1]


def dense_bytes(counts: RunCounts, found: Calibration) -> int:
    """Return the bytes of the study's method: all shifts of all datums as dense float32."""
    return FLOAT_BYTES * found.layout.size * counts.datums


@dataclass(frozen=True)
class CheckpointSpacing:
    """Storage and replay time for one distance between checkpoints."""

    segment_steps: int
    num_bytes: int
    reach_seconds: float
    """Average time to replay the steps from a checkpoint to one step, recording everything."""


def checkpoint_spacings(
    plan: StepPlan, found: Calibration, steps: Iterable[int]
) -> list[CheckpointSpacing]:
    """Compare distances between checkpoints: larger ones take less storage and longer replays."""
    step_seconds = found.step_seconds[EVERYTHING]
    return [
        CheckpointSpacing(
            each,
            checkpoint_bytes(found, math.ceil(plan.num_steps / each)),
            step_seconds * min(each, plan.num_steps) / 2,
        )
        for each in steps
    ]
