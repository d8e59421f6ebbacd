"""Train with several seeds and compare runs: the public functions."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.run.run import Run
from analysis.transitions.runs.compare import (
    CompareConfig,
    compare_question,
    compare_runs,
    write_comparison,
)
from analysis.transitions.runs.sentences import summarise
from analysis.transitions.runs.tables import COMPARE, SEEDS, Comparison
from capture.config.reading import make_config, read_config
from capture.config.settings import Config, to_values
from capture.errors import ConfigError
from ontogeny.answers import Keep, Progress, opened_run, report_to
from ontogeny.run import open_run

if TYPE_CHECKING:
    from cluster.local.seeded_runs import Vary


def compare(
    runs: Sequence[Run | str | PathLike[str]],
    config: CompareConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare runs: where they part, milestones, stability, outlier runs and kinds of outcome.

    Args:
        runs: Two runs or more.
        config: Which curves to compare.
        save: Also write the tables to the first run.
        name: Keep the tables beside others, under ``analysis/compare/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with the number of runs read and in all.

    Returns:
        DataFrames ``runs`` (groups of equal settings), ``milestones`` (half step of each metric),
        ``stability``, ``outliers``, ``outcomes`` (one kind or two), ``shares`` (of
        the kinds in each group), ``parting`` (first step that differs, with its datums),
        ``similarity`` (linear CKA of layers at the ends) and ``curves``.

    Raises:
        ConfigError: There are fewer than two runs, or a metric is unknown.

    Example:
        >>> other = ontogeny.capture("demo", *small, "run.uri=runs/other", "run.seed=1")
        >>> found = ontogeny.compare(["runs/demo", other])
        >>> found.parting["same_weights"].tolist()
        [False]
    """
    if isinstance(runs, Run | str | PathLike):
        problem = "got one run, must be a list of two or more"
        raise ConfigError("runs", problem, "As in ontogeny.compare([run, other])")
    if not runs:
        raise ConfigError("runs", "got none, must be a list of two or more")
    opened, chosen = [opened_run(run) for run in runs], config or CompareConfig()
    report = report_to(progress)
    return Keep(save, name, replace).answer(
        opened[0],
        compare_question(COMPARE, chosen, [run.uri for run in opened]),
        lambda: compare_runs(opened, chosen, report),
        write_comparison,
    )


def seeds(
    config: str | Path | Config,
    seeds: Sequence[int],
    *overrides: str,
    vary: "Vary" = "seed",
    axis: str | None = None,
    compare: CompareConfig | None = None,
    workers: int = 1,
    save: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Train a configuration with several seeds and compare the runs.

    Runs are at ``URI-seeds/VARY-SEED``. A finished run is not trained again.

    Args:
        config: A bundled configuration, a YAML file, or a ``Config``.
        seeds: Two seeds or more.
        overrides: Settings as on the command line, such as ``"training.epochs=2"``.
        vary: What the seed changes: all (``"seed"``), initial ``"weights"``, or the ``"order"`` of
            the data.
        axis: Train with each of these values of a setting, too, such as
            ``"model.width=50,100"``; runs are then at ``URI-seeds/KEY-VALUE/VARY-SEED``.
        compare: Which curves to compare.
        workers: Runs trained at once on this machine.
        save: Also write the tables to the first run.
        progress: Called with the number of runs trained and in all.

    Returns:
        As ``ontogeny.compare``.

    Raises:
        CaptureError: A setting is wrong, a run of other settings is in the way, or training fails.

    Example:
        >>> found = ontogeny.seeds("demo", [0, 1], *small, "run.uri=runs/few", vary="order")
        >>> found.parting[["same_weights", "order_step"]].values.tolist()
        [[True, 0]]
    """
    from cluster.local.seeded_runs import seeded_configs, train_seeds
    from cluster.local.work_pool import in_processes

    if isinstance(config, Config):
        base = make_config(to_values(config), overrides)
    else:
        base = read_config(config, overrides)
    report, chosen = report_to(progress), compare or CompareConfig()
    configs = seeded_configs(base, seeds, vary, axis)
    made = train_seeds(configs, report, sweep=in_processes(workers, base.run.uri))
    runs = [open_run(uri, base.store) for uri in made]
    return Keep(save, "", replace=save).answer(
        runs[0],
        compare_question(SEEDS, chosen, made),
        lambda: compare_runs(runs, chosen),
        write_comparison,
    )


def describe_comparison(found: Comparison) -> list[str]:
    """Say in sentences what ``ontogeny.compare`` found, each claim beside its n and null.

    Args:
        found: The result of ``ontogeny.compare`` or ``ontogeny.seeds``.

    Returns:
        One text for each finding.

    Example:
        >>> found = ontogeny.seeds("demo", [0, 1], *small, "run.uri=runs/few", vary="order")
        >>> "part in step 0" in ontogeny.describe_comparison(found)[0]
        True
    """
    return summarise(found)
