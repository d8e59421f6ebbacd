"""Take out of a model what some training data moved, without training again."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from analysis.influence.queries.parsing import build_queries
from analysis.influence.silencing.silencing import (
    SilenceConfig,
    silence_question,
    write_silenced,
)
from analysis.influence.silencing.silencing import silence as compute_silenced
from analysis.influence.silencing.tables import Silenced
from analysis.run.run import Run
from ontogeny.answers import Keep, Progress, opened_run, report_to


def silence(
    run: Run | str | PathLike[str],
    config: SilenceConfig,
    *,
    queries: Sequence[str | Mapping[str, Any]] = ("loss",),
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Silenced:
    """Set the weights to 0 that some datums moved most, and evaluate queries.

    A datum's part in a weight is the sum of its lifetime shifts: what its gradients still
    contribute to the last weights. Random sets of as many other datums are the null.

    Args:
        run: A run that can be replayed, or where it is.
        config: The datums, the shares of all weights to set to 0, and what to compare with.
        queries: As in ``ontogeny.influence``; by default the loss on held-out text.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/silence/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with the number of steps replayed and to replay.

    Returns:
        DataFrames ``silenced`` (values of the queries by case and share) and ``units`` (where the
        weights lie), and ``models``: share → weights, by parameter.

    Raises:
        ConfigError: A datum or query does not exist, or the run cannot be replayed.
        ReplayError: Replay on this machine does not arrive at the stored checkpoints.

    Example:
        >>> config = ontogeny.SilenceConfig(datums=(3, 7), shares=(0.001,), controls=1)
        >>> found = ontogeny.silence("runs/demo", config)
        >>> found.silenced["case"].tolist()
        ['trained', 'datums', 'random']
    """
    opened = opened_run(run)
    asked = build_queries(opened, queries)
    report = report_to(progress)

    def compute() -> Silenced:
        return compute_silenced(opened, asked, config, report)

    question = silence_question(asked, config)
    return Keep(save, name, replace).answer(opened, question, compute, write_silenced)
