"""Step counts of parameters that an optimizer has updated less often than it took steps.

``torch.optim`` skips a parameter without gradient: its state and its count stay as they are. A
checkpoint stores such a count as ``step/PARAMETER``, so that a resumed run continues with it. Of an
optimizer other than SGD, Adam and AdamW it stores all counts that the optimizer keeps.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from capture.optim import optimizer as optimizers
from capture.optim.optimizer import Tensors
from capture.optim.optimizer_config import OptimizerConfig

STEP = "step/"
COUNTED_BY_RUN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers whose state is known from the settings and the number of steps."""


def own_step_counts(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], step: int
) -> Tensors:
    """Return ``step/PARAMETER`` → count for trained parameters whose count is not ``step``.

    A parameter without any state, where others have some, has count 0.
    """
    if type(optimizer) not in COUNTED_BY_RUN:
        states = {name: optimizer.state.get(p, {}) for name, p in parameters.items()}
        counted = {name: int(own["step"]) for name, own in states.items() if "step" in own}
        return {f"{STEP}{name}": torch.tensor(count) for name, count in counted.items()}
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    counts = {
        name: step_count(optimizer, parameter, step)
        for name, parameter in parameters.items()
        if id(parameter) in trained
    }
    if not any(counts.values()):  # an optimizer without state, as plain SGD
        return {}
    return {f"{STEP}{n}": torch.tensor(count) for n, count in counts.items() if count != step}


def step_count(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, step: int) -> int:
    state = optimizer.state.get(parameter, {})
    if "step" in state:
        return int(state["step"])
    return step if any(isinstance(own, Tensor) for own in state.values()) else 0


def snapshot(optimizer: torch.optim.Optimizer, model: nn.Module, step: int) -> Tensors:
    """Return a CPU copy of the optimizer's state after ``step`` updates, with own step counts."""
    parameters = dict(model.named_parameters())
    counts = own_step_counts(optimizer, parameters, step)
    return optimizers.snapshot(optimizer, parameters) | counts


def restore(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    kept: Mapping[str, Tensor],
    *,
    config: OptimizerConfig,
    step: int,
    where: str,
) -> None:
    """Replace the optimizer's state by ``kept``, a snapshot after ``step`` updates.

    Raises ``ShardError`` if ``kept`` is not the state of such an optimizer.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in trained}
    counts = {k.removeprefix(STEP): int(x) for k, x in kept.items() if k.startswith(STEP)}
    other = config.kind == "other"
    optimizers.restore(
        optimizer,
        {name: p for name, p in parameters.items() if other or counts.get(name) != 0},
        {key: tensor for key, tensor in kept.items() if not key.startswith(STEP)},
        config=config,
        step=step,
        where=where,
    )
    for name, count in counts.items():
        if other and name in parameters:
            optimizer.state[parameters[name]]["step"] = torch.tensor(float(count))
        elif count and name in parameters and "step" in (own := optimizer.state[parameters[name]]):
            own["step"] = torch.full_like(own["step"], float(count))
