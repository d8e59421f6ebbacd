"""SGD, RMSprop, Adagrad, Adadelta and ASGD of ``torch.optim``.

Symbols as in ``capture.optim.lifetime``; u is the gradient with L2 decay, v a second moment after
the step. Sources beside torch's code:

- Momentum: Sutskever et al. 2013, equations 1 to 4.
- RMSprop: Tieleman & Hinton 2012, lecture 6e; centered: Graves 2013, equations 38 to 41. P is
  1 / (√v + ε), or 1 / (√(v − ḡ²) + ε) with ḡ the mean gradient. Its momentum holds P ⊙ u.
- Adagrad: Duchi et al. 2011. P is 1 / (√(Σ u²) + ε).
- Adadelta: Zeiler 2012, algorithm 1. P is √(s + ε) / √(v + ε) with s the mean square of updates
  before the step.
- ASGD: Polyak & Juditsky 1992. The weights decay by 1 − λη; the average is beside them.
"""

from dataclasses import replace

import torch

from capture.optim.lifetime import AppliedUpdate
from capture.optim.rules.linear_rule import LinearRule, with_decay
from capture.optim.rules.unit_update import UnitUpdate


def sgd(update: UnitUpdate) -> AppliedUpdate:
    group, lr = update.group, update.learning_rate
    momentum = float(group["momentum"])
    if not momentum:
        return with_decay(AppliedUpdate(-lr, 1.0, 1.0, 1.0), update)
    # Torch begins the momentum with the whole first gradient, whatever the dampening.
    first = update.before.get("momentum_buffer") is None
    new = 1.0 if first else 1 - float(group["dampening"])
    of_gradient, of_moment = new, momentum
    if group["nesterov"]:
        of_gradient, of_moment = 1 + momentum * new, momentum**2
    applied = AppliedUpdate(
        -lr * of_gradient, 1.0, 1.0, 1.0, added=-lr * of_moment, old=momentum, new=new
    )
    return with_decay(applied, update)


@torch.no_grad()
def rmsprop(update: UnitUpdate) -> AppliedUpdate:
    group, lr = update.group, update.learning_rate
    square = update.after["square_avg"]
    if group["centered"]:
        mean = update.after["grad_avg"]
        square = square.addcmul(mean, mean, value=-1)
    by = square.sqrt().add_(group["eps"]).reciprocal_()
    momentum = float(group["momentum"])
    new = by if momentum else 0.0
    applied = AppliedUpdate(-lr, 1.0, 1.0, by, added=-lr * momentum, old=momentum, new=new)
    return with_decay(applied, update)


@torch.no_grad()
def adagrad(update: UnitUpdate) -> AppliedUpdate:
    group = update.group
    rate = update.learning_rate / (1 + (update.count - 1) * float(group["lr_decay"]))
    by = update.after["sum"].sqrt().add_(group["eps"]).reciprocal_()
    return with_decay(AppliedUpdate(-rate, 1.0, 1.0, by), update)


@torch.no_grad()
def adadelta(update: UnitUpdate) -> AppliedUpdate:
    square, eps = update.after["square_avg"], update.group["eps"]
    changes = update.before.get("acc_delta")
    by = (torch.zeros_like(square) if changes is None else changes).add(eps).sqrt_()
    by.div_(square.add(eps).sqrt_())
    return with_decay(AppliedUpdate(-update.learning_rate, 1.0, 1.0, by), update)


def asgd(update: UnitUpdate) -> AppliedUpdate:
    # Torch keeps the rate in float32, and begins with the learning rate of its first step.
    rate = float(update.before.get("eta", torch.tensor(update.learning_rate)))
    applied = with_decay(AppliedUpdate(-rate, 1.0, 1.0, 1.0), update)
    return replace(applied, kept=1 - float(update.group["lambd"]) * rate)


RULES = {
    torch.optim.SGD: LinearRule("SGD", sgd, "momentum_buffer"),
    torch.optim.RMSprop: LinearRule("RMSprop", rmsprop, "momentum_buffer"),
    torch.optim.Adagrad: LinearRule("Adagrad", adagrad),
    torch.optim.Adadelta: LinearRule("Adadelta", adadelta, also_reads=("acc_delta",)),
    torch.optim.ASGD: LinearRule("ASGD", asgd, also_reads=("eta",), multiplies=True),
}
