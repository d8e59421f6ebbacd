"""Influence along directions of a weight's inputs or outputs."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from analysis.influence.directions.along import DirectionsConfig, influence_along
from analysis.influence.directions.tables import (
    Directions,
    directions_question,
    tabulate,
    write_directions,
)
from analysis.influence.queries.parsing import build_queries
from analysis.run.run import Run
from ontogeny.answers import Keep, Progress, opened_run, report_to


def directions(
    run: Run | str | PathLike[str],
    queries: Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any],
    config: DirectionsConfig,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Directions:
    """Share the influence of datums on queries among directions of a weight's inputs or outputs.

    The parts along an orthonormal basis sum to the influence through the weight; along the unit
    vectors they are the parts of single neurons. Random directions are the null.

    Args:
        run: A run that can be replayed, or where it is.
        queries: As in ``ontogeny.influence``.
        config: The weight, the directions, and the kind of influence.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/directions/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with the number of steps replayed and to replay.

    Returns:
        DataFrames ``directions`` (one row per query and direction), ``datums`` (those with the
        largest absolute influence along each) and ``checks`` (of unrolled influence by retraining).

    Raises:
        UnitError: The unit was not captured, or has not two axes.
        ConfigError: The run cannot be replayed, or the directions do not fit the unit.

    Example:
        >>> config = ontogeny.DirectionsConfig(unit="layers.1.linear2.weight", basis="pca")
        >>> found = ontogeny.directions("runs/demo", ["datum:validation:0"], config)
        >>> bool(found.directions["absolute"].is_monotonic_decreasing)
        True
    """
    opened = opened_run(run)
    asked = build_queries(opened, queries)
    report = report_to(progress)

    def compute() -> Directions:
        return tabulate(influence_along(opened, asked, config, report), asked, config)

    question = directions_question(asked, config)
    return Keep(save, name, replace).answer(opened, question, compute, write_directions)
