"""Adam, AdamW, NAdam, RAdam and Adamax of ``torch.optim``.

All hold the first moment m' = β₁ m + (1 − β₁) u and a second moment v; t is the number of the step.
Sources beside torch's code:

- Adam: Kingma & Ba 2015, algorithm 1; Adamax: algorithm 2, with P = 1 / v for v the largest
  gradient, decayed. AdamW: Loshchilov & Hutter 2019, algorithm 2.
- amsgrad: Reddi et al. 2018, algorithm 2: v is the largest second moment so far.
- NAdam: Dozat 2016, algorithm 2: the gradient enters the update once by itself and once in m'.
- RAdam: Liu et al. 2020, algorithm 2: P is 1 while the variance of v is not tractable.
"""

import math
from functools import partial

import torch

from capture.optim.lifetime import AppliedUpdate
from capture.optim.rules.linear_rule import LinearRule, with_decay
from capture.optim.rules.unit_update import UnitUpdate


def betas(update: UnitUpdate) -> tuple[float, float]:
    beta1, beta2 = map(float, update.group["betas"])
    return beta1, beta2


def of_moment(update: UnitUpdate, rate: float, by: torch.Tensor | float) -> AppliedUpdate:
    """Return the coefficients of θ' = θ + rate · P ⊙ m'."""
    beta1, _ = betas(update)
    return AppliedUpdate(
        rate * (1 - beta1),
        1.0,
        1.0,
        by,
        remembered=beta1 / (1 - beta1),
        old=beta1,
        new=1 - beta1,
    )


@torch.no_grad()
def adam(update: UnitUpdate, *, decoupled: bool | None = None) -> AppliedUpdate:
    (beta1, beta2), group, t = betas(update), update.group, update.count
    square = update.after["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    by = square.sqrt().div_((1 - beta2**t) ** 0.5).add_(float(group["eps"])).reciprocal_()
    applied = of_moment(update, -update.learning_rate / (1 - beta1**t), by)
    return with_decay(applied, update, decoupled=decoupled)


@torch.no_grad()
def nadam(update: UnitUpdate) -> AppliedUpdate:
    (beta1, beta2), group, t = betas(update), update.group, update.count
    decay, product = float(group["momentum_decay"]), float(update.after["mu_product"])
    now, then = (beta1 * (1 - 0.5 * 0.96 ** (n * decay)) for n in (t, t + 1))
    by = (update.after["exp_avg_sq"] / (1 - beta2**t)).sqrt_().add_(group["eps"]).reciprocal_()
    of_gradient, of_m = (1 - now) / (1 - product), then / (1 - product * then)
    whole = of_gradient + of_m * (1 - beta1)
    applied = AppliedUpdate(
        -update.learning_rate * whole,
        1.0,
        1.0,
        by,
        remembered=of_m * beta1 / whole,
        old=beta1,
        new=1 - beta1,
    )
    return with_decay(applied, update)


@torch.no_grad()
def radam(update: UnitUpdate) -> AppliedUpdate:
    (beta1, beta2), t = betas(update), update.count
    rate = -update.learning_rate / (1 - beta1**t)
    correction = 1 - beta2**t
    limit = 2 / (1 - beta2) - 1
    length = limit - 2 * t * beta2**t / correction
    by: torch.Tensor | float = 1.0
    if length > 5:
        top = (length - 4) * (length - 2) * limit
        rate *= math.sqrt(correction * top / ((limit - 4) * (limit - 2) * length))
        by = update.after["exp_avg_sq"].sqrt().add_(update.group["eps"]).reciprocal_()
    return with_decay(of_moment(update, rate, by), update)


@torch.no_grad()
def adamax(update: UnitUpdate) -> AppliedUpdate:
    rate = -update.learning_rate / (1 - betas(update)[0] ** update.count)
    return with_decay(of_moment(update, rate, update.after["exp_inf"].reciprocal()), update)


RULES = {
    torch.optim.Adam: LinearRule("Adam", adam, "exp_avg"),
    torch.optim.AdamW: LinearRule(
        "AdamW", partial(adam, decoupled=True), "exp_avg", multiplies=True
    ),
    torch.optim.NAdam: LinearRule("NAdam", nadam, "exp_avg"),
    torch.optim.RAdam: LinearRule("RAdam", radam, "exp_avg"),
    torch.optim.Adamax: LinearRule("Adamax", adamax, "exp_avg"),
}
