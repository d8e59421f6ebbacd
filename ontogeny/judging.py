"""Test what influence claims: judge methods by retraining, rank suspects, and measure drift."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from analysis.influence.drift.along import Drift, DriftConfig, measure_drift, write_drift
from analysis.influence.drift.moments import require_matrix
from analysis.influence.judge.judge import (
    JudgeConfig,
    judge,
    judge_question,
    score_methods,
    write_judged,
)
from analysis.influence.judge.tables import Judged
from analysis.influence.queries.parsing import build_queries
from analysis.influence.suspects.held_out import HELD_OUT
from analysis.influence.suspects.suspects import (
    SuspectsConfig,
    rank_suspects,
    suspects_question,
    train_without,
    write_suspects,
)
from analysis.influence.suspects.tables import Suspects
from analysis.influence.suspects.unexpected import UNEXPECTED
from analysis.jobs.question import Question
from analysis.run.run import Run
from capture.errors import ConfigError
from ontogeny.answers import Keep, Progress, opened_run, report_to

Asked = str | Mapping[str, Any]


def lds(
    run: Run | str | PathLike[str],
    queries: Sequence[Asked] | str,
    config: JudgeConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Judged:
    """Judge influence methods by training the run again on random subsets of its datums.

    Retrainings are kept in ``RUN/analysis/retrain/``, also without ``save``, and used again.

    Args:
        run: A run that can be replayed, or where it is.
        queries: As in ``ontogeny.influence``; ten or more for a useful interval.
        config: The methods, the shares kept, the number of subsets, and further tests.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/lds/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with the number of retrainings done and wanted.

    Returns:
        DataFrames ``judgements`` (a value per test, method and query), ``retrained`` and
        ``scores``, and ``summary()``: means with 95 % bootstrap intervals over queries.

    Raises:
        CaptureError: A query does not exist, the run cannot be trained again, or training diverges.

    Example:
        >>> few = ontogeny.JudgeConfig(methods=("gradient", "random"), keep=(0.5,), subsets=3)
        >>> found = ontogeny.lds("runs/demo", ["datum:validation:0", "datum:validation:1"], few)
        >>> found.summary()["method"].tolist()
        ['gradient', 'random']
    """
    opened, chosen = opened_run(run), config or JudgeConfig()
    asked = build_queries(opened, [queries] if isinstance(queries, str | Mapping) else queries)
    report = report_to(progress)

    def compute() -> Judged:
        scores = score_methods(opened, asked, chosen.methods)
        return judge(opened, asked, scores, chosen, report)

    question = judge_question(asked, chosen)
    return Keep(save, name, replace).answer(opened, question, compute, write_judged)


def suspects(
    run: Run | str | PathLike[str],
    query: Asked | None = None,
    config: SuspectsConfig | None = None,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Suspects:
    """Rank training datums by how much they raise a query, or by how unexpected they were.

    Args:
        run: A run, or where it is.
        query: One query, as in ``ontogeny.influence``; None for unexpected datums.
        config: The evidence (a method of influence for a query; residual, excess, loss,
            self-influence, held-out or order without one), and how many suspects to train again
            without. held-out, order and unrolled keep retrainings in ``RUN/analysis/retrain/``.
        save: Also write the tables to the run.
        name: Keep the tables beside others, under ``analysis/suspects/NAME/``.
        replace: Replace tables of another question that have the same name.
        progress: Called with what is done and wanted: steps or checkpoints, then retrainings.

    Returns:
        DataFrames ``suspects`` (all datums, most suspect first), ``detection`` (against what was
        planted; empty if nothing was), ``retrained`` (empty unless asked for) and ``checks`` (of
        unrolled influence by retraining).

    Raises:
        ConfigError: The evidence does not fit the question, or the query does not exist.
        RunError: The run lacks what the evidence needs.

    Example:
        >>> found = ontogeny.suspects("runs/demo")
        >>> found.suspects["rank"].tolist()[:3]
        [0, 1, 2]
    """
    opened = opened_run(run)
    chosen = config or SuspectsConfig(evidence="residual" if query is None else "path")
    if (chosen.evidence in (*UNEXPECTED, *HELD_OUT)) != (query is None):
        problem = f"is {chosen.evidence!r}, which {'needs' if query is None else 'takes no'} query"
        raise ConfigError("suspects.evidence (--method)", problem)
    asked = build_queries(opened, ["loss" if query is None else query])[0]
    report = report_to(progress)

    def compute() -> Suspects:
        found = rank_suspects(opened, asked, chosen, report)
        return train_without(opened, asked, found, chosen, report) if chosen.remove else found

    question = suspects_question(asked, chosen)
    return Keep(save, name, replace).answer(opened, question, compute, write_suspects)


def drift(
    run: Run | str | PathLike[str],
    config: DriftConfig,
    *,
    save: bool = False,
    name: str = "",
    replace: bool = False,
    progress: Progress | None = None,
) -> Drift:
    """Compare the sum of all shifts along directions of a weight with random walks of the shifts.

    Args:
        run: A run that can be replayed, or where it is.
        config: The unit, the directions of its inputs, and the number of random walks.
        save: Also write the table to the run.
        name: Keep the table beside others, under ``analysis/drift/NAME/``.
        replace: Replace a table of another question that has the same name.
        progress: Called with the number of steps replayed and to replay.

    Returns:
        An object with the DataFrame ``drift`` (one row per direction, furthest first), ``clear``
        (number of directions with q at most 0.05) and ``shifts`` (number added up).

    Raises:
        UnitError: The unit was not captured, or has not two axes.
        ConfigError: The run cannot be replayed, or the directions do not fit the unit.

    Example:
        >>> config = ontogeny.DriftConfig(unit="layers.1.linear2.weight", walks=19)
        >>> found = ontogeny.drift("runs/demo", config)
        >>> bool(found.drift["drift"].is_monotonic_decreasing)
        True
    """
    opened = opened_run(run)
    require_matrix(opened, config.unit)
    report = report_to(progress)
    question = Question.of("drift", config)
    return Keep(save, name, replace).answer(
        opened, question, lambda: measure_drift(opened, config, report), write_drift
    )
