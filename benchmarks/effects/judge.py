"""Retrain a run, and compare what happens to its neurons and heads with what methods predict.

Shapes: Q query, D datum, M retraining.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from analysis.influence.judge import designs
from analysis.influence.judge.correlations import datamodeling_scores
from analysis.influence.judge.retrainings import read_kept, require_kept
from analysis.influence.judge.scores import method_scores
from analysis.influence.queries.query import Query
from analysis.measures.correlation import spearman
from benchmarks.effects.tangents import dot, predicted_changes, products
from benchmarks.effects.trainings import effects_after, effects_of_changed_weights
from benchmarks.effects.values import Effects

UNROLLED, KNOWN = "unrolled", "last weights known, query linear"
AT_ONCE = 34
"""Queries of one sweep; each needs three times the memory of the model."""
CHANGE, CHANGES = 1e-6, 6
Arrays = dict[str, np.ndarray]
Scores = Mapping[str, np.ndarray]
"""Method → scores [Q, D]."""


@dataclass(frozen=True, eq=False)
class Bench:
    """Queries, scores, and what retraining does to the queries."""

    effects: Effects
    scores: Scores
    work: Path
    """Folder for intermediate results."""

    @property
    def queries(self) -> list[Query]:
        return list(self.effects.queries)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The last weights of the run."""
        return {name: own.detach() for name, own in self.effects.run.network().named_parameters()}

    @cached_property
    def trained_Q(self) -> np.ndarray:
        return self.effects.values(self.weights)

    @cached_property
    def gradients_Q(self) -> list[dict[str, Tensor]]:
        return [query.gradient(self.weights)[1] for query in self.queries]

    def described(self) -> list[dict[str, Any]]:
        """Return subject, token, number of positions and value of each query."""
        keys = ("level", "unit", "number", "token")
        rows = zip(self.queries, self.effects.scored, self.trained_Q, strict=True)
        return [
            {key: query.description[key] for key in keys}
            | {"positions": int(scored.sum()), "value": round(float(value), 5)}
            for query, scored, value in rows
        ]

    def subsets(self, keep: float, count: int) -> list[designs.Variation]:
        run = self.effects.run
        return designs.random_subsets(run.num_datums, keep=keep, count=count, seed=0)

    # --- LDS --------------------------------------------------------------------------------------

    def judged(self, keep: float, count: int) -> dict[str, Any]:
        """Return the LDS of each query by method, the spread of its values, and how well the
        change of the weights is predicted."""
        variations = self.subsets(keep, count)
        weight_MD = np.stack([one.weight_D for one in variations])
        values = self.stored(f"values-{keep:g}-{count}", lambda: self.after(variations))
        value_MQ = values["after"]
        found = {
            name: datamodeling_scores(own, weight_MD, value_MQ) for name, own in self.scores.items()
        }
        swept = self.stored(f"predicted-{keep:g}-{count}", lambda: self.predicted(variations))
        found[UNROLLED] = columnwise(swept["unrolled"], value_MQ)
        found[KNOWN] = columnwise(swept["known"], value_MQ)
        change_MQ = value_MQ - self.trained_Q
        off_Q = np.linalg.norm(change_MQ - swept["unrolled"], axis=0)
        return {
            "lds": {name: own.round(4).tolist() for name, own in found.items()},
            "spread": value_MQ.std(0, ddof=1).tolist(),
            "departure": (off_Q / np.linalg.norm(change_MQ, axis=0)).round(4).tolist(),
            "weights": {name: swept[name].round(4).tolist() for name in ("cosine", "size")},
        }

    def stored(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        return stored(self.work, f"{name}-{len(self.queries)}", compute)

    def after(self, variations: Sequence[designs.Variation]) -> Arrays:
        return {"after": effects_after(self.effects, variations)}

    def predicted(self, variations: Sequence[designs.Variation]) -> Arrays:
        """Return predictions from unrolled influence and from the retrained weights, [M, Q] each,
        and the cosine and the ratio of the predicted and the true change of the weights, [M]."""
        change_MD = np.stack([one.weight_D - 1 for one in variations])
        guessed = predicted_changes(self.effects.run, change_MD)
        require_kept(self.effects.run, variations)
        true, cosine, size = [], [], []
        for one, own in zip(variations, guessed, strict=True):
            last = read_kept(self.effects.run, one)
            true.append({name: last[name] - before for name, before in self.weights.items()})
            norms = dot(true[-1], true[-1]) ** 0.5, dot(own, own) ** 0.5
            cosine.append(dot(true[-1], own) / (norms[0] * norms[1]))
            size.append(norms[1] / norms[0])
        both = {"unrolled": guessed, "known": true}
        found = {name: products(own, self.gradients_Q) for name, own in both.items()}
        return found | {"cosine": np.array(cosine), "size": np.array(size)}

    def reproducibility(self) -> list[float]:
        """Return each query's standard deviation over tiny changes of the initial weights."""
        own = self.stored(
            "changed", lambda: {"after": effects_of_changed_weights(self.effects, CHANGE, CHANGES)}
        )
        return own["after"].std(0, ddof=1).tolist()

    def unrolled_QD(self) -> np.ndarray:
        """Return unrolled influence of every datum on every query, swept in groups of queries."""
        run, parts = self.effects.run, []
        for start in range(0, len(self.queries), AT_ONCE):
            own = self.queries[start : start + AT_ONCE]
            swept = self.stored(
                f"unrolled-{start}",
                lambda own=own: {"total": method_scores(run, own, UNROLLED).total_QD},
            )
            parts.append(swept["total"])
        return np.concatenate(parts)


def stored(work: Path, name: str, compute: Callable[[], Arrays]) -> Arrays:
    """Return arrays from the folder, computed now if they are not there."""
    work.mkdir(parents=True, exist_ok=True)
    kept = work / f"{name}.npz"
    if not kept.exists():
        np.savez(kept, **compute())  # pyright: ignore[reportArgumentType]
        print(f"computed {name}", flush=True)
    with np.load(kept) as own:
        return dict(own)


def columnwise(predicted_MQ: np.ndarray, value_MQ: np.ndarray) -> np.ndarray:
    """Return the rank correlation of each query's predictions with its values, [Q]."""
    return np.array([spearman(*pair) for pair in zip(predicted_MQ.T, value_MQ.T, strict=True)])
