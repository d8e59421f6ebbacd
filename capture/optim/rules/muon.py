"""Muon (Jordan et al. 2024; Liu et al. 2025) of ``torch.optim``: a linear map per matrix.

With the direction M = (1 − μ) g · c + … (momentum, of which g is linear part), Muon applies a
Newton-Schulz iteration to X₀ = M / ‖M‖:

    A_k = X_k X_kᵀ,    X_{k+1} = (a I + b A_k + c A_k²) X_k

So its result is Q X₀ with Q the product of these brackets, a symmetric matrix that all datums of
the batch share, as they share Adam's second moment. Given Q and ‖M‖, the update is linear in the
gradient: datum i's shift is −lr · adjusted · (weight of g in M) / ‖M‖ · Q g_i. A matrix with more
rows than columns is transposed before and after, so Q multiplies from the right.

Torch computes the iteration in bfloat16. The carry is what it applied beside Q g: momentum, decay
and this rounding, which no datum accounts for. The iteration is repeated here with the same
operations, so that the audit can compare the whole update with the change of the weights.

Coefficients that are one number an entry do not exist, so lifetime shifts are refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capture.optim.rules.unit_update import UnitParts, UnitUpdate
from capture.optim.side_map import SideMap


@dataclass(frozen=True)
class MuonRule:
    """The rule of ``torch.optim.Muon``."""

    name: str = "Muon"
    reads: tuple[str, ...] = ()
    problem: str = "mixes the entries of a matrix (orthogonalization)"

    def decays(self, group: Mapping[str, Any]) -> bool:
        return bool(group["weight_decay"])

    @torch.no_grad()
    def parts(self, update: UnitUpdate) -> UnitParts:
        group, lr, gradient = update.group, update.learning_rate, update.gradient
        momentum, moment = float(group["momentum"]), update.after["momentum_buffer"]
        share, direction = 1 - momentum, moment
        if group["nesterov"]:
            share, direction = share * (1 + momentum), gradient.lerp(moment, momentum)
        result, mapped = orthogonalized(direction, group)
        rate = -lr * adjustment(group["adjust_lr_fn"], gradient.shape)
        scale = rate * share
        carry = result.to(gradient.dtype).mul_(rate).sub_(mapped(gradient).mul_(scale))
        carry -= update.weight * (lr * float(group["weight_decay"]))
        return UnitParts(scale, None, carry, mapped)


def orthogonalized(
    direction: Tensor, group: Mapping[str, Any], precision: torch.dtype = torch.bfloat16
) -> tuple[Tensor, SideMap]:
    """Return Muon's result for a direction M, computed in ``precision``, and Q / ‖M‖ in M's type.

    Torch computes in bfloat16.
    """
    a, b, c = map(float, group["ns_coefficients"])
    tall = direction.shape[0] > direction.shape[1]
    x = direction.to(precision)
    x = x.T if tall else x
    norm = x.norm().clamp(min=group["eps"])
    x = x / norm
    identity = torch.eye(len(x), dtype=direction.dtype, device=direction.device)
    product = identity / norm.to(direction.dtype)
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        bracket = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, bracket, x, beta=a)
        product = a * product + bracket.to(direction.dtype) @ product
    return (x.T if tall else x), SideMap("right" if tall else "left", (product + product.T) / 2)


def adjustment(kind: str | None, shape: torch.Size) -> float:
    """Return the factor on the learning rate that depends on the matrix's shape."""
    rows, columns = shape[:2]
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns)) if kind in (None, "original") else 1.0
