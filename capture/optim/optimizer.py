"""The optimizers, and which part of an update is due to the step's own gradients.

``torch.optim`` moves the weights. What it does is written down here once more, as a formula in
which the clipped gradient ĝ = clip · Σ_i g_i stands alone, so that every datum has its share:

    after − before = scale · P ⊙ Σ_i g_i + carry

- SGD: scale = −lr · clip, P = 1; weight decay (L2) is carry, −lr · decay · θ.
- Momentum (Polyak 1964; Sutskever et al. 2013, equations 1 and 2, in torch's form m ← μ m + ĝ,
  θ ← θ − lr · m): the same scale; −lr · μ m of the step before is carry.
- Nesterov (Sutskever et al. 2013, equations 3 and 4; torch: θ ← θ − lr · (ĝ + μ m)): with m
  written out, scale = −lr · (1 + μ) · clip, and −lr · μ² m of the step before is carry.
- Adam (Kingma & Ba 2015, algorithm 1): scale = −lr · clip · (1 − β₁) / (1 − β₁ᵗ) and
  P = 1 / (√v̂ + ε) with v̂ the step's own; what β₁ m of the step before adds is carry, L2 too.
- AdamW (Loshchilov & Hutter 2019, algorithm 2): Adam's, and −lr · decay · θ is carry.

Nothing here looks at how the weights have changed, so the audit that compares the two can fail.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from capture.errors import ConfigError, ShardError

REMEDY = "Run: ontogeny verify"
Tensors = dict[str, Tensor]
"""One a captured unit, shaped like it."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates; the default is the study's plain SGD."""

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    """torch.optim's SGD, Adam or AdamW."""
    momentum: float = 0.0
    """SGD's μ, at least 0 and below 1."""
    nesterov: bool = False
    """Whether SGD's momentum is Nesterov's."""
    weight_decay: float = 0.0
    """Of SGD and Adam an L2 term that joins the gradient, of AdamW a shrinking apart from it."""
    beta1: float = 0.9
    """Adam's decay of the mean of gradients, at least 0 and below 1."""
    beta2: float = 0.999
    """Adam's decay of the mean of squared gradients, at least 0 and below 1."""
    epsilon: float = 1e-8
    """What Adam adds to the root of that mean, above 0."""

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
        if self.momentum and self.kind != "sgd":
            problem = f"got {self.momentum}, but the optimizer is {self.kind}"
            raise config_error(
                "momentum", problem, "Momentum is SGD's; the like of it here is beta1"
            )
        if self.nesterov and not self.momentum:
            remedy = "Nesterov's is SGD with momentum: set training.optimizer.momentum too"
            raise config_error("nesterov", "got true without momentum", remedy)

    @property
    def plain(self) -> bool:
        """Whether an update is its gradients' and nothing else: SGD, no momentum, no decay."""
        return self.kind == "sgd" and not self.momentum and not self.weight_decay


def config_error(name: str, problem: str, remedy: str = "") -> ConfigError:
    return ConfigError(f"training.optimizer.{name}", problem, remedy)


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """Torch's own optimizer; its learning rate is set anew at every step.

    Its multi-tensor Nesterov, the default on CUDA, adds momentum into the gradients themselves,
    which the audit has yet to read: not that one.
    """
    decay = config.weight_decay
    if config.kind == "sgd":
        return torch.optim.SGD(
            parameters,
            learning_rate,
            config.momentum,
            weight_decay=decay,
            nesterov=config.nesterov,
            foreach=False if config.nesterov else None,
        )
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    betas = config.beta1, config.beta2
    return kind(parameters, learning_rate, betas, config.epsilon, weight_decay=decay)


def optimizer_state(
    optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter], state: str
) -> Tensors:
    """Its own tensors of this name, by unit; nothing before its first step, or if it has none."""
    kept = {name: optimizer.state.get(parameter, {}) for name, parameter in units.items()}
    return {name: own[state] for name, own in kept.items() if own.get(state) is not None}


@dataclass(frozen=True)
class InheritedTerms:
    """What a step moves the weights by, whatever its batch is; known before it is taken."""

    joining: Tensors
    """Added to the clipped gradient, as if it were one: past gradients, and decay as L2."""
    shrinking: Tensors
    """AdamW's: decay · θ, which the preconditioner does not touch."""


