"""The segments of a planned run: how many steps each has, and which are recorded."""

from capture.config.records import RecordKind
from capture.engine.step_plan import StepPlan


def segment_lengths(plan: StepPlan) -> list[int]:
    """Return the number of steps of each segment."""
    most = plan.config.capture.segment_steps
    return [min(most, plan.num_steps - first) for first in range(0, plan.num_steps, most)]


def recorded_lengths(plan: StepPlan, kind: RecordKind) -> list[int]:
    """Return the number of steps of each segment that is not recorded without this kind."""
    capture = plan.config.capture
    starts = range(0, plan.num_steps, capture.segment_steps)
    each = zip(starts, segment_lengths(plan), strict=True)
    return [steps for first, steps in each if not capture.leaves_out(kind, first)]
