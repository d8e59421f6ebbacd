"""Find the transitions of one run or several, and write them beside the first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.jobs.job import Runner
from analysis.jobs.question import Question
from analysis.jobs.tables import table_set, write_tables
from analysis.run.names import nearest
from analysis.run.run import Run
from analysis.transitions.config import TransitionsConfig
from analysis.transitions.curves import MIN_POINTS, Curve, curves_of
from analysis.transitions.moved.movers import find_movers, window_of
from analysis.transitions.page import transitions_page
from analysis.transitions.runs.settings import require_same_settings
from analysis.transitions.shape.half import Half
from analysis.transitions.shape.shapes import Shapes, shapes_of
from analysis.transitions.sources import (
    LOSSES,
    TARGETS,
    choose_metrics,
    first_of,
    frame_of,
    without_units,
)
from analysis.transitions.tables import JOB, POINTS, SCHEMAS, Transitions
from analysis.transitions.timing.order import (
    MOST_CURVES,
    find_coincidence,
    find_order,
    find_warnings,
)
from analysis.transitions.timing.state_tables import features_of, state_tables
from analysis.transitions.timing.states import find_states
from capture.errors import ConfigError

Report = Callable[[int, int], None]
"""Called with curves tested and all curves."""
Frames = Mapping[str, pd.DataFrame]
"""Curves by run, with the columns of ``analysis.transitions.curves.COLUMNS``."""


def find_transitions(
    runs: Sequence[Run], config: TransitionsConfig, run_job: Runner, report: Report | None = None
) -> Transitions:
    """Return the transitions of runs; the record of the first is asked what moved.

    Raises ``ConfigError`` for a metric that a run has not, a run that is named twice, runs whose
    settings differ in more than seeds, and if no curve has enough points.
    """
    frames = {run.uri: frame_of(run, config.trajectory) for run in runs}
    if len(frames) < len(runs):
        raise ConfigError("RUN", "names a run twice", "Name each run once")
    require_same_settings(runs)
    found = transitions_of(frames, config, report)
    if not config.record:
        return found
    around = transition_window(found, runs[0].uri, config.around)
    if around is None:
        note = "No curve changes, so the record is not asked what moved."
        return replace(found, notes=[*found.notes, note])
    name, first, end = around
    moved, notes = find_movers(runs[0], window_of(first, end, runs[0].steps_done), run_job)
    notes = [f"What moved is asked of the window of {name}.", *notes]
    return replace(found, moved=moved, notes=[*found.notes, *notes])


def require_asked(frames: Frames, config: TransitionsConfig) -> None:
    """Raise ``ConfigError`` for a metric or a curve that no run has."""
    chosen = [choose_metrics(frame, config.metrics, uri) for uri, frame in frames.items()]
    names = {curve.name: None for frame in chosen for curve in curves_of(frame)}
    for option in ("target", "around"):
        wanted = getattr(config, option)
        if wanted and wanted not in names:
            close = nearest(wanted, list(names))
            raise ConfigError(f"transitions.{option}", f"{wanted!r} is not among the curves", close)


def transitions_of(
    frames: Frames, config: TransitionsConfig, report: Report | None = None
) -> Transitions:
    """Return the transitions of tables of curves; ``moved`` is empty.

    Raises ``ConfigError`` for an unknown metric or target, and if no curve has enough points.
    """
    uris = list(frames)
    chosen = [choose_metrics(frames[uri], config.metrics, uri) for uri in uris]
    chosen, notes = (chosen, []) if config.metrics else of_the_model(chosen)
    runs = [curves_of(frame) for frame in chosen]
    require_points(runs)
    shapes, total, done = [], sum(map(len, runs)), 0
    for uri, curves in zip(uris, runs, strict=True):
        shapes.append(shapes_of(uri, curves, draws=config.draws, seed=config.seed))
        done += len(curves)
        if report:
            report(done, total)
    halves = [each.halves for each in shapes]
    names = compared(runs, halves)
    target = choose_target(runs, halves, config.target)
    coincidence = coincidences(uris, runs, shapes)
    empty = {name: schema.empty_table().to_pandas() for name, schema in SCHEMAS.items()}
    found = {
        "curves": pd.concat([each.curves for each in shapes], ignore_index=True),
        "points": pd.concat(
            [points_of(uri, own) for uri, curves in zip(uris, runs, strict=True) for own in curves],
            ignore_index=True,
        ),
        "changes": pd.concat([each.changes for each in shapes], ignore_index=True),
        "order": find_order(halves, names, seed=config.seed),
        "coincidence": coincidence if coincidence is not None else empty["coincidence"],
    }
    if target:
        found["warnings"] = find_warnings(halves, names, target, seed=config.seed)
    if config.states and (described := features_of(runs)):
        half_R = [own[target].step if target in own else np.nan for own in halves]
        states = find_states(described[0], config.states, seed=config.seed)
        found |= state_tables(uris, *described, states, np.array(half_R), seed=config.seed)
    return Transitions(**(empty | found), notes=notes)


def of_the_model(frames: Sequence[pd.DataFrame]) -> tuple[list[pd.DataFrame], list[str]]:
    """Return the curves without those of single units, and a sentence on these."""
    parts = [without_units(frame) for frame in frames]
    most = max(count for _, count in parts)
    note = (
        f"{most} curves of single units (norms, means, variances) are left out; --metrics with "
        "their names tests them."
    )
    return [frame for frame, _ in parts], [note] if most else []


def points_of(uri: str, curve: Curve) -> pd.DataFrame:
    """Return ``POINTS`` of one curve."""
    own = {"run": uri, "metric": curve.metric, "component": curve.component}
    values = {"step": curve.step_K, "value": curve.value_K, "standard_error": curve.error_K}
    return pd.DataFrame(own | values, columns=pd.Index(POINTS.names))


def require_points(runs: Sequence[Sequence[Curve]]) -> None:
    """Raise ``ConfigError`` unless a curve has enough points to be tested."""
    most = max((len(curve.u_K) for curves in runs for curve in curves), default=0)
    if most < MIN_POINTS:
        problem = f"has {most} points at most, and a change point needs {MIN_POINTS}"
        raise ConfigError(
            "transitions",
            problem,
            "Measure more steps: ontogeny trajectory RUN --steps 0,1,2,4,8,…",
        )


def compared(
    runs: Sequence[Sequence[Curve]], halves: Sequence[Mapping[str, Half]]
) -> dict[str, tuple[str, str]]:
    """Return the names of the curves whose order is asked, the clearest changes first."""
    clear: dict[str, float] = {}
    names: dict[str, tuple[str, str]] = {}
    for curves, own in zip(runs, halves, strict=True):
        for curve in curves:
            if curve.name in own:
                ratio = curve.change / float(np.median(curve.noise_K))
                clear[curve.name] = max(ratio, clear.get(curve.name, 0.0))
                names[curve.name] = (curve.metric, curve.component)
    kept = sorted(clear, key=lambda name: -clear[name])[:MOST_CURVES]
    return {name: names[name] for name in kept}


def choose_target(
    runs: Sequence[Sequence[Curve]], halves: Sequence[Mapping[str, Half]], wanted: str
) -> str:
    """Return the target's name, "" if none changes; raise ``ConfigError`` for one that is wanted
    and does not change."""
    if not wanted:
        found = first_of(TARGETS, [curve for curves in runs for curve in curves])
        return found.name if found else ""
    if not any(wanted in own for own in halves):
        problem = why_untimed([curve for curves in runs for curve in curves], wanted)
        changing = ", ".join(sorted({name for own in halves for name in own})[:8])
        raise ConfigError(
            "transitions.target", f"{wanted!r} {problem}", f"These change: {changing or 'none'}"
        )
    return wanted


def why_untimed(curves: Sequence[Curve], wanted: str) -> str:
    """Return why no curve of this name has a half."""
    points = [len(curve.u_K) for curve in curves if curve.name == wanted]
    if not points:
        return "is not among the curves"
    if max(points) < MIN_POINTS:
        return f"has {max(points)} points and is not tested, which needs {MIN_POINTS}"
    return "does not change beyond its noise"


def coincidences(
    uris: Sequence[str], runs: Sequence[Sequence[Curve]], shapes: Sequence[Shapes]
) -> pd.DataFrame | None:
    """Return ``COINCIDENCE`` of all runs in which a loss changes; None without any."""
    found = []
    for uri, curves, tested in zip(uris, runs, shapes, strict=True):
        loss = first_of(LOSSES, curves)
        if loss:
            found.append(find_coincidence(uri, curves, tested.halves, tested.curves, loss))
    return pd.concat(found, ignore_index=True) if found else None


def transition_window(found: Transitions, uri: str, around: str) -> tuple[str, float, float] | None:
    """Return name, first and last step of the steepest window of a curve of a run.

    By default that of the first target that changes. Raises ``ConfigError`` for an unknown curve.
    """
    own = found.curves[(found.curves["run"] == uri) & found.curves["share"].notna()]
    named = {
        f"{row['metric']}:{row['component']}" if row["component"] else row["metric"]: row
        for row in own.to_dict("records")
    }
    if around and around not in named:
        problem = f"{around!r} is not a curve that changes"
        raise ConfigError("transitions.around", problem, f"These do: {', '.join([*named][:8])}")
    if not named:
        return None
    name = around or next((target for target in TARGETS if target in named), next(iter(named)))
    return name, float(named[name]["window_first"]), float(named[name]["window_end"])


def transitions_question(config: TransitionsConfig, runs: Sequence[str]) -> Question:
    """Return the question, with the places of all runs."""
    asked = Question.of(JOB, config)
    return replace(asked, options=asked.options | {"runs": list(runs)})


def write_transitions(run: Run, found: Transitions, question: Question, name: str = "") -> None:
    """Write the tables, and ``index.html`` beside them, in place of those with the same name."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    pages = {"index.html": transitions_page(found, question, run.uri)}
    write_tables(run, table_set(JOB, name), frames, SCHEMAS, question, pages)