@torch.no_grad()
def inherited_terms(
    config: OptimizerConfig, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> InheritedTerms:
    """Copies what the coming step inherits, from weights and first moments as they stand now."""
    memory, decay = first_moment_weight(config), config.weight_decay
    joining = {name: moment * memory for name, moment in moments.items()} if memory else {}
    if not decay:
        return InheritedTerms(joining, {})
    decayed = {name: weight * decay for name, weight in weights.items()}
    if config.kind == "adamw":
        return InheritedTerms(joining, decayed)
    return InheritedTerms(
        {name: own.add_(joining.get(name, 0)) for name, own in decayed.items()}, {}
    )


def first_moment_weight(config: OptimizerConfig) -> float:
    """The weight of the first moment beside that of the new gradient, which counts as 1."""
    if config.kind == "sgd":
        return config.momentum**2 / (1 + config.momentum) if config.nesterov else config.momentum
    return config.beta1 / (1 - config.beta1)


@dataclass(frozen=True)
class UpdateParts:
    """An update as scale · preconditioner ⊙ Σ_i g_i + carry."""

    scale: float
    """What a gradient is multiplied by, clipping included."""
    preconditioner: Tensors | None
    """None: ones."""
    carry: Tensors | None
    """None: zeros."""


@torch.no_grad()
def split_update(
    config: OptimizerConfig,
    legacy: InheritedTerms,
    squares: Mapping[str, Tensor],
    *,
    learning_rate: float,
    clip: float,
    step: int,
) -> UpdateParts:
    """The update ``step`` (from 0) taken apart; ``squares``: Adam's second moments after it."""
    rate = -learning_rate * gradient_weight(config, step)
    preconditioner = None
    if config.kind != "sgd":
        correction = (1 - config.beta2 ** (step + 1)) ** 0.5
        roots = {name: square.sqrt().div_(correction) for name, square in squares.items()}
        preconditioner = {n: root.add_(config.epsilon).reciprocal_() for n, root in roots.items()}
    carry = {name: own * rate for name, own in legacy.joining.items()}
    for name, own in carry.items():
        if preconditioner:
            own.mul_(preconditioner[name])
    for name, own in legacy.shrinking.items():
        shrinking = own * -learning_rate
        carry[name] = carry[name].add_(shrinking) if name in carry else shrinking
    return UpdateParts(rate * clip, preconditioner, carry or None)


def gradient_weight(config: OptimizerConfig, step: int) -> float:
    """How much of the new gradient an update takes, before learning rate and preconditioner."""
    if config.kind == "sgd":
        return 1 + config.momentum if config.nesterov else 1.0
    return (1 - config.beta1) / (1 - config.beta1 ** (step + 1))


def snapshot(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """A copy on the CPU of what it remembers, by ``state/parameter``; its step count follows from
    the run's, so it is left out. Empty for plain SGD, and before the first step."""
    return {
        f"{state}/{name}": tensor.detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for state, tensor in optimizer.state.get(parameter, {}).items()
        if state != "step" and tensor is not None
    }


def restore(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    kept: Mapping[str, Tensor],
    *,
    config: OptimizerConfig,
    step: int,
    where: str,
) -> None:
    """Have it remember what it did after ``step`` updates; raises ``ShardError`` if that is another
    optimizer's. It forgets what it remembered before."""
    wanted = expected_state(parameters, kept, config=config, step=step, where=where)
    optimizer.state.clear()
    for key, parameter in wanted.items():
        own = optimizer.state[parameter]
        own[key.partition("/")[0]] = kept[key].to(parameter.device, copy=True)
        if config.kind != "sgd":
            own["step"] = torch.tensor(float(step))


def expected_state(
    parameters: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    *,
    config: OptimizerConfig,
    step: int,
    where: str,
) -> Tensors:
    """``state/parameter`` → the parameter, of all that is remembered after ``step`` updates; raises
    ``ShardError`` if ``kept`` is not just that."""
    states = state_names(config) if step else ()
    wanted = {f"{state}/{name}": p for state in states for name, p in parameters.items()}
    for key in sorted(wanted.keys() | kept.keys()):
        if key not in wanted:
            raise ShardError(where, f"has an unknown optimizer/{key}", REMEDY)
        if key not in kept:
            raise ShardError(where, f"lacks optimizer/{key}", REMEDY)
        if (kept[key].shape, kept[key].dtype) != (wanted[key].shape, wanted[key].dtype):
            raise ShardError(where, f"has optimizer/{key} of another shape or type", REMEDY)
    return wanted


def state_names(config: OptimizerConfig) -> tuple[str, ...]:
    """What torch calls the tensors that it remembers for each parameter."""
    if config.kind == "sgd":
        return ("momentum_buffer",) if config.momentum else ()
    return ("exp_avg", "exp_avg_sq")


def describe_optimizer(config: OptimizerConfig) -> str:
    """Such as "Nesterov momentum 0.9, weight decay 0.01"."""
    words = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[config.kind]
    if config.momentum:
        words += f" with {'Nesterov ' if config.nesterov else ''}momentum {config.momentum:g}"
    elif config.kind != "sgd":
        words += f" (β₁ {config.beta1:g}, β₂ {config.beta2:g})"
    return words + (f", weight decay {config.weight_decay:g}" if config.weight_decay else "")
