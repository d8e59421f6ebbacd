"""Group predictions that were learned together: the public function of quanta."""

from os import PathLike

from analysis.run.run import Run
from analysis.transitions.quanta.config import QuantaConfig
from analysis.transitions.quanta.places import quanta_of_run, quanta_question, write_quanta
from analysis.transitions.quanta.tables import Quanta
from ontogeny.answers import Keep, Progress, opened_run, report_to


def quanta(
    run: Run | str | PathLike[str],
    config: QuantaConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Quanta:
    """Group positions of held-out text by their gradients, and say when each group was learned.

    Quanta discovery of Michaud et al. 2023, beside clusters of the positions' loss curves.

    Args:
        run: A run, or the folder or prefix where it is.
        config: Number of clusters and positions, checkpoints and text.
        save: Also write the tables and a page with plots to the run.
        name: Keep the tables beside others, under ``analysis/quanta/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with checkpoints done and in all.

    Returns:
        DataFrames ``clusters`` (size, cosine and its null, half step, verdict), ``curves`` (mean
        loss of each cluster at each checkpoint), ``changes`` (change points), ``positions`` and
        ``falls`` (the sudden share of the fall of all loss, beside shuffled draws).

    Raises:
        ConfigError: There are fewer than 8 checkpoints, too few positions, the model has no layers,
            or a package of the extra ``dynamics`` is not installed.
        UnitError: The gradient of a unit cannot be split by position.
        RunError: The run's model is not known (a custom loop), or a step cannot be replayed.

    Example:
        >>> few = ontogeny.QuantaConfig(
        ...     clusters=3, positions=40, steps="0:9", draws=1, units="layers.0.linear1.weight"
        ... )
        >>> found = ontogeny.quanta("runs/demo", few)
        >>> found.clusters.groupby("kind")["positions"].sum().tolist()
        [40, 40]
    """
    opened, chosen = opened_run(run), config or QuantaConfig()
    report = report_to(progress)
    return Keep(save, name, replace).answer(
        opened,
        quanta_question(chosen),
        lambda: quanta_of_run(opened, chosen, report),
        write_quanta,
    )
