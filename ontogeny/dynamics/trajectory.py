"""Measure metrics at the checkpoints of training: the public function of trajectories."""

from os import PathLike

from analysis.run.run import Run
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.tables import Trajectory
from analysis.trajectory.trajectory import (
    trajectory_of_run,
    trajectory_question,
    write_trajectory,
)
from ontogeny.answers import Keep, Progress, opened_run, report_to


def trajectory(
    run: Run | str | PathLike[str],
    config: TrajectoryConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Trajectory:
    """Measure metrics of a run's model at the checkpoints of its training.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Metrics, steps and text; by default all metrics at 12 log-spaced checkpoints.
        save: Also write the tables and a page with plots to the run.
        name: Keep the tables beside others, under ``analysis/trajectory/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with checkpoints done and in all.

    Returns:
        DataFrames ``trajectory`` (step, metric, component, value, n, standard_error, null),
        ``metrics`` (what each measures) and ``checkpoints``; ``series(metric, component)`` returns
        one curve.

    Raises:
        ConfigError: A metric is not known or cannot be measured, or there are fewer than two
            checkpoints.
        RunError: The run's model is not known (a custom loop), or a step cannot be replayed.
        ReplayError: Replay on this machine does not arrive at the stored checkpoints.

    Example:
        >>> config = ontogeny.TrajectoryConfig(metrics=("loss", "ngram_kl"), checkpoints=3)
        >>> found = ontogeny.trajectory("runs/demo", config)
        >>> bool(found.series("loss")["value"].iloc[-1] < found.series("loss")["value"].iloc[0])
        True
    """
    opened, chosen = opened_run(run), config or TrajectoryConfig()
    report = report_to(progress)
    return Keep(save, name, replace).answer(
        opened,
        trajectory_question(chosen),
        lambda: trajectory_of_run(opened, chosen, report),
        write_trajectory,
    )
