"""Split of an optimizer's update into the part of the step's own gradients, and carry.

``torch.optim`` moves the weights. This module states what it does as a formula that is linear in
the per-sample gradients g_i, given the optimizer's state:

    after − before = scale · P ⊙ Σ_i g_i + carry

Here ĝ = clip · Σ_i g_i is the clipped gradient, m the first moment before the step, θ a weight
before it, and t the number of the step, from 1.

- SGD: scale = −lr · clip and P = 1; weight decay (L2) gives the carry −lr · decay · θ.
- Momentum (Polyak 1964; Sutskever et al. 2013, equations 1 and 2; in torch m ← μ m + ĝ and
  θ ← θ − lr · m): the same scale; the carry is −lr · μ m.
- Nesterov (Sutskever et al. 2013, equations 3 and 4; in torch θ ← θ − lr · (ĝ + μ m) with the new
  m = μ m + ĝ): scale = −lr · (1 + μ) · clip; the carry is −lr · μ² m.
- Adam (Kingma & Ba 2015, algorithm 1): scale = −lr · clip · (1 − β₁) / (1 − β₁ᵗ) and
  P = 1 / (√v̂ + ε), with v̂ after the step; the carry holds the terms of β₁ m and of L2 decay.
- AdamW (Loshchilov & Hutter 2019, algorithm 2): as Adam, and −lr · decay · θ is added to the carry.

Nothing here reads the weights after the step. The audit, which does, can therefore fail.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.errors import ConfigError, ShardError
from capture.optim.optimizer_config import OptimizerConfig
from capture.optim.side_map import SideMap

REMEDY = "Run: ontogeny verify"
Tensors = dict[str, Tensor]
"""Unit name → a tensor of the unit's shape."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """Return the torch optimizer; the engine sets its learning rate at every step.

    Raises ``ConfigError`` for another kind of optimizer, which only loops of users have.
    """
    if config.kind == "other":
        problem = f"is {config.name}, which only a training loop of your own can have"
        raise ConfigError("training.optimizer", problem, "Use sgd, adam or adamw")
    decay = config.weight_decay
    if config.kind == "sgd":
        return torch.optim.SGD(
            parameters,
            learning_rate,
            config.momentum,
            weight_decay=decay,
            nesterov=config.nesterov,
            # The multi-tensor implementation (the default on CUDA) adds Nesterov momentum to the
            # gradients in place, and the audit reads the gradients after the step.
            foreach=False if config.nesterov else None,
        )
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    betas = config.beta1, config.beta2
    return kind(parameters, learning_rate, betas, config.epsilon, weight_decay=decay)


def optimizer_state(
    optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter], state: str
) -> Tensors:
    """Return the optimizer's tensors of one state (such as ``exp_avg``), by unit.

    The result is empty before the first step, and for an optimizer without that state.
    """
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in units.items()}
    return {name: own[state] for name, own in states.items() if own.get(state) is not None}


@dataclass(frozen=True)
class InheritedTerms:
    """Terms of an update that do not depend on the step's batch; known before the step."""

    with_gradient: Tensors
    """Terms that the optimizer adds to the clipped gradient: the first moment and L2 decay."""
    decoupled: Tensors
    """decay · θ of AdamW, which the preconditioner does not multiply."""


