"""Whether the loop's loss mixes datums: its operations, run again with other rows beside a datum.

Run again with the rows of all other datums changed, the loss must give the same gradient at a
datum's rows. A contrastive loss or a normalization over the batch does not. Run again with the rows
as they were, it must give the gradient that came back in training, or else the operations that were
noted are not the whole loss, and nothing is known of it.

A model may compute the loss itself, and return it as a number beside its logits. What is inside is
compared by ``split_check``. Here, only what the loop makes of the number is run again: it must give
the same gradient at the number for other batches, which the square of a mean loss does not.

Shapes: N datum.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from capture.custom_loop.checks.loss_log import LossLog, NotRepeatableError, Root
from capture.custom_loop.checks.model_calls import ModelCall, tensors_of

SHRINK = 0.7
"""Factor of the other datums' rows, besides their order."""
TOLERANCE = 1e-3
"""Largest relative difference of a datum's δ that counts as rounding."""
HALF_TOLERANCE = 5e-2
"""Replaces ``TOLERANCE`` under autocast, where a sum over the batch is rounded more coarsely."""
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError)

Grads = list[Tensor]
"""Loss gradients at the outputs that gradients came back to, of their shapes."""


def interaction(log: LossLog, calls: Sequence[ModelCall], num_datums: int) -> float | None:
    """Return by how much a datum's loss gradient changes with the outputs of other datums.

    None if it does not. ``calls``: with the datum's entries of each output, as ``check_split`` has
    found them. Raises ``NotRepeatableError`` if this cannot be found out.
    """
    known = [call.deltas if call.direct is None else call.direct for call in calls]
    pairs = zip(calls, known, strict=True)
    deltas = {id(call.outputs[n]): x for call, found in pairs for n, x in found.items()}
    reached = [x for x in log.outputs if id(x) in deltas]
    if not reached or num_datums < 2:
        return None
    log.require_unchanged()
    masks = datum_masks(calls)
    if any(id(x) not in masks for x in reached):
        raise NotRepeatableError("outputs whose axis of datums is unknown")
    values = {id(x): log.originals.get(id(x), x.detach()) for x in log.outputs}
    changed = {key: in_other_batch(x, masks.get(key)) for key, x in values.items()}
    mixed = [call for call in calls if call.direct is None and call.has_loss]
    inner = {id(x) for call in mixed for x in call.outputs if x.dim()}
    own = [masks[id(x)] for x in reached]
    true = [deltas[id(x)] * mask for x, mask in zip(reached, own, strict=True)]
    tolerance = HALF_TOLERANCE if any(call.autocast.enabled for call in calls) else TOLERANCE
    for roots in possible_roots(log):
        before, is_random = gradients(log, roots, reached, values)
        before = [x * mask for x, mask in zip(before, own, strict=True)]
        seen = [n for n, x in enumerate(reached) if id(x) not in inner]
        pair = [before[n] for n in seen], [true[n] for n in seen]
        if not is_random and not difference(scaled_to(*pair), pair[1]) <= tolerance:
            continue  # the gradient did not come from these
        if any(bool(before[n].any()) for n in range(len(reached)) if n not in seen):
            raise NotRepeatableError("a loss of the loop beside that of the model")
        after, _ = gradients(log, roots, reached, changed)
        after = [x * mask for x, mask in zip(after, own, strict=True)]
        worst = difference(before, after)
        if not worst <= tolerance:
            return worst
        if left := [name for name, at in log.left.items() if at < log.end]:
            raise NotRepeatableError(f"numbers that left torch ({', '.join(left)})")
        return None
    raise NotRepeatableError("operations that are not plain torch functions")


def exchange_in_loss(log: LossLog) -> str:
    """Return the name of an exchange between processes that the loss depends on, "" if none."""
    known, every, *_ = possible_roots(log)
    ends = [x for root in known or every for x in root if x is not None]
    return next(filter(None, map(log.exchanged.name_of, ends)), "")


def datum_masks(calls: Sequence[ModelCall]) -> dict[int, Tensor]:
    """Return by the id of an output which of its entries are the datum's, to be broadcast.

    A loss, which is one number, is every datum's.
    """
    masks = {}
    for call in calls:
        losses = [x for x in call.outputs if not x.dim()]
        masks |= {id(x): torch.ones_like(x, dtype=torch.bool) for x in losses}
        masks |= {id(call.outputs[number]): mask for number, mask in call.masks.items()}
    return masks


def possible_roots(log: LossLog) -> list[list[Root]]:
    """Return what the gradient may have come from.

    ``torch.autograd.backward`` does not say what it was called on: then scalars that nothing else
    was computed from are tried, all and one by one.
    """
    known = [root for root in log.roots if id(root[0]) in log.tracked]
    operations = log.operations[: log.end]
    used = {id(x) for each in operations for x in tensors_of((each.args, each.kwargs))}
    made = {id(x): x for each in operations for x in each.made}
    ends: list[Root] = [
        (x, None) for x in made.values() if x.numel() == 1 and x.requires_grad and id(x) not in used
    ]
    ends = [end for end in ends if all(end[0] is not root for root, _ in known)]
    return [known, [*known, *ends], *([*known, end] for end in ends)]


def gradients(
    log: LossLog, roots: Sequence[Root], reached: Sequence[Tensor], values: Mapping[int, Tensor]
) -> tuple[Grads, bool]:
    """Return the gradients for these values of the outputs, by id, and whether chance had a part.

    Random numbers are the same at every call.
    """
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    state = torch.get_rng_state()
    leaves = {
        key: x.detach().requires_grad_() if x.is_floating_point() else x
        for key, x in values.items()
    }
    try:
        with torch.enable_grad():
            now, inputs = log.run_again({key: x.clone() for key, x in leaves.items()})
        pairs = [
            (
                inputs.get(id(root), now[id(root)]),
                None if gradient is None else now.get(id(gradient), gradient),
            )
            for root, gradient in roots
        ]
        ends = [pair for pair in pairs if pair[0].requires_grad]
        found = torch.autograd.grad(
            [root for root, _ in ends],
            [leaves[id(x)] for x in reached],
            [gradient for _, gradient in ends],
            allow_unused=True,
        )
    except REFUSALS as error:
        raise NotRepeatableError(f"an operation that fails ({type(error).__name__})") from error
    is_random = not torch.equal(state, torch.get_rng_state())
    pairs = zip(found, reached, strict=True)
    return [torch.zeros_like(x) if grad is None else grad for grad, x in pairs], is_random


def scaled_to(grads: Grads, wanted: Grads) -> Grads:
    """Return the gradients times the one number that brings them closest to those wanted."""
    product = sum(float((x * y).sum()) for x, y in zip(grads, wanted, strict=True))
    square = sum(float(x.square().sum()) for x in grads)
    return [x * (product / square) for x in grads] if square else grads


def difference(one: Grads, other: Grads) -> float:
    """Return the largest difference, relative to the larger of the two."""
    worst = 0.0
    for x, y in zip(one, other, strict=True):
        if norm := max(float(x.norm()), float(y.norm())):
            worst = max(worst, float((x - y).norm()) / norm)
    return worst


def in_other_batch(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return an output as it may be if all datums but that of ``mask`` are others."""
    if mask is None or not x.is_floating_point():
        return x
    if not x.dim():
        return x * SHRINK
    # In reverse along the last axis as well, because a loss may normalize rows to unit length.
    return torch.where(mask, x, x.flip(-1) * SHRINK)
