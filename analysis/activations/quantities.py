"""What is measured at each position: entries of units, and what attention heads do.

- *inputs*: the inputs of an MLP unit, its neurons. For ``linear1`` this is the residual stream
  after the norm, for ``linear2`` the hidden layer after the ReLU.
- *outputs*: the outputs of an MLP unit, its rows, with the bias. For ``linear1`` this is before the
  ReLU, for ``linear2`` before the residual connection.
- *head-entries*: the mixed values that enter ``out_proj``; entry h·E + e is dimension e of head h.
- *head-norm*: Euclidean norm of what a head adds to the residual stream, ‖W_O[:, head] z_head‖.
- *attention-…*: of the weights w_s with which a head at position t attends to position s ≤ t:
  entropy −Σ w log w in nats, largest, self w_t, previous w_(t−1) (0 at the first position), and
  distance Σ w_s (t − s) in positions.

All are without dropout. Heads are numbered in ``layers.L.self_attn``.

Shapes: N datum, T position, S position attended to, D width, H head, E width of a head, I entry of
a unit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from analysis.activations import part_quantities
from analysis.levels import Level
from analysis.run.names import nearest
from capture.errors import UnitError
from capture.models.dropout import Masks
from capture.models.transformer import SelfAttention
from capture.parts import KnownModel, Parted

Done = TypeVar("Done")
Report = Callable[[int, int], None]
"""Called after every block with the number of datums done and their total."""
DATUMS_AT_ONCE = 256

Quantity = Literal[
    "inputs",
    "outputs",
    "head-entries",
    "head-norm",
    "attention-entropy",
    "attention-largest",
    "attention-self",
    "attention-previous",
    "attention-distance",
]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
MEANINGS: dict[Quantity, str] = {
    "inputs": "activation",
    "outputs": "output of the unit (before any nonlinearity)",
    "head-entries": "entry of the attention's mixed values",
    "head-norm": "norm of what the head adds to the residual stream",
    "attention-entropy": "entropy of the attention weights (nats)",
    "attention-largest": "largest attention weight",
    "attention-self": "attention weight of the position itself",
    "attention-previous": "attention weight of the position before",
    "attention-distance": "distance attended to (positions)",
}
LEVELS: dict[Quantity, Level | None] = {name: "head" for name in QUANTITIES}
LEVELS |= {"inputs": "neuron", "outputs": "row", "head-entries": None}
"""Level of attribution whose groups are the same; None if there is no such level."""


def noun(quantity: Quantity) -> str:
    """Return what a unit's entries are called: neuron, row, head or entry."""
    return LEVELS[quantity] or "entry"


def nouns(quantity: Quantity) -> str:
    """Return the plural of ``noun``."""
    return "entries" if noun(quantity) == "entry" else f"{noun(quantity)}s"


def units_of(model: KnownModel, quantity: Quantity = "inputs") -> dict[str, int]:
    """Return unit → number of entries, for every unit of the quantity in the model's order."""
    if isinstance(model, Parted):
        return part_quantities.units_of(model, quantity)
    config = model.config
    inside = {
        "inputs": {"linear1.weight": config.width, "linear2.weight": config.hidden},
        "outputs": {"linear1.weight": config.hidden, "linear2.weight": config.width},
        "head-entries": {"self_attn.out_proj.weight": config.width},
    }.get(quantity, {"self_attn": config.heads})
    return {
        f"layers.{layer}.{name}": size
        for layer in range(config.layers)
        for name, size in inside.items()
        if config.hidden or not name.startswith("linear")
    }


def ranked_units(model: KnownModel, quantity: Quantity = "inputs") -> list[str]:
    """Return the units whose entries are ranked together, in the model's order.

    Inputs of the weights of one MLP differ in scale: those of the first weight are the normalized
    residual stream. Neurons are therefore ranked among the inputs of the last weights of MLPs, if
    there are any. Of the other quantities all units are ranked.
    """
    units = list(units_of(model, quantity))
    if quantity != "inputs":
        return units
    if isinstance(model, Parted):
        hidden = [unit for unit in units if unit in model.parts.mlp_out]
    else:
        hidden = [unit for unit in units if unit.endswith("linear2.weight")]
    return hidden or units


def require_entry(model: KnownModel, unit: str, number: int, quantity: Quantity = "inputs") -> None:
    """Raise ``UnitError`` if the model does not have the unit, or the unit not the entry."""
    units = units_of(model, quantity)
    if unit not in units:
        hint = nearest(unit, list(units)) if units else ""
        raise UnitError(unit, f"has no {nouns(quantity)}", hint)
    if not 0 <= number < units[unit]:
        problem = f"does not exist: the unit's {nouns(quantity)} are 0 to {units[unit] - 1}"
        raise UnitError(f"{unit} {noun(quantity)} {number}", problem)


