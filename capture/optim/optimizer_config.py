"""Settings of the optimizer. This module does not import torch."""

from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates; the default is plain SGD, as in the study."""

    kind: Literal["sgd", "adam", "adamw", "other"] = "sgd"
    """SGD, Adam or AdamW of torch.optim; other: any of your own training loop (ontogeny.record)."""
    momentum: float = 0.0
    """SGD's μ, at least 0 and below 1."""
    nesterov: bool = False
    """Whether SGD uses Nesterov momentum."""
    weight_decay: float = 0.0
    """For SGD and Adam an L2 term added to the gradient; for AdamW decoupled weight decay."""
    beta1: float = 0.9
    """Adam's decay rate of the first moment, at least 0 and below 1."""
    beta2: float = 0.999
    """Adam's decay rate of the second moment, at least 0 and below 1."""
    epsilon: float = 1e-8
    """Added to the root of Adam's second moment, above 0."""
    name: str = ""
    """Name of another optimizer; set by ontogeny.record."""

    def __post_init__(self) -> None:
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= (found := getattr(self, name)) < 1:
                raise config_error(name, f"got {found}, must be at least 0 and below 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise config_error(
                "weight_decay", f"got {self.weight_decay}, must be at least 0 and finite"
            )
        if not 0 < self.epsilon < float("inf"):
            raise config_error("epsilon", f"got {self.epsilon}, must be above 0 and finite")
        if (self.kind == "other") != bool(self.name):
            problem = "is only for runs of your own training loop, which name their optimizer"
            raise config_error("kind", f"other {problem}", "Use sgd, adam or adamw")
        if self.momentum and self.kind != "sgd":
            problem = f"got {self.momentum}, but the optimizer is {self.kind}"
            raise config_error("momentum", problem, "Only SGD has momentum; Adam has beta1")
        if self.nesterov and not self.momentum:
            remedy = "Set training.optimizer.momentum too"
            raise config_error("nesterov", "got true without momentum", remedy)

    @property
    def plain(self) -> bool:
        """Whether an update is −lr · clipped gradient: SGD without momentum or weight decay."""
        return self.kind == "sgd" and not self.momentum and not self.weight_decay


def config_error(name: str, problem: str, remedy: str = "") -> ConfigError:
    """Return the error for a setting of ``OptimizerConfig``."""
    return ConfigError(f"training.optimizer.{name}", problem, remedy)


def describe_optimizer(config: OptimizerConfig) -> str:
    """Return a phrase such as "SGD with Nesterov momentum 0.9, weight decay 0.01"."""
    kinds = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "other": config.name}
    words = kinds[config.kind]
    if config.momentum:
        words += f" with {'Nesterov ' if config.nesterov else ''}momentum {config.momentum:g}"
    elif config.kind in ("adam", "adamw"):
        words += f" (β₁ {config.beta1:g}, β₂ {config.beta2:g})"
    return words + (f", weight decay {config.weight_decay:g}" if config.weight_decay else "")
