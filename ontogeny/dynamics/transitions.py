"""Find when metrics change: the public function of transitions."""

from collections.abc import Sequence
from os import PathLike

import pandas as pd

from analysis.run.run import Run
from analysis.transitions import sentences
from analysis.transitions.config import TransitionsConfig
from analysis.transitions.curves import require_columns
from analysis.transitions.tables import Transitions
from analysis.transitions.transitions import (
    find_transitions,
    transitions_of,
    transitions_question,
    write_transitions,
)
from capture.errors import ConfigError
from cluster.local.threads import run_job
from ontogeny.answers import Keep, Progress, opened_run, report_to

Place = Run | str | PathLike[str]


def transitions(
    runs: Place | Sequence[Place] | pd.DataFrame,
    config: TransitionsConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Transitions:
    """Find change points, sudden changes, their order and hidden states of one run or several.

    Curves are the losses and gradient norms of the steps, evaluations, and the metrics that
    ``ontogeny.trajectory`` saved.

    Args:
        runs: A run, several of the same training with other seeds, or a table of curves with the
            columns step, metric, component, value, n and standard_error, such as
            ``ontogeny.trajectory(…).trajectory`` of other people's checkpoints.
        config: Which curves, how many null curves, the target, and whether to ask the record.
        save: Also write the tables to the first run; not for a table of curves.
        name: Keep the tables beside others, under ``analysis/transitions/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with the number of curves tested and in all.

    Returns:
        DataFrames ``curves`` (verdict, half step and p of each), ``changes`` (change points),
        ``order`` (pairs), ``coincidence`` (with the loss), ``warnings`` (leads on the target),
        ``states`` and four more of the hidden Markov model, and ``moved`` (datums and neurons).
        ``ontogeny.describe_transitions`` says it in sentences.

    Raises:
        ConfigError: No curve has 8 points, a metric is unknown, or a package of the extra
            ``dynamics`` is not installed.

    Example:
        >>> few = ontogeny.TransitionsConfig(metrics=("training loss",), draws=99, states=0)
        >>> found = ontogeny.transitions("runs/demo", few)
        >>> found.curves["metric"].tolist()
        ['training loss']
    """
    chosen, report = config or TransitionsConfig(), report_to(progress)
    if isinstance(runs, pd.DataFrame):
        if save:
            raise ConfigError("save", "is set, but a table of curves has no place", "Give a run")
        return transitions_of({"curves": require_columns(runs)}, chosen, report)
    single = isinstance(runs, Run | str | PathLike)
    opened = [opened_run(run) for run in ([runs] if single else runs)]  # pyright: ignore
    return Keep(save, name, replace).answer(
        opened[0],
        transitions_question(chosen, [run.uri for run in opened]),
        lambda: find_transitions(opened, chosen, run_job, report),
        write_transitions,
    )


def describe_transitions(found: Transitions) -> list[str]:
    """Say in sentences what ``ontogeny.transitions`` found, each claim beside its n and null.

    Args:
        found: The result of ``ontogeny.transitions``.

    Returns:
        One text for each finding.

    Example:
        >>> few = ontogeny.TransitionsConfig(metrics=("training loss",), draws=99, states=0)
        >>> lines = ontogeny.describe_transitions(ontogeny.transitions("runs/demo", few))
        >>> "of 1 curves change" in lines[0]
        True
    """
    return sentences.summarise(found)
