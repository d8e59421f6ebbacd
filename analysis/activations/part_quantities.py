"""Quantities of any model with known parts; ``analysis.activations.quantities`` says what they are.

Shapes: N datum, T position, D width, H head, E width of a head, I entry of a unit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from capture.parts import Parted
from capture.parts.attention_weights import attention_weights
from capture.parts.found_parts import Attention, End, PartSite

ATTENDING = "attention-"
"""Beginning of the quantities that are statistics of attention weights."""


def units_of(model: Parted, quantity: str) -> dict[str, int]:
    """Return unit → number of entries, for every unit of the quantity in the model's order."""
    parts = model.parts
    heads = [own for own in parts.attention if own]
    if quantity in ("inputs", "outputs"):
        return {unit: getattr(parts.uses[unit], quantity) for unit in parts.mlp}
    if quantity == "head-entries":
        return {own.out: parts.uses[own.out].inputs for own in heads}
    return {own.name: own.heads for own in heads}


def states_of(
    model: Parted, token_NT: Tensor, units: Sequence[str], quantity: str
) -> dict[str, Tensor]:
    """Return inputs, outputs, entries of heads or their norms at every position, [N, T, I]."""
    of_heads = quantity == "head-norm"
    called = model.parts.attention_called
    weights = {unit: called(unit).out if of_heads else unit for unit in units}
    end: End = "output" if quantity == "outputs" else "input"
    sites = {unit: PartSite(model.parts.uses[w].layer, w, end) for unit, w in weights.items()}
    at = model.observe(token_NT, set(sites.values())).at
    found = {unit: at[site] for unit, site in sites.items()}
    if not of_heads:
        return found
    return {unit: norms(model, called(unit), x_NTC) for unit, x_NTC in found.items()}


def norms(model: Parted, heads: Attention, x_NTC: Tensor) -> Tensor:
    """Return ‖W_O[:, head] z_head‖ of each head, [N, T, H]."""
    weight_DC = model.network.get_parameter(heads.out)
    weight_DC = weight_DC.T if model.parts.uses[heads.out].transposed else weight_DC
    z_NTHE, weight_DHE = (x.unflatten(-1, (heads.heads, -1)) for x in (x_NTC, weight_DC))
    return torch.einsum("nthe,dhe->nthd", z_NTHE, weight_DHE).norm(dim=3)


def weights_of(model: Parted, token_NT: Tensor, units: Sequence[str]) -> dict[str, Tensor]:
    """Return the attention weights of some attention modules, [N, H, T, S]."""
    found = zip(model.parts.attention, attention_weights(model, token_NT), strict=True)
    return {own.name: weight_NHTS for own, weight_NHTS in found if own and own.name in units}
