"""Does silencing through the parts equal setting weights to zero?

Shapes: N datum, T position, C entry of a state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from capture.parts.found_parts import PartSite
from capture.parts.parted import Parted


class Silenced(NamedTuple):
    """Some inputs of a weight, as neurons and heads are."""

    name: str
    weight: str
    entries: slice


def some_subjects(model: Parted) -> Iterator[Silenced]:
    """Yield the first and last head and the first and last neuron of the outer layers."""
    parts = model.parts
    for layer in sorted({0, len(parts.layers) - 1} if parts.layers else ()):
        if own := parts.attention[layer]:
            size = parts.uses[own.out].inputs // own.heads
            for head in sorted({0, own.heads - 1}):
                entries = slice(head * size, (head + 1) * size)
                yield Silenced(f"{own.name} head {head}", own.out, entries)
        if (weight := parts.mlp_out[layer]) and weight in parts.uses:
            for number in sorted({0, parts.uses[weight].inputs - 1}):
                name = f"{weight} neuron {number}"
                yield Silenced(name, weight, slice(number, number + 1))


@torch.no_grad()
def silencing_error(model: Parted) -> tuple[float, str] | None:
    """Return the largest relative difference of final states, and the subject; None without any.

    A pass that resumes with a subject's entries at 0 is compared with a whole pass of the model in
    which the weights that read them are 0. The weights are restored.
    """
    worst: tuple[float, str] | None = None
    token_NT = model.example_NT
    for own in some_subjects(model):
        site = PartSite(model.parts.uses[own.weight].layer, own.weight, "input")
        layers = (site.layer,) if site.layer and model.parts.resumable else ()
        state_NTD = model.observe(token_NT, layers=layers).entering.get(site.layer)

        def zero(state_NTC: Tensor, entries: slice = own.entries) -> Tensor:
            changed = state_NTC.clone()
            changed[..., entries] = 0
            return changed

        found = model.resume(token_NT, site, state_NTD, zero)
        with weights_at_zero(model, own):
            wanted = model.observe(token_NT).hidden_NTD
        error = float((found - wanted).abs().max() / wanted.abs().max())
        if worst is None or not error <= worst[0]:
            worst = error, own.name
    return worst


@contextmanager
def weights_at_zero(model: Parted, own: Silenced) -> Iterator[None]:
    """Set the weights that read some inputs to zero, within."""
    weight = model.network.get_parameter(own.weight)
    rows = weight.data if model.parts.uses[own.weight].transposed else weight.data.T
    before = rows[own.entries].clone()
    try:
        rows[own.entries] = 0
        yield
    finally:
        rows[own.entries] = before
