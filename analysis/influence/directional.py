"""Directional derivatives of per-token losses: how much each loss grows along a direction.

⟨∇ loss_nt, u⟩ for every datum n and position t needs no gradient of single losses: one forward-mode
pass of the model carries the direction along (Baydin et al. 2018, section 3.1). Several directions
share the pass.

Shapes: Q direction, N datum, T position.
"""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Weights = Mapping[str, Tensor]
Losses = Callable[[dict[str, Tensor]], Tensor]
"""Weights in, losses [N, T] out."""
BYTES_AT_ONCE = 2**28
"""Memory for the directions of one pass."""


def directional_derivatives(losses: Losses, weights: Weights, along: Weights) -> Tensor:
    """Return the derivative of every loss along every direction, [Q, N, T].

    ``along``: for each parameter, its part of all directions, [Q, *shape]; a parameter that is left
    out does not move.
    """
    moved = {name: own.to(weights[name].dtype) for name, own in along.items()}
    fixed = {name: own for name, own in weights.items() if name not in moved}
    given = {name: weights[name] for name in moved}

    def at(own: dict[str, Tensor]) -> Tensor:
        return losses({**fixed, **own})

    def derivative(direction: dict[str, Tensor]) -> Tensor:
        return torch.func.jvp(at, (given,), (direction,))[1]

    num_bytes = sum(own[0].numel() * own.element_size() for own in moved.values())
    at_once = max(1, BYTES_AT_ONCE // max(1, num_bytes))
    # Fused attention has no forward-mode derivative. Torch compiles some rules on first use, by a
    # function that warns of its own deprecation.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.vmap(derivative, chunk_size=at_once)(moved)
