"""What one step returns: loss, clipping, factors, and the parts of the update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capture.gradients.dense import join_datums
from capture.gradients.factors import Factors
from capture.optim.optimizer import Tensors
from capture.optim.side_map import SideMap


@dataclass(frozen=True)
class LastToken:
    """The part of a step that is due to the loss at each window's last position."""

    factors: Factors
    gradients: Tensors
    """Autograd's gradient by unit, with which the sum of the factors is compared."""


@dataclass(frozen=True)
class Step:
    """One optimizer update."""

    loss: float
    """Mean cross-entropy of the batch, nats per token."""
    gradient_norm: float
    """Norm of the gradient over the whole model, before clipping."""
    clip: float
    """Factor by which clipping multiplied the gradient."""
    learning_rate: float
    factors: Factors
    """Factors of the training loss, for this worker's slots."""
    last: LastToken | None
    """Part of the last token, if that is what is recorded."""
    scale: float
    """Multiplier from gradient to shift (−lr · clip), before preconditioning."""
    preconditioner: Tensors | None = None
    """Further multiplier of each entry's shift, by unit; None means 1, as with SGD."""
    carry: Tensors | None = None
    """Change that no datum of the batch accounts for (momentum, weight decay), by unit; None: 0."""
    gradients: Tensors | None = None
    """Clipped gradient that the optimizer was given, by unit. None for plain SGD in float32, where
    the audit compares shifts with the change of the weights directly."""
    side_maps: Mapping[str, SideMap] | None = None
    """Linear maps of whole gradients, by unit (Muon); None: none. No unit has both a map and a
    preconditioner that is not one number."""


def join_last_tokens(pieces: Sequence[LastToken]) -> LastToken | None:
    """Join the last token's parts of a batch's micro-batches, in order; None if there are none."""
    if not pieces:
        return None
    first, *others = (piece.gradients for piece in pieces)
    sums = {name: sum((other[name] for other in others), grad) for name, grad in first.items()}
    return LastToken(join_datums([piece.factors for piece in pieces]), sums)
