"""Adafactor (Shazeer & Stern 2018, algorithms 4 and 5), of ``torch.optim`` and of transformers.

The second moment of a matrix is the product of one number a row and one a column. The update is
divided by its own root mean square where that exceeds a threshold. Both depend on the batch as a
whole; given them, the update is linear in the gradient, entry by entry. transformers can keep a
momentum of *updates*: m' = β₁ m + (1 − β₁) · lr · P ⊙ u and θ' = kept · θ − m'.
"""

import math
from typing import Any

import torch
from torch import Tensor

from capture.optim.lifetime import AppliedUpdate
from capture.optim.rules.linear_rule import LinearRule, with_decay
from capture.optim.rules.unit_update import UnitUpdate


def clipped(by: Tensor, gradient: Tensor, threshold: float) -> Tensor:
    """Return a multiplier, divided so that the update's root mean square is at most a threshold."""
    size = (by * gradient).norm(2).item() / math.sqrt(gradient.numel())
    return by / max(1.0, size / threshold)


@torch.no_grad()
def adafactor(update: UnitUpdate) -> AppliedUpdate:
    group, state, weight = update.group, update.after, update.weight
    least, least_scale = group["eps"]
    least = torch.finfo(weight.dtype).eps if least is None else least
    size = weight.norm(2).item() / math.sqrt(weight.numel())
    rate = max(least_scale, size) * min(update.learning_rate, 1 / math.sqrt(update.count))
    if state.get("row_var") is None:
        square = state["variance"]
    else:
        row = state["row_var"]
        square = (row @ state["col_var"]).div_(row.mean(-2, keepdim=True).clamp_(min=least))
    by = clipped(square.clamp(min=least**2).rsqrt_(), update.gradient, group["d"])
    return with_decay(AppliedUpdate(-rate, 1.0, 1.0, by), update, decoupled=True)


@torch.no_grad()
def transformers_adafactor(update: UnitUpdate) -> AppliedUpdate:
    group, state = update.group, update.after
    rate = transformers_rate(group, update.count, float(state["RMS"]))
    if "exp_avg_sq_row" in state:
        row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        by = (row / row.mean(-1, keepdim=True)).rsqrt_()[..., None] * column[..., None, :].rsqrt()
    else:
        by = state["exp_avg_sq"].rsqrt()
    by = clipped(by, update.gradient, group["clip_threshold"])
    kept = 1 - float(group["weight_decay"]) * rate
    if group["beta1"] is None:
        return AppliedUpdate(-rate, 1.0, kept, by)
    old = float(group["beta1"])
    share = (1 - old) * rate
    return AppliedUpdate(-share, 1.0, kept, by, added=-old, old=old, new=by * share)


def transformers_rate(group: Any, count: int, size: float) -> float:
    """Return the learning rate of a step; ``size``: root mean square of the weights before it."""
    rate = group["lr"]
    if group["relative_step"]:
        least = 1e-6 * count if group["warmup_init"] else 1e-2
        rate = min(least, 1 / math.sqrt(count))
    return float(rate) * (max(group["eps"][1], size) if group["scale_parameter"] else 1.0)


TORCH = LinearRule("Adafactor", adafactor, multiplies=True)
TRANSFORMERS = LinearRule(
    "transformers.Adafactor", transformers_adafactor, "exp_avg", multiplies=True
)
