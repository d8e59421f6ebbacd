"""Units that have no factors: refused by name, or captured by vmap.

The fallback computes every datum's gradient with ``torch.func`` (vmap of grad). It costs another
forward and backward pass and holds a dense gradient per datum. The result is stored as a "sum"
factor with one position, so later steps need no special case. Outliers of such a unit have position
0, because vmap does not tell which position a gradient comes from.

Shapes: N datum, T token, P entry of a unit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from capture.errors import UnitError
from capture.gradients.factors import Factor, Factors
from capture.gradients.tape import CANNOT

Fallback = Literal["none", "vmap"]
CHUNK_BYTES = 256 * 2**20
"""Most memory for the dense gradients of one chunk of datums."""
CONFIG_REMEDY = "Leave it out with capture.units, or set capture.fallback=vmap"


def factors_by_vmap(
    loss_of: Callable[..., Tensor], units: Mapping[str, Tensor], batch: tuple[Tensor, ...]
) -> Factors:
    """Return every datum's gradient of these units, as "sum" factors with one position.

    ``loss_of(units, *datum)`` returns one datum's share of the batch's loss, given the units'
    values and the datum's row of each tensor of ``batch``. Raises ``UnitError`` if vmap cannot
    trace the model.
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


def unsplit_error(
    model: nn.Module, unsplit: Mapping[str, str], remedy: str = CONFIG_REMEDY
) -> UnitError:
    """Return the error for units that cannot be captured.

    Names the first unit, its module, the share of the model's parameters in it and in all other
    such units, and ``remedy``.
    """
    use = next(iter(unsplit.values()))
    problem = f"is used by {use}, {CANNOT} ({module_and_share(model, list(unsplit))})"
    return UnitError(next(iter(unsplit)), problem, remedy)


def module_and_share(model: nn.Module, names: Sequence[str]) -> str:
    """Return the module of the first parameter, and the share of the model in it and in all."""
    owner = names[0].rpartition(".")[0]
    kind = type(model.get_submodule(owner)).__name__
    size = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(size.values())
    text = f"{kind} {owner or 'itself'}, {size[names[0]] / total:.1%} of the model"
    if others := len(names) - 1:
        whole = sum(size[name] for name in names) / total
        text += f"; with {others} other such unit{'s' * (others > 1)} {whole:.1%}"
    return text
