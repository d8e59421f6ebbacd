"""The influence of training datums on queries, by the method that was chosen.

- *unrolled*: the derivative of the query by the weight of each datum's loss, through all later
  training (``capture.unrolled``): leaving the datum out changes the query by about minus that.
- *path*: the datum's part in the change of the query as it happened (``analysis.influence.path``).
- baselines (``analysis.influence.baselines``).

Memory: 8 bytes for each query, training datum and position, beside the needs of the method.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

from analysis.influence.baselines.methods import BASELINES
from analysis.influence.config import SWEEPS, InfluenceConfig
from analysis.influence.confirmation import confirmed
from analysis.influence.finished_segments import FinishedSegments
from analysis.influence.path_segments import is_possible, path_of_segments
from analysis.influence.queries.query import Query
from analysis.influence.stored_steps import require_stored
from analysis.influence.sums import InfluenceSums, SumShape, windows_of
from analysis.influence.sweeps import BackwardSweep, SweepStep, begin_sweep
from analysis.influence.tables import JOB, Influence
from analysis.influence.tabulation import scored_tables, swept_tables
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import table_set
from analysis.run.ablatable import held_out_splits
from analysis.run.run import Run
from capture.errors import RunError

Counting = Callable[[int, int], None]
MODEL_FREE = ("bm25", "common-tokens", "random")
"""Methods that neither replay steps nor evaluate the model."""
FROM_THE_RECORD = ("path", "outliers", *MODEL_FREE)
"""Methods that need nothing else than a record, and the model for queries about predictions."""


def compute_influence(
    run: Run,
    queries: Sequence[Query],
    config: InfluenceConfig,
    report: Counting = lambda done, wanted: None,
    *,
    name: str = "",
    resumable: bool = True,
    machines: Sweep | None = None,
    retraining: Sweep = in_turn,
) -> Influence:
    """Return the influence of every training datum on every query.

    Args:
        run: A run that can be replayed; some baselines work with any, and path influence with the
            factors of a custom loop.
        queries: From ``build_queries``.
        config: The method and its settings.
        report: Called with steps done and in all; a retraining counts as one.
        name: Name of the set of tables beside which unfinished segments are kept.
        resumable: Keep finished segments, so that a job that was killed resumes, and retrainings.
            Segments are deleted by ``discard_unfinished``.
        machines: What computes the segments where these do not depend on each other: path
            influence under SGD without momentum. By default this process. Changes no number.
        retraining: What trains again for ``config.checks``. By default this process.

    Raises:
        RunError: The run is one of a custom loop and the method needs its model or its steps; it
            lacks the steps, or the factors to be read; a query is not finite.
        ConfigError: A query does not depend on the weights; a bound on memory is too low.
        InfluenceError: The derivative of a query by the last weights is not finite.
        ReplayError: Replay on this machine does not arrive at the stored checkpoints.
    """
    require_method(run, config.method)
    require_held_out(run, queries)
    if config.method not in SWEEPS:
        found = scored_tables(run, queries, config, BASELINES[config.method](run, queries))
        report(1, 1)
        return found
    steps = wanted_steps(run, config)
    units = tuple(run.layout.names) if config.units else ()
    asked = {"end_step": config.end_step, "factors": config.factors}
    sweep = begin_sweep(run, queries, config.method, units=units, **asked)
    from_factors = reads_factors(run, config)
    if from_factors:
        require_stored(run, steps)
    positions = 1 if from_factors else run.config.corpus.window
    windows = windows_of(steps, config.windows)
    shape = SumShape(len(queries), run.num_datums, positions, len(units), windows)
    sums = InfluenceSums(shape, sweep.norm_at_end_Q)
    finished = finished_segments(run, queries, config, name) if resumable else None
    found_steps = steps_backward(run, queries, config, sweep, finished, machines)
    checks = config.checks if config.method == "unrolled" else 0
    wanted = len(steps) + checks
    for done, found in enumerate(found_steps, 1):
        sums.add(found)
        report(done, wanted)
    if sweep.ended:
        report(len(steps), wanted)
    tables = swept_tables(run, queries, config, steps, sums, from_factors=from_factors)
    if not checks or sums.common_from is None:
        return tables
    counted = itertools.count(len(steps) + 1)
    return confirmed(
        run,
        queries,
        tables,
        sums.common_QD,
        range(sums.common_from, steps.stop),
        checks,
        lambda: report(next(counted), wanted),
        keep=resumable,
        sweep=retraining,
    )


def require_method(run: Run, method: str) -> None:
    """Raise ``RunError`` for a method that replays steps, or builds the model, of a custom loop."""
    known = FROM_THE_RECORD
    if run.from_custom_loop and method not in known:
        problem = "was recorded in a custom training loop, for which influence has no method"
        remedy = f"Use --method {', '.join(known[:-1])} or {known[-1]}"
        raise RunError(run.uri, f"{problem} {method}", f"{remedy}, or a run of ontogeny capture")


def reads_factors(run: Run, config: InfluenceConfig) -> bool:
    """Return whether stored factors are read, and no step is replayed."""
    return config.method == "path" and (config.factors or run.from_custom_loop)


def require_held_out(run: Run, queries: Sequence[Query]) -> None:
    """Raise ``RunError`` for the loss of held-out text, by default, that the run does not have."""
    asked = [query.description for query in queries]
    by_default = any(own.get("kind") == "loss" and not own.get("split") for own in asked)
    if by_default and not held_out_splits(run):
        problem = "has no held-out text, which loss asks about by default"
        raise RunError(run.uri, problem, "Ask for loss:train")


def steps_backward(
    run: Run,
    queries: Sequence[Query],
    config: InfluenceConfig,
    sweep: BackwardSweep,
    finished: FinishedSegments | None,
    machines: Sweep | None,
) -> Iterator[SweepStep]:
    """Yield what the method finds in each of the steps, last first.

    ``finished``: where segments are kept; None keeps none. ``machines``: as ``compute_influence``.
    """
    from capture.unrolled.states import MAX_BYTES  # loads the training engine

    steps, max_bytes = wanted_steps(run, config), config.max_bytes or MAX_BYTES
    segments = segments_within(run, steps)
    if is_possible(run, config.method) and not config.factors:
        units = tuple(run.layout.names) if config.units else ()
        compute = partial(path_of_segments, run, queries, units, max_bytes, machines)
        if finished:
            return finished.run_apart(compute, segments)
        return itertools.chain.from_iterable(compute(segments[::-1]))
    if finished:
        return finished.run(sweep, segments, max_bytes)
    return sweep.steps(steps, max_bytes)


def wanted_steps(run: Run, config: InfluenceConfig) -> range:
    """Return the steps asked for; raise ``RunError`` if the run lacks them."""
    end = run.steps_done if config.end_step is None else config.end_step
    if not 0 <= config.first_step < end <= run.steps_done:
        problem = f"has no steps {config.first_step} to {end - 1}"
        raise RunError(run.uri, problem, f"Its steps are 0 to {run.steps_done - 1}")
    return range(config.first_step, end)


def segments_within(run: Run, steps: range) -> list[range]:
    """Return the steps of each segment that are asked for, in order."""
    found = []
    for segment in run.segments:
        own = range(max(steps.start, segment.first_step), min(steps.stop, segment.end_step))
        found += [own] if own else []
    return found


def finished_segments(
    run: Run, queries: Sequence[Query], config: InfluenceConfig, name: str
) -> FinishedSegments:
    """Return what is stored of this question's sweep."""
    asked = {"queries": [dict(query.description) for query in queries], **asdict(config)}
    for key in ("windows", "positions_of", "checks", "max_bytes"):
        del asked[key]  # these do not change what is found in a step
    return FinishedSegments.of(run, table_set(JOB, name), asked)


def influence_question(queries: Sequence[Query], config: InfluenceConfig) -> Question:
    """Return what the tables answer; the bound on memory changes no number."""
    asked = Question.of(JOB, config)
    del asked.options["max_bytes"]
    asked.options["queries"] = [dict(query.description) for query in queries]
    return asked


def discard_unfinished(run: Run, name: str = "") -> None:
    """Delete the segments that were kept for a job that was killed."""
    FinishedSegments.of(run, table_set(JOB, name), {}).delete()
