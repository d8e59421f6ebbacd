"""Sizes of weights, and how they changed since the checkpoints before.

Shapes: S entry of a unit.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from analysis.trajectory.metrics.row import WHOLE, Row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text


def weight_sizes(model: Observed, text: Text) -> Iterator[Row]:
    """Euclidean norm, mean and variance of each parameter tensor, and the norm of all together."""
    squares, entries = 0.0, 0
    for unit, weight in model.weights.items():
        weight_S = weight.detach().double().flatten()
        squares, entries = squares + float(weight_S.square().sum()), entries + len(weight_S)
        yield Row("weight_norm", unit, float(weight_S.norm()), len(weight_S))
        yield Row("weight_mean", unit, float(weight_S.mean()), len(weight_S))
        yield Row("weight_variance", unit, float(weight_S.var(correction=0)), len(weight_S))
    yield Row("weight_norm", WHOLE, math.sqrt(squares), entries)


def weight_changes(model: Observed, text: Text) -> Iterator[Row]:
    """How the weights changed since the measured checkpoint before.

    ``update_norm``: norm of the change, by unit and of all together; ``update_mean`` and
    ``update_variance``: of its entries, by unit. ``update_cosine``: cosine of this change with the
    change before it; null: 0, as for random directions. With consecutive steps (``--steps 0:100``)
    these are the updates of single steps.
    """
    if model.before is None:
        return
    changes = difference(model, model.before)
    for unit, change_S in changes.items():
        yield Row("update_norm", unit, float(change_S.norm()), change_S.numel())
        yield Row("update_mean", unit, float(change_S.mean()), change_S.numel())
        yield Row("update_variance", unit, float(change_S.var(correction=0)), change_S.numel())
    entries = sum(change_S.numel() for change_S in changes.values())
    yield Row("update_norm", WHOLE, norm_of(changes), entries)
    if model.before.before is None:
        return
    former = difference(model.before, model.before.before)
    for unit, change_S in changes.items():
        yield cosine_row(unit, {unit: change_S}, {unit: former[unit]})
    yield cosine_row(WHOLE, changes, former)


def difference(model: Observed, before: Observed) -> dict[str, Tensor]:
    """Return the change of each unit, flattened, float64."""
    old = before.weights
    return {
        unit: (weight.detach().double() - old[unit].detach().double()).flatten()
        for unit, weight in model.weights.items()
    }


def norm_of(changes: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(change_S.square().sum()) for change_S in changes.values()))


def cosine_row(component: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> Row:
    """Return the cosine of two changes; NaN if one is zero."""
    product = sum(float(one[unit] @ other[unit]) for unit in one)
    size = norm_of(one) * norm_of(other)
    entries = sum(change_S.numel() for change_S in one.values())
    cosine = product / size if size else float("nan")
    return Row("update_cosine", component, cosine, entries, null=0.0)
