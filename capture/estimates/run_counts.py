"""Count what a planned run has: steps, datums, segments, evaluations and tokens of its windows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from capture.engine.step_plan import StepPlan
from capture.estimates.segments import segment_lengths


@dataclass(frozen=True)
class RunCounts:
    """Exact counts of a run."""

    steps: int
    datums: int
    """Datums that the model is trained on, summed over all epochs."""
    segments: int
    evaluations: int
    """Number of segments in which a held-out split is evaluated."""
    evaluated: int
    """Held-out datums that are evaluated, summed over all evaluations."""
    windows: tuple[tuple[int, int], ...]
    """Distinct target tokens and distinct input tokens of each window of tallies."""


def count_run(plan: StepPlan) -> RunCounts:
    """Count steps, datums, segments, evaluations and tokens of a planned run."""
    training, capture = plan.config.training, plan.config.capture
    held_out = [datums for datums in (plan.corpus.validation, plan.corpus.test) if datums]
    taken = evaluated_steps(plan) if held_out else []
    ends = {step // capture.segment_steps for step in taken}
    return RunCounts(
        plan.num_steps,
        plan.num_steps * training.batch,
        len(segment_lengths(plan)),
        len(ends),
        len(taken) * sum(map(len, held_out)),
        tuple(tokens_by_window(plan)),
    )


def evaluated_steps(plan: StepPlan) -> list[int]:
    """Return the steps after which the held-out splits are evaluated."""
    last, each = plan.num_steps - 1, plan.evaluation_steps
    return sorted({*range(each - 1, plan.num_steps, each), last})


def tokens_by_window(plan: StepPlan) -> Iterator[tuple[int, int]]:
    """Yield the number of distinct targets and of distinct inputs of each window of training."""
    datums: list[np.ndarray] = []
    train = plan.corpus.train
    for step in plan.planned_steps(0):
        datums.append(step.datum_N)
        if step.ends_window:
            seen = np.concatenate(datums)
            yield len(np.unique(train.target_NT[seen])), len(np.unique(train.token_NT[seen]))
            datums = []
