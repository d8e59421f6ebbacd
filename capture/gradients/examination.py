"""How a model uses its units, seen before training: which have factors, and at which positions.

Shapes: N datum, T token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.errors import UnitError
from capture.gradients.parameter_use import ParameterUse
from capture.gradients.tape import Tape
from capture.gradients.torch_functions import NotSplittable
from capture.gradients.window_axis import Axis, window_axes


@dataclass(frozen=True)
class Examination:
    """What the first look at a model has found."""

    unsplit: dict[str, str]
    """Unit without factors → the call that uses it."""
    window_axes: dict[str, list[Axis]]
    """Unit → the window's axis in each of its calls, in order."""


def examine_units(model: nn.Module, units: Mapping[str, Tensor], token_1T: Tensor) -> Examination:
    """Run the model on copies of one datum, and compare the calls that use the units.

    Raises ``UnitError`` for a unit that the model never uses.
    """
    two, three = (uses_in_pass(model, units, token_1T, num_datums) for num_datums in (2, 3))
    unsplit = two.unsplit | rows_that_do_not_grow(two.uses, three.uses)
    axes, unknown = axes_of(model, units, token_1T, two.uses)
    unsplit = unknown | unsplit
    used = {name for use in two.uses for name in use.roles} | set(unsplit)
    for name in units:
        if name not in used:
            raise UnitError(name, "is captured but the forward pass never used it")
    return Examination({name: unsplit[name] for name in units if name in unsplit}, axes)


def uses_in_pass(
    model: nn.Module, units: Mapping[str, Tensor], token_1T: Tensor, num_datums: int
) -> Tape:
    with torch.no_grad():
        token_NT = token_1T.repeat(num_datums, 1)
    with Tape(units, num_datums) as tape:
        model(token_NT)
    return tape


def rows_that_do_not_grow(
    two: Sequence[ParameterUse], three: Sequence[ParameterUse]
) -> dict[str, str]:
    """Return units whose calls do not have the datum in the first axis → the call.

    If an output's first axis is the datum, or datum and position flattened, its length is in the
    proportion 2 : 3 between batches of two and three. Otherwise the first axis is something else,
    such as the position in a model that puts positions first, and a split along it would be wrong.
    """
    found: dict[str, str] = {}
    for one, other in zip(two, three, strict=False):
        shared = one.call.shared or one.first_axis == 1
        if not shared and 3 * one.first_axis != 2 * other.first_axis:
            problem = f"{one.func} on a first axis that does not grow with the batch"
            found |= dict.fromkeys(one.roles, problem)
    return found


def axes_of(
    model: nn.Module, units: Mapping[str, Tensor], token_1T: Tensor, uses: Sequence[ParameterUse]
) -> tuple[dict[str, list[Axis]], dict[str, str]]:
    """Return the window's axis in the calls of each unit, and the units in which it is unknown.

    ``uses``: the calls for two datums with the whole window.
    """
    window = token_1T.shape[1]
    short = uses_in_pass(model, units, token_1T[:, :-1], 2).uses if window > 1 else ()
    axes: dict[str, list[Axis]] = {}
    unknown: dict[str, str] = {}
    for name in units:
        try:
            axes[name] = window_axes(middles(uses, name), middles(short, name), window)
        except NotSplittable as reason:
            unknown[name] = str(reason)
    return axes, unknown


def middles(uses: Sequence[ParameterUse], unit: str) -> list[tuple[int, ...]]:
    """Return the lengths of the axes between datum and features in each call of a unit."""
    return [use.middle for use in uses if unit in use.roles]
