"""Whether the loop's loss mixes datums: its operations, run again with other rows beside a datum.

The loss is computed by the loop, outside the model, so it cannot be called again. Its operations
are noted between the model's outputs and ``backward`` instead. Run again with the rows of all other
datums changed, they must give the same loss gradient at the datum's rows. A contrastive loss or a
normalization over the batch does not.

Shapes: N datum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from capture.custom_loop.model_calls import ModelCall, tensors_of

SHRINK = 0.7
"""Factor of the other datums' rows, besides their order."""
TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2
"""The same under autocast, where a sum over the batch is rounded more coarsely."""


@dataclass
class LossLog:
    """The operations on model outputs outside the model, in order."""

    operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = (
        field(default_factory=list)
    )
    tracked: set[int] = field(default_factory=set)
    """Ids of the outputs and of everything computed from them. The log keeps all of them alive."""
    outputs: list[Tensor] = field(default_factory=list)

    def add_outputs(self, outputs: Sequence[Tensor]) -> None:
        self.outputs += outputs
        self.tracked |= {id(x) for x in outputs}

    def add_operation(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        if any(id(x) in self.tracked for x in tensors_of((args, kwargs))):
            made = tensors_of(out)
            self.operations.append((func, args, kwargs, made))
            self.tracked |= {id(x) for x in made}

    def run_again(self, outputs: Sequence[Tensor], losses: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the losses for other model outputs; None if they were not computed from these."""
        now = {id(old): new for old, new in zip(self.outputs, outputs, strict=True)}

        def renewed(x: Any) -> Any:
            return now.get(id(x), x) if isinstance(x, Tensor) else x

        for func, args, kwargs, made in self.operations:
            args, kwargs = tree_map(renewed, (args, kwargs))
            with torch.enable_grad():
                found = tensors_of(func(*args, **kwargs))
            now.update((id(old), new) for old, new in zip(made, found, strict=True))
        return [now[id(x)] for x in losses] if all(id(x) in now for x in losses) else None


def interaction(
    log: LossLog, calls: Sequence[ModelCall], losses: Sequence[Tensor], slot: int
) -> float | None:
    """Return by how much a datum's loss gradient changes with the outputs of other datums.

    None if it does not, or if this is unknown because the loss was not computed from outputs whose
    first axis is the datum by operations that the log knows.
    """
    deltas = {id(call.outputs[n]): delta for call in calls for n, delta in call.deltas.items()}
    num_datums = max((x.shape[0] for x in log.outputs if x.dim()), default=0)
    rows = [x for x in log.outputs if x.dim() and x.shape[0] == num_datums and id(x) in deltas]
    if not rows or not losses or num_datums < 2:
        return None
    changed = {id(x): change_others(x.detach(), slot) for x in rows}
    for x in changed.values():
        x.requires_grad_()
    outputs = [changed.get(id(x), x.detach()) for x in log.outputs]
    try:
        found = log.run_again(outputs, losses)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    if found is None or not any(x.requires_grad for x in found):
        return None
    grads = torch.autograd.grad(found, list(changed.values()), allow_unused=True)
    worst = 0.0
    for x, gradient in zip(rows, grads, strict=True):
        own = deltas[id(x)][slot]
        other = torch.zeros_like(own) if gradient is None else gradient[slot]
        norm = max(float(own.norm()), float(other.norm()))
        if norm:
            worst = max(worst, float((own - other).norm()) / norm)
    rounded = any(call.autocast[1] for call in calls)
    return worst if worst > (HALF_TOLERANCE if rounded else TOLERANCE) else None


def change_others(x_N: Tensor, slot: int) -> Tensor:
    """Return a copy in which the rows of all datums but one are others of the same range."""
    # In reverse along the last axis as well, because a loss may normalize rows to unit length.
    out_N = x_N.flip(-1) * SHRINK if x_N.dim() > 1 else x_N * SHRINK
    out_N[slot] = x_N[slot]
    return out_N
