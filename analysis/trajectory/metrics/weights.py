"""Sizes of weights, and how they changed since the checkpoints before.

Shapes: S entry of a unit.
"""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from analysis.trajectory.metrics.row import WHOLE, Row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text


def weight_sizes(model: Observed, text: Text) -> Iterator[Row]:
    """Euclidean norm, mean and variance of the entries of each unit, and of all together."""
    yield from sizes(("weight_norm", "weight_mean", "weight_variance"), model.weights)


def sizes(names: tuple[str, str, str], tensors: Mapping[str, Tensor]) -> Iterator[Row]:
    """Yield norm, mean and variance of the entries of each tensor, and of all together."""
    entries, total, squares = 0, 0.0, 0.0
    for unit, tensor in tensors.items():
        own_S = tensor.detach().double().flatten()
        entries, total = entries + len(own_S), total + float(own_S.sum())
        squares += float(own_S.square().sum())
        values = own_S.norm(), own_S.mean(), own_S.var(correction=0)
        for name, value in zip(names, values, strict=True):
            yield Row(name, unit, float(value), len(own_S))
    mean = total / entries
    for name, value in zip(
        names, (math.sqrt(squares), mean, squares / entries - mean**2), strict=True
    ):
        yield Row(name, WHOLE, value, entries)


def weight_changes(model: Observed, text: Text) -> Iterator[Row]:
    """How the weights changed since the measured checkpoint before.

    ``update_norm``, ``update_mean`` and ``update_variance``: norm of the change, mean and variance
    of its entries, by unit and of all together. ``update_cosine``: cosine of this change with the
    change before it; null: 0, as for random directions. With consecutive steps (``--steps 0:100``)
    these are the updates of single steps.
    """
    if model.before is None:
        return
    changes = difference(model, model.before)
    yield from sizes(("update_norm", "update_mean", "update_variance"), changes)
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
