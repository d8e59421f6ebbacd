"""Measure metrics at checkpoints, and write them beside the run."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from analysis.jobs.question import Question
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.run.run import Run
from analysis.trajectory.checkpoints.of_run import RunCheckpoints
from analysis.trajectory.checkpoints.source import Source, observe
from analysis.trajectory.checkpoints.spacing import choose_steps
from analysis.trajectory.components.measured import (
    components_tables,
    require_checkpoints,
)
from analysis.trajectory.components.outputs import outputs_of
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.metrics.catalogue import CATALOGUE
from analysis.trajectory.metrics.choosing import Chosen, choose, require_known
from analysis.trajectory.metrics.metric import Metric
from analysis.trajectory.metrics.row import Row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, text_of_run
from analysis.trajectory.page.page import trajectory_page
from analysis.trajectory.tables import (
    CHECKPOINTS,
    JOB,
    METRICS,
    SCHEMAS,
    TRAJECTORY,
    TURNS,
    Trajectory,
)
from capture.errors import ConfigError

Report = Callable[[int, int], None]
"""Called with the checkpoints done and all of them."""
NO_VALUES = "gives no values at these checkpoints"


def trajectory_of_run(
    run: Run, config: TrajectoryConfig, report: Report | None = None
) -> Trajectory:
    """Measure a run at its checkpoints; raises what ``measure`` raises, and ``RunError``."""
    return measure(RunCheckpoints(run), text_of_run(run, config), config, report)


def measure(
    source: Source, text: Text, config: TrajectoryConfig, report: Report | None = None
) -> Trajectory:
    """Measure the chosen metrics at the chosen checkpoints.

    Raises ``ConfigError`` for fewer than two checkpoints, and for a metric that is not known or
    that the model or the text cannot give.
    """
    steps = chosen_steps(source, config)
    if config.components and not text.held_out:
        raise ConfigError("--components", "needs text to predict", "Give it with --text")
    frames, outputs = list[pd.DataFrame](), []
    chosen: Chosen | None = None
    for done, model in enumerate(observe(source, steps)):
        chosen = chosen or choose(config.metrics, model, text)
        frames.append(measured(model, text, chosen))
        outputs += [outputs_of(model, text, len(steps))] if config.components else []
        if report:
            report(done + 1, len(steps))
    assert chosen
    sources = [source.source(step) for step in steps]
    checkpoints = pd.DataFrame({"step": steps, "source": sources})
    metrics, turns = [describe(chosen, frames)], []
    if config.components:
        rows, found, own = components_tables(steps, outputs, config.components, text.seed)
        frames, turns = [*frames, rows], [found]
        given = [(each.name, each.unit, each.meaning, each.null, "") for each in own]
        metrics.append(pd.DataFrame(given, columns=pd.Index(METRICS.names)))
    described = concat_frames(metrics, METRICS)
    if text.learned:
        described["meaning"] = described["meaning"].str.replace("held-out", "training")
    return Trajectory(
        concat_frames(frames, TRAJECTORY).sort_values("step", kind="stable", ignore_index=True),
        described,
        concat_frames([checkpoints], CHECKPOINTS),
        concat_frames(turns, TURNS),
    )


def chosen_steps(source: Source, config: TrajectoryConfig) -> list[int]:
    """Return the steps to measure; raises ``ConfigError`` for too few, or unknown ones."""
    available, where = source.available, source.where
    wanted, count = str(config.steps), config.checkpoints
    steps = choose_steps(wanted, available, count, where, replays=source.replays)
    if config.components:
        require_checkpoints(len(steps))
    return steps


def require_asked(run: Run, config: TrajectoryConfig) -> None:
    """Raise ``ConfigError`` for a metric or step that does not exist."""
    chosen_steps(RunCheckpoints(run), config)
    known = [name for metric in CATALOGUE for name in metric.names]
    for name in config.metrics:
        require_known(name, known)


def measured(model: Observed, text: Text, chosen: Chosen) -> pd.DataFrame:
    """Return the rows of one checkpoint, each with the number of its metric in ``by``."""
    rows: list[tuple[int, int, *tuple[object, ...]]] = []
    for number, metric in enumerate(chosen.metrics):
        for row in rows_of(metric, model, text):
            if not isinstance(row, Row):
                wanted = "wanted rows of analysis.trajectory.metrics.row.Row"
                raise ConfigError(metric.names[0], f"returned {type(row).__name__}, {wanted}")
            if metric.own or row.metric in chosen.names:
                rows.append((model.step, number, *row))
    return pd.DataFrame(rows, columns=pd.Index(["step", "by", *Row._fields]))


def rows_of(metric: Metric, model: Observed, text: Text) -> list[object]:
    """Return what a metric gives; raise ``ConfigError`` if one of the user's own fails."""
    if not metric.own:
        return list(metric.function(model, text))
    try:
        return list(metric.function(model, text))
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"failed at step {model.step} with {said}"
        raise ConfigError(metric.names[0], problem, "Mend this function") from error


def describe(chosen: Chosen, frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return ``METRICS``: those measured, those of the user's own, and those left out."""
    known = {each.name: each for metric in CATALOGUE for each in metric.gives}
    listed = {name: known[name] for name in known if name in chosen.names | chosen.omitted.keys()}
    own = (frame[["metric", "by"]].drop_duplicates() for frame in frames)
    for name, number in pd.concat(own).itertuples(index=False):
        listed.setdefault(name, replace(chosen.metrics[number].gives[0], name=name))
    found = {name for frame in frames for name in frame["metric"]}
    why = {name: "" if name in found else NO_VALUES for name in listed} | chosen.omitted
    rows = [(name, each.unit, each.meaning, each.null, why[name]) for name, each in listed.items()]
    return pd.DataFrame(rows, columns=pd.Index(METRICS.names))


def trajectory_question(config: TrajectoryConfig) -> Question:
    return Question.of(JOB, config)


def write_trajectory(run: Run, found: Trajectory, question: Question, name: str = "") -> None:
    """Write the tables, and ``index.html`` beside them, in place of those with the same name."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    pages = {"index.html": trajectory_page(found, question, run.uri)}
    write_tables(run, table_set(JOB, name), frames, SCHEMAS, question, pages)