@torch.no_grad()
def inherited_terms(
    config: OptimizerConfig, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> InheritedTerms:
    """Return the next step's inherited terms, copied from the current weights and first moments."""
    memory, decay = first_moment_weight(config), config.weight_decay
    remembered = {name: moment * memory for name, moment in moments.items()} if memory else {}
    if not decay:
        return InheritedTerms(remembered, {})
    decayed = {name: weight * decay for name, weight in weights.items()}
    if config.kind == "adamw":
        return InheritedTerms(remembered, decayed)
    l2 = {name: own.add_(remembered.get(name, 0)) for name, own in decayed.items()}
    return InheritedTerms(l2, {})


def first_moment_weight(config: OptimizerConfig) -> float:
    """Return the weight of the old first moment in an update, if the new gradient's weight is 1."""
    # Nesterov's update is (1 + μ) ĝ + μ² m, Adam's (1 − β₁) ĝ + β₁ m; both divided by ĝ's weight.
    if config.kind == "sgd":
        return config.momentum**2 / (1 + config.momentum) if config.nesterov else config.momentum
    return config.beta1 / (1 - config.beta1)


@dataclass(frozen=True)
class UpdateParts:
    """An update as scale · preconditioner ⊙ Σ_i g_i + carry."""

    scale: float
    """Multiplier from gradient to shift (−lr · clip, times a constant of the optimizer)."""
    preconditioner: Tensors | None
    """Further multiplier for each entry; None means 1."""
    carry: Tensors | None
    """Part of the update that is due to no gradient of this step; None means 0."""
    side_maps: dict[str, SideMap] | None = None
    """Linear maps of the gradients of some units, before the scale; None: none."""


@torch.no_grad()
def split_update(
    config: OptimizerConfig,
    inherited: InheritedTerms,
    squares: Mapping[str, Tensor],
    *,
    learning_rate: float,
    clip: float,
    step: int,
) -> UpdateParts:
    """Return the parts of update number ``step`` (from 0).

    ``squares``: Adam's second moments after the update; ignored for SGD.
    """
    rate = -learning_rate * gradient_weight(config, step)
    preconditioner = None
    if config.kind != "sgd":
        # v̂ depends on the batch too, but all datums share it: given the step's own v̂, the update
        # is linear in the per-sample gradients.
        correction = (1 - config.beta2 ** (step + 1)) ** 0.5
        roots = {name: square.sqrt().div_(correction) for name, square in squares.items()}
        preconditioner = {n: root.add_(config.epsilon).reciprocal_() for n, root in roots.items()}
    carry = {name: own * rate for name, own in inherited.with_gradient.items()}
    for name, own in carry.items():
        if preconditioner:
            own.mul_(preconditioner[name])
    for name, own in inherited.decoupled.items():
        decay = own * -learning_rate
        carry[name] = carry[name].add_(decay) if name in carry else decay
    return UpdateParts(rate * clip, preconditioner, carry or None)


def gradient_weight(config: OptimizerConfig, step: int) -> float:
    """Return the new gradient's weight in an update, before learning rate and preconditioner."""
    if config.kind == "sgd":
        return 1 + config.momentum if config.nesterov else 1.0
    return (1 - config.beta1) / (1 - config.beta1 ** (step + 1))


def snapshot(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Return a CPU copy of the optimizer's state, keyed ``state/parameter``.

    The step count is left out, for it equals the run's. The result is empty for plain SGD and
    before the first step. Sparse tensors become dense, and numbers tensors without axes.
    """
    return {
        f"{state}/{name}": torch.as_tensor(value).detach().to_dense().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for state, value in optimizer.state.get(parameter, {}).items()
        if state != "step" and isinstance(value, Tensor | bool | int | float)
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
    """Replace the optimizer's state by ``kept``, its snapshot after ``step`` updates.

    Raises ``ShardError`` if ``kept`` is not the state of such an optimizer.
    """
    wanted = expected_state(parameters, kept, config=config, step=step, where=where)
    if config.kind == "other" and not kept:
        return  # some optimizers have a state before the first step
    optimizer.state.clear()
    for key, parameter in wanted.items():
        own = optimizer.state[parameter]
        own[key.partition("/")[0]] = kept[key].to(parameter.device, copy=True)
        if config.kind in ("adam", "adamw"):
            own["step"] = torch.tensor(float(step))


def expected_state(
    parameters: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    *,
    config: OptimizerConfig,
    step: int,
    where: str,
) -> Tensors:
    """Return ``state/parameter`` → parameter for the full state after ``step`` updates.

    Raises ``ShardError`` if ``kept`` has other keys, shapes or types. What another kind of
    optimizer keeps is not known, so that only the parameters' names are checked.
    """
    if config.kind == "other":
        return named_state(parameters, kept, where)
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


def named_state(
    parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor], where: str
) -> Tensors:
    """Return ``state/parameter`` → parameter for all of ``kept``.

    Raises ``ShardError`` for a parameter that the optimizer does not train.
    """
    names = {key: key.partition("/")[2] for key in kept}
    for key, name in names.items():
        if name not in parameters:
            raise ShardError(where, f"has an unknown optimizer/{key}", REMEDY)
    return {key: parameters[name] for key, name in names.items()}


def state_names(config: OptimizerConfig) -> tuple[str, ...]:
    """Return torch's names of the tensors that the optimizer keeps per parameter."""
    if config.kind == "sgd":
        return ("momentum_buffer",) if config.momentum else ()
    return ("exp_avg", "exp_avg_sq")
