"""Which rows of the weights of queries, keys and values belong to which head, in any layout.

Libraries order the rows of one weight for queries, keys and values in different ways: third by
third (GPT-2), head by head (GPT-NeoX, BLOOM), group by group (Falcon), or with fewer keys (Phi-3).
So the rows are not read off names or shapes. What enters the weight that mixes the heads lies head
by head; its derivative with respect to a row's output is 0 for all heads that do not use the row.
A row that several heads use (keys and values of grouped queries) belongs to none of them.

Shapes: H head, O output of a weight.
"""

import itertools

import torch
from torch import Tensor

from capture.parts.found_parts import Attention, HeadBlocks
from capture.parts.parted import Parted

SHARED = -1
"""Number of a row that no head uses alone."""


def head_blocks(model: Parted) -> dict[str, HeadBlocks]:
    """Return weight → the heads of its inputs or outputs: of what mixes heads, and what feeds them.

    Weights of which no row belongs to one head alone are left out.
    """
    found = {}
    owners = row_owners(model)
    for own in filter(None, model.parts.attention):
        size = model.parts.uses[own.out].inputs // own.heads
        head_I = torch.arange(own.heads).repeat_interleave(size)
        found[own.out] = HeadBlocks(own.name, own.heads, True, tuple(head_I.tolist()))
        for weight in weights_before(model, own):
            head_O = owners[weight]
            if bool((head_O != SHARED).any()):
                found[weight] = HeadBlocks(own.name, own.heads, False, tuple(head_O.tolist()))
    return found


def weights_before(model: Parted, own: Attention) -> list[str]:
    """Return the weights that a layer uses before the one that mixes the heads.

    Attention need not be a module of its own: of several heads, none uses the rows of other weights
    alone. A single head would, so of its weights only those in the attention module are returned.
    """
    uses = model.parts.uses
    before = itertools.takewhile(lambda name: name != own.out, uses)
    if own.heads == 1:
        return [name for name in before if name.startswith(f"{own.name}.")]
    return [name for name in before if uses[name].layer == uses[own.out].layer]


def row_owners(model: Parted) -> dict[str, Tensor]:
    """Return the head of each row of the weights that feed heads, -1 for none or several, [O]."""
    attention = [own for own in model.parts.attention if own]
    weights = {name for own in attention for name in (own.out, *weights_before(model, own))}
    if not weights:
        return {}
    _, states = model.with_gradients(model.example_NT, weights)
    found = {}
    for own in attention:
        if not (names := weights_before(model, own)):
            continue
        used = heads_that_use(states[own.out][0], own.heads, [states[name][1] for name in names])
        for name, used_HO in zip(names, used, strict=True):
            alone_O = used_HO.sum(0) == 1
            found[name] = torch.where(alone_O, used_HO.int().argmax(0), SHARED)
    return found


def heads_that_use(mixed: Tensor, heads: int, outputs: list[Tensor]) -> list[Tensor]:
    """Return whether each head depends on each entry of some weights' outputs, [H, O] each.

    ``mixed``: what enters the weight that mixes the heads, side by side along the last axis.
    """
    draw = torch.Generator().manual_seed(0)
    # Each entry has a random weight, so that no derivative of their sum is 0 by chance.
    seen = mixed * torch.randn(mixed.shape, generator=draw).to(mixed)
    used: list[list[Tensor]] = [[] for _ in outputs]
    for own in seen.unflatten(-1, (heads, -1)).unbind(-2):
        grads = torch.autograd.grad(own.sum(), outputs, retain_graph=True, allow_unused=True)
        for rows, grad, output in zip(used, grads, outputs, strict=True):
            grad = torch.zeros_like(output) if grad is None else grad
            rows.append(grad.flatten(0, -2).ne(0).any(0).cpu())
    return [torch.stack(rows) for rows in used]
