"""Units whose use has no factors: found before training, refused by name, or captured by vmap.

The fall-back differentiates every datum's loss by the units themselves (``torch.func``: vmap of
grad), which costs another forward and backward pass and holds a dense gradient a datum. It becomes
a "sum" of a single position, so everything after it goes the same way; its outliers have position
0, for nothing says which position they come from.

Shapes: N datum, T token, P entry of a unit.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from capture.errors import UnitError
from capture.gradients.factors import Factor, Factors
from capture.gradients.tape import CANNOT, Tape

Fallback = Literal["none", "vmap"]
CHUNK_BYTES = 256 * 2**20
"""Dense gradients that are computed at a time."""
CONFIG_REMEDY = "Leave it out with capture.units, or set capture.fallback=vmap"


def factors_by_vmap(
    loss_of: Callable[..., Tensor], units: Mapping[str, Tensor], batch: tuple[Tensor, ...]
) -> Factors:
    """Every datum's gradient of these units.

    ``loss_of(units, *datum)`` is a datum's share of the batch's loss, as a function of the units'
    values and of its row of each tensor of ``batch``. Raises ``UnitError`` where vmap gives up.
    """
    held_bytes = sum(4 * parameter.numel() for parameter in units.values())
    axes = (None, *(0 for _ in batch))
    each = vmap(grad(loss_of), in_dims=axes, chunk_size=max(1, CHUNK_BYTES // held_bytes))
    values = {name: parameter.detach() for name, parameter in units.items()}
    try:
        with torch.no_grad():
            found = each(values, *batch)
    except RuntimeError as error:
        name, problem = next(iter(units)), f"vmap cannot follow it: {str(error).splitlines()[0]}"
        raise UnitError(name, problem, "Leave it out with capture.units") from error
    return {name: [Factor("sum", found[name].flatten(1)[:, None].float())] for name in units}


def unsplit_units(
    model: nn.Module, units: Mapping[str, Tensor], token_1T: Tensor
) -> dict[str, str]:
    """The units that have no factors → what uses them, from two batches of different size.

    What does not grow with the batch has no axis of datums. Raises ``UnitError`` for a unit that
    the model never uses.
    """
    tapes = []
    for num_datums in (2, 3):
        with torch.no_grad():
            token_NT = token_1T.repeat(num_datums, 1)
        with Tape(units, num_datums) as tape:
            model(token_NT)
        tapes.append(tape)
    two, three = tapes
    unsplit = dict(two.unsplit)
    for one, other in zip(two.uses, three.uses, strict=False):
        shared = one.call.shared or one.first_axis == 1
        if not shared and 3 * one.first_axis != 2 * other.first_axis:
            problem = f"{one.func} on what does not grow with the batch"
            unsplit |= dict.fromkeys(one.roles, problem)
    used = {name for use in two.uses for name in use.roles} | set(unsplit)
    for name in units:
        if name not in used:
            raise UnitError(name, "is captured but the forward pass never used it")
    return {name: unsplit[name] for name in units if name in unsplit}


def unsplit_error(
    model: nn.Module, unsplit: Mapping[str, str], remedy: str = CONFIG_REMEDY
) -> UnitError:
    """What to tell of units that cannot be captured: module, share of the parameters, way out."""
    name, use = next(iter(unsplit.items()))
    owner = name.rpartition(".")[0]
    kind = type(model.get_submodule(owner)).__name__
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    share = parameters[name].numel() / total
    problem = f"is used by {use}, {CANNOT} ({kind} {owner or 'itself'}, {share:.1%} of the model"
    if others := len(unsplit) - 1:
        whole = sum(parameters[each].numel() for each in unsplit) / total
        problem += f"; with {others} other such unit{'s' * (others > 1)} {whole:.1%}"
    return UnitError(name, f"{problem})", remedy)
