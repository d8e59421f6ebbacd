"""Rank training datums by how much they raise a query, or by how unexpected they are.

Where the run knows what was planted in it, the ranking is compared with that truth. Training again
without the first suspects, and without as many random datums, says whether they were the cause.

Shapes: D datum.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from analysis.influence.confirmation import checked
from analysis.influence.judge import designs
from analysis.influence.judge.retrainings import query_values, require_kept, values
from analysis.influence.judge.scores import METHODS, Scores, method_scores, num_reports
from analysis.influence.queries.query import Query
from analysis.influence.suspects.detection import detect
from analysis.influence.suspects.held_out import HELD_OUT
from analysis.influence.suspects.tables import SCHEMAS, Suspects
from analysis.influence.suspects.unexpected import UNEXPECTED
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.run.run import Run
from capture.errors import ConfigError, InfluenceError, at_least
from capture.format.corpus_tables import PLANTED_KEY

Report = Callable[[int, int], None]
KINDS = ("plant", "scramble", "flip")


@dataclass(frozen=True, kw_only=True)
class SuspectsConfig:
    """How datums are ranked, and whether the ranking is tested."""

    evidence: str = "path"
    """For a query, a method of influence; else one of ``UNEXPECTED`` or ``HELD_OUT``."""
    remove: int = 0
    """Train again without so many first suspects; 0: do not."""
    controls: int = 3
    """Random sets of as many datums to train again without."""
    checks: int = 2
    """Retrainings without a random tenth of the datums, which test evidence unrolled."""
    seed: int = 0
    """Seed of the random sets."""

    def __post_init__(self) -> None:
        known = (*METHODS, *UNEXPECTED, *HELD_OUT)
        if self.evidence not in known:
            problem = f"got {self.evidence!r}, must be one of: {', '.join(known)}"
            raise ConfigError("suspects.evidence (--method)", problem)
        for name in ("remove", "controls", "checks", "seed"):
            at_least(f"suspects.{name}", getattr(self, name), 0)


def rank_suspects(
    run: Run,
    query: Query,
    config: SuspectsConfig,
    report: Report = lambda done, wanted: None,
    sweep: Sweep = in_turn,
) -> Suspects:
    """Return the ranking of all training datums, most suspect first.

    With evidence of ``UNEXPECTED`` or ``HELD_OUT`` the query does not matter; ``sweep`` trains
    again for the latter, and to check unrolled influence. Datums without a score come last. Raises
    what the evidence raises, and ``InfluenceError`` if no step is within the horizon.
    """
    found = suspicion(run, query, config.evidence, report, sweep)
    if config.evidence == "unrolled" and found.first_step == run.steps_done:
        problem = f"has no step within the horizon of {query.name}: training is chaotic"
        raise InfluenceError(run.uri, problem, "Use --method path")
    score_D = found.total_QD[0]
    kind_D = planted_kinds(run)
    order_D = np.argsort(-np.nan_to_num(score_D, nan=-np.inf), kind="stable")
    ranking = pd.DataFrame(
        {
            "rank": np.arange(len(order_D)),
            "datum": order_D,
            "score": score_D[order_D],
            "planted": kind_D[order_D],
            "reliable_from": found.first_step,
        }
    )
    nothing, checks = (SCHEMAS[name].empty_table().to_pandas() for name in ("retrained", "checks"))
    steps = range(found.first_step, run.steps_done)
    if config.evidence == "unrolled" and config.checks:
        checks = checked(run, [query], score_D[None], config.checks, steps, sweep=sweep)
    return Suspects(ranking, detection_table(score_D, kind_D), nothing, checks)


def suspicion(
    run: Run, query: Query, evidence: str, report: Report, sweep: Sweep = in_turn
) -> Scores:
    """Return the score of each datum; the higher, the more suspect."""
    if evidence in HELD_OUT:
        return Scores(HELD_OUT[evidence](run, report, sweep)[None])
    if evidence in UNEXPECTED:
        return Scores(UNEXPECTED[evidence](run, report)[None])
    done, wanted = itertools.count(1), num_reports(run, evidence)
    return method_scores(run, [query], evidence, lambda: report(next(done), wanted))


def planted_kinds(run: Run) -> np.ndarray:
    """Return plant, scramble, flip or an empty string for each datum; all empty without a truth."""
    kind_D = np.full(run.num_datums, "", dtype=object)
    if any(file.key == PLANTED_KEY for file in run.start.files_of("corpus")):
        planted = run.planted()
        kind_D[planted["datum"]] = planted["kind"]
    return kind_D


def detection_table(score_D: np.ndarray, kind_D: np.ndarray) -> pd.DataFrame:
    """Return how well the ranking finds each kind that was planted; a row for each."""
    known_D = np.isfinite(score_D)
    rows = [
        {"kind": kind, **asdict(detect(score_D[known_D], (kind_D == kind)[known_D]))}
        for kind in KINDS
        if (kind_D == kind).any()
    ]
    return pd.DataFrame(rows, columns=SCHEMAS["detection"].names)


def train_without(
    run: Run,
    query: Query,
    found: Suspects,
    config: SuspectsConfig,
    report: Report = lambda done, wanted: None,
    sweep: Sweep = in_turn,
) -> Suspects:
    """Return the suspects with the query's value after training without the first of them.

    Retrainings are kept in the run. Raises what retraining raises.
    """
    count = config.remove
    named = found.suspects["datum"].to_numpy()[:count]
    drawn = designs.random_datums(
        run.num_datums, number=count, count=config.controls, seed=config.seed
    )
    without = [designs.reweighted(run.num_datums, own, "removal") for own in (named, *drawn)]
    require_kept(run, without, report, sweep)
    known = query_values(run, [query], without)
    (trained,) = values([query], dict(run.network().named_parameters()))
    first, *others = (float(known[one.name][0]) for one in without)
    rows = [
        row_of("nothing", 0, query, [float(trained)]),
        row_of("suspects", count, query, [first]),
    ]
    if others:
        rows.append(row_of("random", count, query, others))
    return replace(found, retrained=pd.DataFrame(rows))


def row_of(removed: str, count: int, query: Query, value: list[float]) -> dict[str, object]:
    return {
        "removed": removed,
        "datums": count,
        "query": query.name,
        "value": float(np.mean(value)),
        "low": min(value),
        "high": max(value),
        "retrainings": 0 if removed == "nothing" else len(value),
    }


def suspects_question(query: Query, config: SuspectsConfig) -> Question:
    """Return what the tables answer."""
    question = Question.of("suspects", config)
    question.options["query"] = dict(query.description)
    return question


def write_suspects(run: Run, found: Suspects, question: Question, name: str = "") -> None:
    """Write the tables to ``RUN/analysis/suspects/``, or to its folder ``name``."""
    frames = {
        table: concat_frames([getattr(found, table)], schema) for table, schema in SCHEMAS.items()
    }
    write_tables(run, table_set("suspects", name), frames, SCHEMAS, question)