def measure(
    model: KnownModel,
    token_NT: np.ndarray,
    units: Sequence[str],
    quantity: Quantity = "inputs",
) -> dict[str, np.ndarray]:
    """Return the quantity of some units at every position, each float32 [N, T, I].

    Raises ``ConfigError`` for attention weights that are not found in the model.
    """
    if isinstance(model, Parted):
        return measure_parts(model, torch.from_numpy(token_NT).long(), units, quantity)
    found: dict[str, np.ndarray] = {}

    def store(unit: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x_NTI = of_module(quantity, module, args[0], output, model.config.heads)
            found[unit] = x_NTI.cpu().numpy()

        return keep

    ending = ".out_proj" if quantity == "head-norm" else ""
    modules = [model.get_submodule(unit.removesuffix(".weight") + ending) for unit in units]
    hooks = [
        module.register_forward_hook(store(unit))
        for unit, module in zip(units, modules, strict=True)
    ]
    try:
        with torch.inference_mode():
            tokens = torch.from_numpy(token_NT).long().to(model.decoder.weight.device)
            model.hidden(tokens, Masks.none())
    finally:
        for hook in hooks:
            hook.remove()
    return found


def measure_parts(
    model: Parted, token_NT: Tensor, units: Sequence[str], quantity: Quantity
) -> dict[str, np.ndarray]:
    """Return ``measure`` of a model with known parts."""
    if quantity.startswith(part_quantities.ATTENDING):
        weights = part_quantities.weights_of(model, token_NT, units)
        found = {unit: of_weights(quantity, own).transpose(1, 2) for unit, own in weights.items()}
    else:
        found = part_quantities.states_of(model, token_NT, units, quantity)
    return {unit: found[unit].float().cpu().numpy() for unit in units}


def of_module(
    quantity: Quantity, module: nn.Module, x_NTD: Tensor, output_NTI: Tensor, heads: int
) -> Tensor:
    """Return the quantity from input and output of the module that it belongs to, [N, T, I]."""
    if quantity == "outputs":
        return output_NTI
    if quantity in ("inputs", "head-entries"):
        return x_NTD
    if quantity == "head-norm":
        assert isinstance(module, nn.Linear)
        z_NTHE, weight_DHE = (x.unflatten(-1, (heads, -1)) for x in (x_NTD, module.weight))
        return torch.einsum("nthe,dhe->nthd", z_NTHE, weight_DHE).norm(dim=3)
    assert isinstance(module, SelfAttention)
    weight_NHTS, _ = module.weights_and_values(x_NTD)
    return of_weights(quantity, weight_NHTS).transpose(1, 2)


def of_weights(quantity: Quantity, weight_NHTS: Tensor) -> Tensor:
    """Return a statistic of attention weights, [N, H, T]."""
    if quantity == "attention-entropy":
        return -torch.xlogy(weight_NHTS, weight_NHTS).sum(3)
    if quantity == "attention-largest":
        return weight_NHTS.amax(3)
    if quantity == "attention-self":
        return weight_NHTS.diagonal(dim1=2, dim2=3)
    if quantity == "attention-previous":
        before_NHT = weight_NHTS.diagonal(-1, dim1=2, dim2=3)
        return nn.functional.pad(before_NHT, (1, 0))
    assert quantity == "attention-distance"
    t_T = torch.arange(weight_NHTS.shape[2], device=weight_NHTS.device)
    return (weight_NHTS * (t_T[:, None] - t_T)).sum(3)


# --- blocks of datums -----------------------------------------------------------------------------


def activation_blocks(
    model: KnownModel,
    token_NT: np.ndarray,
    units: Sequence[str],
    quantity: Quantity = "inputs",
    report: Report | None = None,
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Yield blocks of datums and ``measure`` of each, in order, ``DATUMS_AT_ONCE`` at a time."""
    for block in blocks_of(len(token_NT)):
        yield block, measure(model, token_NT[block], units, quantity)
        if report:
            report(block.stop, len(token_NT))


def blocks_of(num_datums: int) -> list[slice]:
    starts = range(0, num_datums, DATUMS_AT_ONCE)
    return [slice(start, min(start + DATUMS_AT_ONCE, num_datums)) for start in starts]


def with_progress(
    results: Iterable[Done], blocks: Sequence[slice], report: Report | None
) -> Iterator[Done]:
    """Pass on the results of blocks; call ``report`` after the caller has used each."""
    for block, result in zip(blocks, results, strict=True):
        yield result
        if report:
            report(block.stop, blocks[-1].stop)
