"""Read the settings of a custom loop's optimizer, as ``run.yaml`` stores them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capture.custom_loop.update import groups_of_units, require_options
from capture.errors import ConfigError
from capture.optim.optimizer_config import OptimizerConfig
from capture.optim.rules import find_rule
from capture.optim.rules.unit_update import rate_or_one

KINDS = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw"}
PLAIN_OPTIONS = {"dampening": 0, "maximize": False, "amsgrad": False}
"""Options of these kinds, with the only values that ``OptimizerConfig`` describes."""
NOT_SETTINGS = frozenset(("params", "lr", "initial_lr"))


def optimizer_config(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> OptimizerConfig:
    """Return the settings of a parameter group.

    Raises ``ConfigError`` if updates with these settings cannot be decomposed.
    """
    rule = find_rule(optimizer)
    require_options(optimizer, group)
    kind, decay = KINDS.get(rule.name), float(group.get("weight_decay", 0.0))
    if kind is None or any(group.get(key, value) != value for key, value in PLAIN_OPTIONS.items()):
        return OptimizerConfig(kind="other", name=rule.name, weight_decay=decay)
    if kind == "sgd":
        momentum, nesterov = float(group["momentum"]), bool(group["nesterov"])
        return OptimizerConfig(momentum=momentum, nesterov=nesterov, weight_decay=decay)
    beta1, beta2 = map(float, group["betas"])
    decoupled = kind == "adamw" or group.get("decoupled_weight_decay")
    return OptimizerConfig(
        kind="adamw" if decoupled else "adam",
        weight_decay=decay,
        beta1=beta1,
        beta2=beta2,
        epsilon=float(group["eps"]),
    )


def require_rule(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ``ConfigError`` for an optimizer that cannot be recorded, with its share of a model."""
    groups = optimizer.param_groups
    with naming_trained(model, groups):
        find_rule(optimizer)
    for group in groups:
        with naming_trained(model, [group]):
            require_options(optimizer, group)


@contextmanager
def naming_trained(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Within the block, a ``ConfigError`` says how much of the model these groups train."""
    try:
        yield
    except ConfigError as error:
        trained = {id(p) for group in groups for p in group["params"]}
        sizes = {id(p): p.numel() for p in model.parameters()}
        share = sum(size for key, size in sizes.items() if key in trained) / sum(sizes.values())
        problem = f"{error.problem} (it trains {share:.1%} of the model)"
        raise ConfigError(error.where, problem, error.remedy) from error


def initial_learning_rate(group: Mapping[str, Any]) -> float:
    """Return a group's learning rate; a scheduler keeps the initial one beside the current one.

    It is 1.0 for an optimizer that finds its own (Adafactor).
    """
    return rate_or_one(group.get("initial_lr", group["lr"]))


def settings_of_groups(
    optimizer: torch.optim.Optimizer, units: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """Return what ``run.yaml`` says of the parameter groups other than the first unit's.

    ``rate`` is the ratio of the group's initial learning rate
    to the first unit's; it holds as long as schedules multiply all groups by one factor.
    An optimizer that ``OptimizerConfig`` does not describe has all its groups here, with their
    ``settings``.
    """
    groups = groups_of_units(optimizer, units)
    first = next(iter(groups.values()))
    if not (divisor := initial_learning_rate(first)):
        return []
    found: dict[int, dict[str, Any]] = {}
    for name, group in groups.items():
        config = optimizer_config(optimizer, group)
        if group is first and config.kind != "other":
            continue
        rate = initial_learning_rate(group) / divisor
        settings = {"units": [], "rate": rate, "optimizer": vars(config)}
        if config.kind == "other":
            settings["settings"] = plain_settings(group)
        found.setdefault(id(group), settings)["units"].append(name)
    return list(found.values())


def plain_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group that YAML can hold: numbers, words, and lists of these."""
    parameter = next(iter(group["params"]))
    found = {k: plain(value) for k, value in group.items() if k not in NOT_SETTINGS}
    if isinstance(found.get("eps"), list) and found["eps"][0] is None:  # depends on the type
        found["eps"] = [torch.finfo(parameter.dtype).eps, *found["eps"][1:]]
    return {key: value for key, value in found.items() if value is not NOT_PLAIN}


NOT_PLAIN = object()


def plain(value: object) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple | list):
        found = [plain(each) for each in value]
        return NOT_PLAIN if any(each is NOT_PLAIN for each in found) else found
    return value if isinstance(value, bool | int | float | str | None) else NOT_PLAIN
