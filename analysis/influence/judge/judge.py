"""Compare the scores of several methods with what retraining does to the queries.

Four tests, each against the same retrainings for all methods:

- lds: the linear datamodeling score on random subsets of the training datums;
- tsloo: one datum is left out of one step; the correlation, over such removals, of the change of
  the query with minus the score of the datum in this step (trajectory-specific leave-one-out);
- removal: the query without the datums that a method names, relative to its value as trained
  (1: unchanged), beside random datums;
- duplication: the same with the named datums counted twice.

Shapes: Q query, D datum, M retraining.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.influence.baselines.methods import RANDOM
from analysis.influence.judge import designs
from analysis.influence.judge.correlations import datamodeling_scores
from analysis.influence.judge.designs import Removal, Variation
from analysis.influence.judge.retrainings import query_values, require_kept, values
from analysis.influence.judge.scores import Scores, method_scores, num_reports, require_methods
from analysis.influence.judge.tables import SCHEMAS, Judged
from analysis.influence.queries.query import Query
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import table_set, write_tables
from analysis.measures.correlation import spearman
from analysis.run.run import Run
from capture.errors import ConfigError, at_least

DEFAULT_METHODS = ("unrolled", "path", "gradient", "cosine", "bm25", RANDOM)
Counting = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Which methods to judge, and by which retrainings."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    """See ``analysis.influence.judge.scores.METHODS``."""
    keep: tuple[float, ...] = (0.5, 0.9)
    """Shares of the datums that the subsets of the LDS keep."""
    subsets: int = 24
    """Subsets for each share; 0: no LDS."""
    removals: int = 0
    """Removals of one datum from one step; 0: none."""
    top: float = 0.0
    """Share of the datums that removal and duplication take; 0: none."""
    controls: int = 5
    """Random sets of datums beside the named ones."""
    seed: int = 0
    """Seed of subsets, removals and controls."""

    def __post_init__(self) -> None:
        require_methods(self.methods)
        for share in self.keep:
            if not 0 < share < 1:
                raise ConfigError("keep", f"got {share}, must be above 0 and below 1")
        if not 0 <= self.top < 1:
            raise ConfigError("top", f"got {self.top}, must be at least 0 and below 1")
        for name in ("subsets", "removals", "controls", "seed"):
            at_least(name, getattr(self, name), 0)
        if 0 < self.subsets < 3:
            raise ConfigError("subsets", f"got {self.subsets}, a correlation needs at least 3")
        if 0 < self.removals < 3:
            raise ConfigError("removals", f"got {self.removals}, a correlation needs at least 3")
        if not (self.subsets and self.keep) and not self.removals and not self.top:
            raise ConfigError("subsets", "got 0, and no removals or top: nothing is judged")


@dataclass(frozen=True, eq=False)
class Plan:
    """All retrainings that the tests need."""

    subsets: dict[float, list[Variation]]
    removals: list[Removal]
    named: dict[tuple[designs.Sort, str, int], Variation]
    """Variations by what is done, method and query."""
    controls: dict[designs.Sort, list[Variation]]
    num_datums: int

    @property
    def variations(self) -> list[Variation]:
        own = [one for group in (*self.subsets.values(), *self.controls.values()) for one in group]
        single = [removal.variation(self.num_datums) for removal in self.removals]
        return [*own, *single, *self.named.values()]


def score_methods(
    run: Run,
    queries: Sequence[Query],
    methods: Sequence[str],
    report: Counting = lambda done, wanted: None,
) -> dict[str, Scores]:
    """Return the scores of each method.

    ``report`` is called with what is done and wanted: steps of training for methods that go through
    them, 1 for each other one.
    """
    counts = [num_reports(run, method) for method in methods]
    done = itertools.count(1)
    return {
        method: method_scores(run, queries, method, lambda: report(next(done), sum(counts)))
        for method in methods
    }


def judge(
    run: Run,
    queries: Sequence[Query],
    scores: Mapping[str, Scores],
    config: JudgeConfig,
    report: Counting = lambda done, wanted: None,
    sweep: Sweep = in_turn,
) -> Judged:
    """Judge scores by retraining. Retrainings that the run holds already are not made again.

    ``report`` is called with the retrainings that are there and wanted. Raises ``ConfigError`` for
    a run that cannot be trained again, and ``InfluenceError`` if a retraining diverges.
    """
    plan = make_plan(run, queries, config, scores)
    require_kept(run, plan.variations, report, sweep)
    trained_Q = values(queries, dict(run.network().named_parameters()))
    bench = Bench(queries, scores, plan, trained_Q, query_values(run, queries, plan.variations))
    rows = [*bench.lds_rows(), *bench.tsloo_rows(), *bench.top_rows(config.top)]
    return Judged(
        pd.DataFrame(rows, columns=SCHEMAS["judgements"].names),
        bench.retrained_table(),
        score_table(queries, scores),
    )


def make_plan(
    run: Run, queries: Sequence[Query], config: JudgeConfig, scores: Mapping[str, Scores]
) -> Plan:
    """Return the retrainings that the configured tests need."""
    num_datums, seed = run.num_datums, config.seed
    subsets = {
        keep: designs.random_subsets(num_datums, keep=keep, count=config.subsets, seed=seed)
        for keep in config.keep
        if config.subsets
    }
    removals: list[Removal] = []
    if config.removals:
        datum_SN = np.stack(run.steps()["datums"].to_list())
        removals = designs.random_removals(
            range(run.steps_done), datum_SN, count=config.removals, seed=seed
        )
    named, controls = {}, {}
    number = max(1, round(config.top * num_datums))
    for sort in designs.SORTS if config.top else ():
        drawn = designs.random_datums(num_datums, number=number, count=config.controls, seed=seed)
        controls[sort] = [designs.reweighted(num_datums, own, sort) for own in drawn]
        for method in config.methods:
            for row, query in enumerate(queries):
                score_D = scores[method].total_QD[row]
                if method != RANDOM and np.isfinite(score_D).all():
                    own = designs.named_datums(query, score_D, number)
                    named[sort, method, row] = designs.reweighted(num_datums, own, sort)
    return Plan(subsets, removals, named, controls, num_datums)


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that is compared."""

    queries: Sequence[Query]
    scores: Mapping[str, Scores]
    plan: Plan
    trained_Q: np.ndarray
    """Values of the queries as trained."""
    retrained: Mapping[str, np.ndarray]
    """Values after each retraining, by its name, each [Q]."""

    def values_of(self, variations: Sequence[Variation]) -> np.ndarray:
        """Return the values after some retrainings, [M, Q]."""
        return np.stack([self.retrained[variation.name] for variation in variations])

    def lds_rows(self) -> Iterator[tuple]:
        for keep, variations in self.plan.subsets.items():
            weight_MD = np.stack([variation.weight_D for variation in variations])
            value_MQ = self.values_of(variations)
            for method, own in self.scores.items():
                found_Q = datamodeling_scores(own.total_QD, weight_MD, value_MQ)
                yield from self.judgements("lds", keep, method, found_Q, len(variations))

    def tsloo_rows(self) -> Iterator[tuple]:
        removals, count = self.plan.removals, len(self.plan.removals)
        if not removals:
            return
        single = [removal.variation(self.plan.num_datums) for removal in removals]
        change_QM = (self.values_of(single) - self.trained_Q).T
        for method, own in self.scores.items():
            slots = [(removal.step, removal.slot, removal.datum) for removal in removals]
            predicted_QM = -np.stack([own.of_slot(*slot) for slot in slots], axis=1)
            pairs = zip(predicted_QM, change_QM, strict=True)
            found_Q = np.array([spearman(*pair) for pair in pairs])
            yield from self.judgements("tsloo", count, method, found_Q, count)

    def top_rows(self, share: float) -> Iterator[tuple]:
        # A query that is 0 as trained, such as the effect of a neuron that never acts, has no share
        # that could be left.
        whole_Q = np.where(self.trained_Q == 0, np.nan, self.trained_Q)
        for sort, variations in self.plan.controls.items():
            for method in self.scores:
                found_Q = np.full(len(self.queries), np.nan)
                for row, whole in enumerate(whole_Q):
                    own = self.plan.named.get((sort, method, row))
                    if own:
                        found_Q[row] = self.retrained[own.name][row] / whole
                if method != RANDOM:
                    yield from self.judgements(sort, share, method, found_Q, 1)
            if variations:
                left_Q = self.values_of(variations).mean(0) / whole_Q
                yield from self.judgements(sort, share, RANDOM, left_Q, len(variations))

    def judgements(
        self, test: str, setting: float, method: str, value_Q: np.ndarray, count: int
    ) -> Iterator[tuple]:
        for query, value in zip(self.queries, value_Q, strict=True):
            yield test, float(setting), method, query.name, float(value), count

    def retrained_table(self) -> pd.DataFrame:
        names = ["", *self.retrained]
        value_MQ = np.stack([self.trained_Q, *self.retrained.values()])
        return pd.DataFrame(
            {
                "retraining": np.repeat(names, len(self.queries)),
                "query": [query.name for query in self.queries] * len(names),
                "value": value_MQ.ravel(),
            }
        )


def score_table(queries: Sequence[Query], scores: Mapping[str, Scores]) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "method": method,
                "query": query.name,
                "datum": np.arange(own.total_QD.shape[1]),
                "score": own.total_QD[row],
            }
        )
        for method, own in scores.items()
        for row, query in enumerate(queries)
    ]
    return pd.concat(frames, ignore_index=True)


def judge_question(queries: Sequence[Query], config: JudgeConfig) -> Question:
    """Return what the tables answer."""
    question = Question.of("lds", config)
    question.options["queries"] = [dict(query.description) for query in queries]
    return question


def write_judged(run: Run, found: Judged, question: Question, name: str = "") -> None:
    """Write the tables to ``RUN/analysis/lds/``, or to its folder ``name``."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    write_tables(run, table_set("lds", name), frames, SCHEMAS, question)
