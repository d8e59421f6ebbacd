"""Silence what some datums moved: set the weights that they moved most to 0, and see what is lost.

The entries of matrices are ranked by |sum of the datums' lifetime shifts| (``contributions``), so
neither training again nor a gradient of the query is needed. That the query falls says only that
these weights carry it; so the same is done for random sets of as many datums, and the loss on held-
out text stands beside the query. Subtracting the sum instead of zeroing ("amnesiac unlearning",
Graves et al. 2021) costs more held-out loss for the same effect: later gradients of other datums
had adapted to these shifts.

Shapes: W weights of the whole model, in one row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.influence.judge.designs import reweighted
from analysis.influence.judge.retrainings import query_values, require_kept, values
from analysis.influence.queries.query import Query
from analysis.influence.silencing.contributions import contributions
from analysis.influence.silencing.tables import (
    DATUMS,
    RANDOM,
    RETRAINED,
    SCHEMAS,
    TRAINED,
    Silenced,
)
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import table_set, write_tables
from analysis.run.run import Run
from capture.errors import ConfigError, at_least

Report = Callable[[int, int], None]
Weights = dict[str, Tensor]
SHARES = (0.0001, 0.0003, 0.001, 0.003, 0.01)


@dataclass(frozen=True, kw_only=True)
class SilenceConfig:
    """Which datums, how much of what they moved, and against what."""

    datums: tuple[int, ...]
    """Training datums whose part in the weights is silenced."""
    shares: tuple[float, ...] = SHARES
    """Shares of the weights of all matrices that are set to 0: those that the datums moved most."""
    controls: int = 3
    """Random sets of as many other datums, silenced in the same way."""
    retrain: bool = False
    """Also train again without the datums; the effect left is then relative to that."""
    seed: int = 0
    """Seed of the random sets."""

    def __post_init__(self) -> None:
        if not self.datums:
            raise ConfigError("silence.datums", "are empty", "Name at least one datum")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            problem = f"got {self.shares}, must be above 0 and below 1"
            raise ConfigError("silence.shares", problem, "For example 0.001")
        at_least("silence.controls", self.controls, 0)
        at_least("silence.seed", self.seed, 0)


def silence(
    run: Run,
    queries: Sequence[Query],
    config: SilenceConfig,
    report: Report = lambda done, wanted: None,
    sweep: Sweep = in_turn,
) -> Silenced:
    """Return the queries' values with the weights 0 that the datums moved most.

    Raises ``ConfigError`` for a datum that the run lacks and a run that cannot be replayed, and
    what replay and retraining raise.
    """
    chosen = chosen_datums(run, config)
    sets = [chosen, *random_others(run.num_datums, chosen, config)]
    moved = contributions(run, sets, report)
    trained = {name: own.detach().cpu() for name, own in run.network().named_parameters()}
    before_Q = values(queries, trained)
    reference_Q = np.full(len(queries), np.nan)
    if config.retrain:
        without = reweighted(run.num_datums, chosen, "removal")
        require_kept(run, [without], sweep=sweep)
        reference_Q = query_values(run, queries, [without])[without.name]
    rows = list(rows_of(TRAINED, 0.0, 0, [before_Q], queries, before_Q, reference_Q))
    if config.retrain:
        rows += rows_of(RETRAINED, 0.0, 0, [reference_Q], queries, before_Q, reference_Q)
    models, largest = {}, max(config.shares)
    ranked = [most_moved(trained, own, largest) for own in moved]
    for share in config.shares:
        each = [silenced(trained, index_K, share) for index_K in ranked]
        models[share] = each[0]
        count = num_silenced(trained, share)
        found = [values(queries, own) for own in each]
        for case, part in ((DATUMS, found[:1]), (RANDOM, found[1:])):
            if part:
                rows += rows_of(case, share, count, part, queries, before_Q, reference_Q)
    table = pd.DataFrame(rows, columns=SCHEMAS["silenced"].names)
    return Silenced(table, unit_table(trained, moved, models[max(config.shares)]), models)


def chosen_datums(run: Run, config: SilenceConfig) -> np.ndarray:
    """Return the datums, ascending, each once; raise ``ConfigError`` for one that does not exist,
    and if none is left for comparison."""
    chosen = np.unique(np.array(config.datums, np.int64))
    for datum in (int(chosen[0]), int(chosen[-1])):
        if not 0 <= datum < run.num_datums:
            problem = f"the run has no training datum {datum}; it has {run.num_datums:,}"
            raise ConfigError("silence.datums", problem, f"Choose from 0 to {run.num_datums - 1}")
    if config.controls and 2 * len(chosen) > run.num_datums:
        problem = f"are {len(chosen):,} of {run.num_datums:,}: too few others for a random set"
        raise ConfigError("silence.datums", problem, "Name fewer, or set controls to 0")
    return chosen


def random_others(num_datums: int, chosen: np.ndarray, config: SilenceConfig) -> list[np.ndarray]:
    """Return random sets of as many other datums."""
    rng = np.random.default_rng([config.seed, len(chosen)])
    others = np.setdiff1d(np.arange(num_datums), chosen)
    return [rng.choice(others, len(chosen), replace=False) for _ in range(config.controls)]


def matrices(weights: Weights) -> Weights:
    """Return the weights that may be silenced: those with two or more axes.

    A bias, and above all a scale of a normalization, acts on every token: one scale at 0 cost 1 %
    of perplexity where 600 entries of matrices cost nothing.
    """
    return {name: own for name, own in weights.items() if own.dim() > 1}


def num_silenced(weights: Weights, share: float) -> int:
    """Return how many weights of matrices a share is: rounded, at least one."""
    return max(1, round(share * sum(own.numel() for own in matrices(weights).values())))


def most_moved(weights: Weights, moved: Weights, share: float) -> Tensor:
    """Return which weights of matrices moved most, as places in the row of all, largest first.

    Weights that did not move are left out, so there may be fewer than the share.
    """
    size_W = torch.cat([moved[name].abs().flatten() for name in matrices(weights)])
    found = size_W.topk(num_silenced(weights, share))
    return found.indices[found.values > 0]


def silenced(weights: Weights, index_K: Tensor, share: float) -> Weights:
    """Return the weights with the first of ``index_K`` 0, as many as the share of matrices is."""
    chosen = matrices(weights)
    keep_W = torch.ones(sum(own.numel() for own in chosen.values()), dtype=torch.bool)
    keep_W[index_K[: num_silenced(weights, share)]] = False
    parts = keep_W.split([own.numel() for own in chosen.values()])
    silent = {
        name: own * keep.view(own.shape)
        for (name, own), keep in zip(chosen.items(), parts, strict=True)
    }
    return {name: silent.get(name, own) for name, own in weights.items()}


def rows_of(
    case: str,
    share: float,
    count: int,
    value_SQ: Sequence[np.ndarray],
    queries: Sequence[Query],
    before_Q: np.ndarray,
    reference_Q: np.ndarray,
) -> Iterator[tuple]:
    """Yield a row of ``SILENCED`` for each query, from its values for each set of datums."""
    whole_SQ = np.stack(value_SQ)
    done_Q = before_Q - reference_Q
    for q, query in enumerate(queries):
        mean, own_S = float(whole_SQ[:, q].mean()), whole_SQ[:, q]
        left = (mean - reference_Q[q]) / done_Q[q] if done_Q[q] else np.nan
        change = mean - float(before_Q[q])
        bounds = float(own_S.min()), float(own_S.max())
        yield case, share, count, query.name, mean, *bounds, len(own_S), change, float(left)


def unit_table(weights: Weights, moved: Sequence[Weights], model: Weights) -> pd.DataFrame:
    """Return where the weights lie that the datums moved most; ``UNITS``."""
    first, *others = moved
    rows = [
        (
            *(name, own.numel(), float(first[name].norm())),
            float(np.mean([float(each[name].norm()) for each in others])) if others else np.nan,
            int(((model[name] == 0) & (own != 0)).sum()),
        )
        for name, own in weights.items()
    ]
    table = pd.DataFrame(rows, columns=SCHEMAS["units"].names)
    return table.sort_values("silenced", ascending=False, kind="stable", ignore_index=True)


def silence_question(queries: Sequence[Query], config: SilenceConfig) -> Question:
    """Return what the tables answer."""
    question = Question.of("silence", config)
    question.options["queries"] = [dict(query.description) for query in queries]
    return question


def write_silenced(run: Run, found: Silenced, question: Question, name: str = "") -> None:
    """Write the tables to ``RUN/analysis/silence/``, or to its folder ``name``."""
    frames = {table: getattr(found, table) for table in SCHEMAS}
    write_tables(run, table_set("silence", name), frames, SCHEMAS, question)
