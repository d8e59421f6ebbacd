"""Ask a run which training data made its model do something: the public function of influence."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from analysis.influence.config import InfluenceConfig
from analysis.influence.influence import (
    compute_influence,
    discard_unfinished,
    influence_question,
)
from analysis.influence.queries.parsing import build_queries
from analysis.influence.tables import Influence, write_influence
from analysis.jobs.question import Question
from analysis.run.run import Run
from ontogeny.answers import Keep, Progress, opened_run, report_to


def influence(
    run: Run | str | PathLike[str],
    queries: Sequence[str | Mapping[str, Any]] | str,
    config: InfluenceConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Influence:
    """Compute the influence of every training datum on queries about the model.

    With the method ``unrolled`` (the default), an influence is the derivative of the query by the
    weight of the datum's loss, through all later training: without the datum, the query would
    change by about minus its influence. With ``path``, it is the datum's part in the change of the
    query as it happened. The other methods are baselines.

    Args:
        run: A run, or the folder or prefix where it is.
        queries: One or several, as on the command line (``"datum:validation:0"``, a ``.jsonl``
            file) or as a dict with ``prompt`` and ``completion`` or ``kind``.
        config: The method, the steps, and how finely influence is told apart.
        save: Also write the tables to the run, and keep the retrainings of the checks; a call that
            was killed then resumes.
        name: Keep the tables beside others, under ``analysis/influence/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with steps done and in all; a retraining counts as one.

    Returns:
        DataFrames ``queries`` (completeness or horizon), ``datums`` (influence of each, in units of
        the query), ``positions`` (of the strongest datums, by target), ``windows``, ``units``,
        ``steps``, and ``checks`` (unrolled: predicted and retrained changes without random datums).
        Where training is chaotic, unrolled influence is that of the last steps alone
        (``queries["reliable_from"]``).

    Raises:
        ConfigError, UnitError: A query cannot be asked, or does not depend on the weights.
        RunError: The run cannot be replayed, or lacks the steps, the factors or the split.
        InfluenceError: The derivative of a query by the last weights is not finite.
        ReplayError: Replay on this machine does not arrive at the stored checkpoints.

    Example:
        >>> path = ontogeny.InfluenceConfig(method="path")
        >>> found = ontogeny.influence("runs/demo", "datum:0", path)
        >>> bool(found.queries["incompleteness"][0] < 1e-3)
        True
        >>> helpful = found.strongest("loss of train datum 0", 3, raised=False)
    """
    opened, chosen = opened_run(run), config or InfluenceConfig()
    asked = build_queries(opened, [queries] if isinstance(queries, str | Mapping) else queries)
    question = influence_question(asked, chosen)
    report = report_to(progress)

    def compute() -> Influence:
        return compute_influence(opened, asked, chosen, report, name=name, resumable=save)

    def write(run: Run, found: Influence, question: Question, name: str) -> None:
        write_influence(run, found, question, name)
        discard_unfinished(run, name)

    return Keep(save, name, replace).answer(opened, question, compute, write)
