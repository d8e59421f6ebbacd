"""Tables of ``ontogeny transitions``."""

from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

JOB = "transitions"
RUN = [pa.field("run", pa.string())]
CURVE = [pa.field("metric", pa.string()), pa.field("component", pa.string())]
SUDDEN, STEEP, GRADUAL = "sudden", "steep", "gradual"
UNRESOLVED, UNCHANGED, SHORT = "unresolved", "unchanged", "too few points"
CONSTANT = "constant"
"""Verdicts of ``CURVES``."""
BEFORE, AFTER, TOGETHER = "before", "after", "together"
"""Relations of ``ORDER``."""

CURVES = pa.schema(
    [
        *(*RUN, *CURVE),
        pa.field("points", pa.int32()),
        pa.field("change", pa.float64()),  # largest less smallest value
        pa.field("noise", pa.float64()),  # jitter from point to point, median
        pa.field("rises", pa.bool_()),
        pa.field("half_step", pa.float64()),  # half of the change is made; NaN if unchanged
        pa.field("half_low", pa.float64()),  # 95 % interval
        pa.field("half_high", pa.float64()),
        pa.field("share", pa.float64()),  # largest share of the change while the step doubles
        pa.field("window_first", pa.float64()),  # shortest stretch with 80 % of it, in steps
        pa.field("window_end", pa.float64()),
        pa.field("p_smooth", pa.float64()),  # power laws with the same noise reach this share
        pa.field("p_walk", pa.float64()),  # Brownian motion over log steps does
        pa.field("q", pa.float64()),  # of the larger p, over the curves of a run
        pa.field("verdict", pa.string()),
    ]
)
POINTS = pa.schema(
    [
        *(*RUN, *CURVE),
        pa.field("step", pa.float64()),  # mean step of a bin, if there are many
        pa.field("value", pa.float64()),
        pa.field("standard_error", pa.float64()),  # over held-out datums; 0 if unknown
    ]
)
CHANGES = pa.schema(
    [
        *(*RUN, *CURVE),
        pa.field("step", pa.float64()),  # between the two segments
        pa.field("low", pa.float64()),  # 95 % interval
        pa.field("high", pa.float64()),
        pa.field("share", pa.float64()),  # of the curve's change, while the step doubles around it
        pa.field("gain", pa.float64()),  # share of the residual that the cut explains
        pa.field("p_smooth", pa.float64()),  # of the gain
        pa.field("p_walk", pa.float64()),
    ]
)
ORDER = pa.schema(
    [
        *CURVE,
        pa.field("other_metric", pa.string()),
        pa.field("other_component", pa.string()),
        pa.field("runs", pa.int32()),  # in which both change
        pa.field("factor", pa.float64()),  # half step of the other / own half step, geometric mean
        pa.field("low", pa.float64()),  # 95 % interval of the factor
        pa.field("high", pa.float64()),
        pa.field("lead_steps", pa.float64()),  # half step of the other less own, mean over runs
        pa.field("relation", pa.string()),  # before: this curve is first
    ]
)
COINCIDENCE = pa.schema(
    [
        *(*RUN, *CURVE),
        pa.field("loss", pa.string()),  # the loss compared with
        pa.field("loss_share", pa.float64()),  # of the loss's change, made inside the window
        pa.field("null_share", pa.float64()),  # median over equal windows anywhere
        pa.field("p", pa.float64()),  # share of these windows with as much
        pa.field("q", pa.float64()),
        pa.field("relation", pa.string()),  # of the half steps of the curve and the loss
    ]
)
WARNINGS = pa.schema(
    [
        *CURVE,
        pa.field("target", pa.string()),
        pa.field("runs", pa.int32()),
        pa.field("lead_steps", pa.float64()),  # target's half step less own, mean over runs
        pa.field("lead_low", pa.float64()),  # 95 % interval
        pa.field("lead_high", pa.float64()),
        pa.field("earlier", pa.bool_()),  # the interval lies above 0
        pa.field("correlation", pa.float64()),  # Spearman, of half steps over runs; NaN below 5
        pa.field("p", pa.float64()),  # of the correlation, by permutation
    ]
)
STATES = pa.schema(
    [
        *RUN,
        pa.field("step", pa.float64()),
        pa.field("state", pa.int32()),  # numbered by first visit
        pa.field("probability", pa.float64()),  # posterior
    ]
)
STATE_MEANS = pa.schema(
    [
        pa.field("state", pa.int32()),
        *CURVE,
        pa.field("mean", pa.float64()),  # standard deviations from the mean over runs and steps
        pa.field("spread", pa.float64()),  # standard deviation in the state, same unit
    ]
)
STATE_CHANGES = pa.schema(
    [
        pa.field("state", pa.int32()),
        pa.field("next", pa.int32()),
        pa.field("count", pa.int32()),  # over all runs
        pa.field("probability", pa.float64()),  # of the fitted model
        pa.field("first_step", pa.float64()),  # at which it happens, earliest run; NaN for never
    ]
)
STATE_SUMMARY = pa.schema(
    [
        pa.field("state", pa.int32()),
        pa.field("occupancy", pa.float64()),  # share of all points
        pa.field("runs", pa.int32()),  # that visit it
        pa.field("runs_without", pa.int32()),
        pa.field("slower", pa.float64()),  # half step of the target with / without it; NaN if all
        pa.field("p", pa.float64()),  # of slower, by permutation of runs
        pa.field("q", pa.float64()),
        pa.field("detour", pa.bool_()),
    ]
)
STATE_CHOICE = pa.schema(
    [
        pa.field("states", pa.int32()),
        pa.field("bic", pa.float64()),
        pa.field("chosen", pa.bool_()),
        pa.field("null_chosen", pa.int32()),  # random walks of this shape for which BIC chose it
    ]
)
MOVED = pa.schema(
    [
        pa.field("kind", pa.string()),  # datum, neuron or direction
        pa.field("unit", pa.string()),  # of a neuron; else ""
        pa.field("number", pa.int32()),  # datum, neuron of the unit, or direction of spectrum
        pa.field("inside", pa.float64()),  # mean share of a step's shifts in the window
        pa.field("before", pa.float64()),  # NaN if it was in no step there
        pa.field("after", pa.float64()),
        pa.field("z", pa.float64()),  # the smaller of the two differences, standardised
        pa.field("p", pa.float64()),  # against all others in windows elsewhere
        pa.field("q", pa.float64()),
        pa.field("text", pa.string()),  # of a datum
    ]
)
SCHEMAS = {
    "curves": CURVES,
    "points": POINTS,
    "changes": CHANGES,
    "order": ORDER,
    "coincidence": COINCIDENCE,
    "warnings": WARNINGS,
    "states": STATES,
    "state_means": STATE_MEANS,
    "state_changes": STATE_CHANGES,
    "state_summary": STATE_SUMMARY,
    "state_choice": STATE_CHOICE,
    "moved": MOVED,
}


@dataclass(frozen=True, eq=False)
class Transitions:
    """What ``find_transitions`` found; each table has the columns of its schema."""

    curves: pd.DataFrame
    points: pd.DataFrame
    changes: pd.DataFrame
    order: pd.DataFrame
    coincidence: pd.DataFrame
    warnings: pd.DataFrame
    states: pd.DataFrame
    state_means: pd.DataFrame
    state_changes: pd.DataFrame
    state_summary: pd.DataFrame
    state_choice: pd.DataFrame
    moved: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    """What was left out, and why; one sentence each."""
