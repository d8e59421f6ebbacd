"""Compare runs: settings, milestones, stability over seeds, kinds of outcome, parting, layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.jobs.question import Question
from analysis.jobs.tables import table_set, write_tables
from analysis.run.run import Run
from analysis.transitions.curves import MAX_POINTS, Curve, curves_of
from analysis.transitions.runs.parting import find_parting
from analysis.transitions.runs.settings import describe
from analysis.transitions.runs.shares import find_shares
from analysis.transitions.runs.similarity import find_similarity
from analysis.transitions.runs.stability import (
    FEWEST_FOR_OUTLIERS,
    FEWEST_FOR_TWO_KINDS,
    find_outcomes,
    find_outliers,
    find_stability,
    quantities,
)
from analysis.transitions.runs.tables import (
    CURVES,
    MILESTONES,
    SCHEMAS,
    Comparison,
)
from analysis.transitions.shape.half import find_half
from analysis.transitions.sources import choose_metrics, frame_of
from capture.errors import ConfigError, at_least

Report = Callable[[int, int], None]
"""Called with runs read and all runs."""
LAST = 0.05
"""Share of a curve's points whose mean is its end, if it has ``MAX_POINTS`` points or nearly."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which curves to compare."""

    metrics: Sequence[str] = ()
    """Names of metrics, one may stand without a list; empty for all that the runs have."""
    trajectory: str = ""
    """Name of the tables of ``ontogeny trajectory`` to read; "" for the unnamed ones."""
    draws: int = 199
    """Draws of each bootstrap."""
    seed: int = 0

    def __post_init__(self) -> None:
        metrics = (self.metrics,) if isinstance(self.metrics, str) else tuple(self.metrics)
        object.__setattr__(self, "metrics", metrics)
        at_least("compare.draws", self.draws, 99)
        at_least("compare.seed", self.seed, 0)


def compare_runs(
    runs: Sequence[Run], config: CompareConfig, report: Report | None = None
) -> Comparison:
    """Compare two runs or more; raises ``ConfigError`` for fewer, and for an unknown metric."""
    if len({run.uri for run in runs}) < max(2, len(runs)):
        problem = f"got {len(runs)} runs, must be two or more, each once"
        raise ConfigError("compare", problem, "Name the runs: ontogeny compare RUN RUN")
    frames, miles = [], []
    for done, run in enumerate(runs):
        chosen = choose_metrics(frame_of(run, config.trajectory), config.metrics, run.uri)
        curves = curves_of(chosen)
        frames += [curve_frame(run.uri, curve) for curve in curves]
        miles.append(milestones(run.uri, curves, config))
        if report:
            report(done + 1, len(runs))
    described = describe(runs)
    table = pd.concat(miles, ignore_index=True)
    values = quantities(table, dict(zip(described["run"], described["group"], strict=True)))
    outcomes = find_outcomes(values)
    similarity, without = find_similarity(runs, seed=config.seed)
    return Comparison(
        runs=described,
        milestones=table,
        stability=find_stability(values),
        outliers=find_outliers(values, seed=config.seed),
        outcomes=outcomes,
        shares=find_shares(values, outcomes, seed=config.seed),
        parting=find_parting(runs),
        similarity=similarity,
        curves=pd.concat(frames, ignore_index=True),
        notes=[*too_few(described), *without],
    )


def curve_frame(uri: str, curve: Curve) -> pd.DataFrame:
    own = {"run": uri, "metric": curve.metric, "component": curve.component}
    return pd.DataFrame(
        own | {"step": curve.step_K, "value": curve.value_K}, columns=pd.Index(CURVES.names)
    )


def milestones(uri: str, curves: Sequence[Curve], config: CompareConfig) -> pd.DataFrame:
    """Return ``MILESTONES`` of one run."""
    rows: list[dict[str, Any]] = []
    for curve in curves:
        last = max(1, round(LAST * len(curve.u_K))) if len(curve.u_K) > MAX_POINTS // 2 else 1
        row = {"run": uri, "metric": curve.metric, "component": curve.component}
        row |= {"start": curve.value_K[0], "end": float(curve.value_K[-last:].mean())}
        if curve.changes:
            rng = np.random.default_rng([config.seed, *curve.name.encode()])
            half = find_half(curve, config.draws, rng)
            row |= {"half_step": half.step, "half_low": half.low, "half_high": half.high}
        rows.append(row)
    table = pd.DataFrame(rows, columns=pd.Index(MILESTONES.names))
    place = table["half_step"].astype(np.float64).rank(method="first")
    return table.assign(place=place.fillna(0).astype(np.int32))


def too_few(described: pd.DataFrame) -> list[str]:
    """Return sentences about tests that need more runs."""
    most = int(described["group"].value_counts().max())
    lines = []
    if most < FEWEST_FOR_OUTLIERS:
        lines.append(f"Outlier runs are named among {FEWEST_FOR_OUTLIERS} runs or more.")
    if most < FEWEST_FOR_TWO_KINDS:
        lines.append(f"Two kinds of outcome need {FEWEST_FOR_TWO_KINDS} runs or more.")
    return lines


def compare_question(command: str, config: CompareConfig, runs: Sequence[str]) -> Question:
    """Return the question, with the places of all runs."""
    asked = Question.of(command, config)
    return replace(asked, options=asked.options | {"runs": list(runs)})


def write_comparison(run: Run, found: Comparison, question: Question, name: str = "") -> None:
    """Write the tables beside the first run, in place of those with the same name."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    write_tables(run, table_set(question.command, name), frames, SCHEMAS, question)
