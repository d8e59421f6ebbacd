"""Removal: what is left of neurons and heads without the datums that a method names.

A method names the 5 % of the datums that, by its scores, raise a query most. The run is trained
again without them, and the query's value is divided by its value as trained (*effect left*; 1:
unchanged). Controls:

- *random*: as many datums drawn at random. All queries share these sets.
- *named for others*: the removals that unrolled influence names for the other queries of the same
  level, with the same token and with another one. They tell whether the named datums matter to
  this neuron, to its token, or to everything.

Shapes: Q query, D datum, M retraining.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.influence.baselines.methods import RANDOM
from analysis.influence.judge import designs
from benchmarks.effects.evidence import SHIFTS
from benchmarks.effects.judge import UNROLLED, Bench
from benchmarks.effects.trainings import effects_after
from benchmarks.effects.values import Effects

TOP = 0.05
LOWEST = "random, lowest set"
SAME, OTHER = "unrolled, for others with this token", "unrolled, for others with another token"
NAMED_BY = ("bm25", SHIFTS, "geometric mean")
"""Methods that are judged beside unrolled influence: text, outliers, tallies."""


@dataclass(frozen=True, eq=False)
class Removals:
    """Removals for all heads, and for the neurons of largest effect."""

    bench: Bench
    neurons: int
    """Number of neurons at most."""
    controls: int
    """Number of random sets."""

    @property
    def asked(self) -> list[int]:
        """Numbers of the queries that are judged."""
        levels = [query.description["level"] for query in self.bench.queries]
        rows = {level: np.flatnonzero([own == level for own in levels]) for level in set(levels)}
        neurons = rows.get("neuron", np.array([], int))
        largest = neurons[np.argsort(-self.bench.trained_Q[neurons], kind="stable")]
        chosen = [*rows.get("head", ()), *np.sort(largest[: self.neurons])]
        return [int(row) for row in chosen]

    @property
    def num_removed(self) -> int:
        return max(1, round(TOP * self.bench.effects.run.num_datums))

    def judged(self) -> Iterator[dict[str, Any]]:
        """Yield what was found so far, after each method; effects left are [Q] of ``asked``."""
        asked, removed = self.asked, self.num_removed
        found: dict[str, Any] = {"datums": removed, "controls": self.controls}
        found |= {"queries": asked, "left": {}}
        left = found["left"]
        left_MQ = self.left_of_all(self.random_sets())[:, asked]
        left |= {RANDOM: listed(left_MQ.mean(0)), LOWEST: listed(left_MQ.min(0))}
        yield found
        named = self.named(self.bench.unrolled_QD())
        left_QQ = self.left_of_all(list(named.values()))[:, asked]
        left[UNROLLED] = listed(left_QQ.diagonal())
        described = [self.bench.queries[row].description for row in asked]
        left |= {name: listed(own) for name, own in for_others(left_QQ, described).items()}
        yield found
        for method in NAMED_BY:
            if method in self.bench.scores:
                own = self.named(self.bench.scores[method])
                left[method] = listed([self.left_of_one(row, own.get(row)) for row in asked])
                yield found

    def random_sets(self) -> list[designs.Variation]:
        datums, number = self.bench.effects.run.num_datums, self.num_removed
        drawn = designs.random_datums(datums, number=number, count=self.controls, seed=0)
        return [designs.reweighted(datums, own, "removal") for own in drawn]

    def named(self, score_QD: np.ndarray) -> dict[int, designs.Variation]:
        """Return the retraining for each query of ``asked`` that the method scores."""
        found, datums = {}, self.bench.effects.run.num_datums
        for row in self.asked:
            if np.isfinite(score_QD[row]).all():
                query = self.bench.queries[row]
                own = designs.named_datums(query, score_QD[row], self.num_removed)
                found[row] = designs.reweighted(datums, own, "removal")
        return found

    def left_of_all(self, variations: Sequence[designs.Variation]) -> np.ndarray:
        """Return what each retraining leaves of every query, [M, Q]."""
        return effects_after(self.bench.effects, variations) / self.bench.trained_Q

    def left_of_one(self, row: int, variation: designs.Variation | None) -> float:
        """Return what a retraining leaves of one query; NaN without a retraining."""
        if variation is None:
            return float("nan")
        own = Effects(self.bench.effects.run, [self.bench.queries[row]])
        return float(effects_after(own, [variation])[0, 0] / self.bench.trained_Q[row])


def for_others(
    left_QQ: np.ndarray, described: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Return the mean effect left of each query over the removals for other queries, [Q] each.

    ``left_QQ``: effect left of the query of the column without the datums that are named for the
    query of the row. ``described``: level and token of each query. NaN for a query without such
    others.
    """
    level_Q, token_Q = (np.array([own[key] for own in described]) for key in ("level", "token"))
    other_QQ = (level_Q[:, None] == level_Q) & ~np.eye(len(level_Q), dtype=bool)
    same_QQ = token_Q[:, None] == token_Q
    found = {}
    for name, counts_QQ in {SAME: other_QQ & same_QQ, OTHER: other_QQ & ~same_QQ}.items():
        total_Q, number_Q = (left_QQ * counts_QQ).sum(0), counts_QQ.sum(0)
        found[name] = np.divide(
            total_Q, number_Q, out=np.full(len(total_Q), np.nan), where=number_Q > 0
        )
    return found


def listed(value_Q: np.ndarray | Sequence[float]) -> list[float | None]:
    """Return values for JSON: four digits, None for NaN."""
    return [round(float(own), 4) if np.isfinite(own) else None for own in value_Q]
