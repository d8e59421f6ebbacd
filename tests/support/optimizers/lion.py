"""Optimizers that state their own rule.

Lion (Chen et al. 2023, algorithm 2), schedule-free SGD (Defazio et al. 2024, equations 1 to 3), and
half of SGD.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from capture.optim.rules import UnitUpdate


class Lion(torch.optim.Optimizer):
    """Moves each weight by the learning rate, against the sign of c = β₁ m + (1 − β₁) g.

    sign(c) = c / |c| is linear in g, given the step's own |c|.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                moment = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_((beta1 * moment + (1 - beta1) * p.grad).sign(), alpha=-lr)
                moment.lerp_(p.grad, 1 - beta2)

    def preconditioner(self, update: UnitUpdate) -> Tensor:
        direction, beta1 = self.direction(update), update.group["betas"][0]
        by = torch.where(direction == 0, 0.0, 1 / direction.abs())
        return by * (-update.learning_rate * (1 - beta1))

    def carry(self, update: UnitUpdate) -> Tensor:
        lr, moved = update.learning_rate, self.direction(update).sign()
        decay = update.weight * update.group["weight_decay"]
        return -lr * (moved + decay) - self.preconditioner(update) * update.gradient

    def direction(self, update: UnitUpdate) -> Tensor:
        beta1 = update.group["betas"][0]
        moment = update.before.get("exp_avg", torch.zeros_like(update.weight))
        return beta1 * moment + (1 - beta1) * update.gradient


class ScheduleFreeSGD(torch.optim.Optimizer):
    """Takes gradients at y = (1 − β) z + β x, which the model holds; x is the mean of all z.

    z' = z − lr · g, x' = (1 − c) x + c z' with c = 1 / t, and y' = (1 − β) z' + β x'.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"z": p.clone(), "x": p.clone(), "step": torch.tensor(0.0)}
                state["step"] += 1
                state["z"].sub_(p.grad, alpha=group["lr"])
                state["x"].lerp_(state["z"], 1 / float(state["step"]))
                p.copy_(state["z"].lerp(state["x"], group["beta"]))

    def share_of_z(self, update: UnitUpdate) -> float:
        """Return by what a change of z' changes y'."""
        beta = update.group["beta"]
        return 1 - beta + beta / update.count

    def preconditioner(self, update: UnitUpdate) -> float:
        return -update.learning_rate * self.share_of_z(update)

    def carry(self, update: UnitUpdate) -> Tensor:
        beta, share = update.group["beta"], self.share_of_z(update)
        z, x = (update.before.get(name, update.weight) for name in ("z", "x"))
        return share * z + beta * (1 - 1 / update.count) * x - update.weight


class Halving(torch.optim.SGD):
    """Moves the weights by half of the learning rate."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] /= 2
        found = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 2
        return found

    def preconditioner(self, update: UnitUpdate) -> float:
        return -update.learning_rate / 2

    def carry(self, update: UnitUpdate) -> float:
        return 0.0
