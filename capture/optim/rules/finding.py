"""Find the rule of an optimizer, or say why it has none."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from capture.errors import ConfigError
from capture.optim.rules import adafactor, adams, adaptive
from capture.optim.rules.linear_rule import LinearRule
from capture.optim.rules.muon import MuonRule
from capture.optim.rules.unit_update import Rule
from capture.optim.rules.user_made import StatesItsRule, UserRule

RULES: dict[type, Rule] = {
    **adaptive.RULES,
    **adams.RULES,
    torch.optim.Adafactor: adafactor.TORCH,
    torch.optim.Muon: MuonRule(),
}
TRANSFORMERS = ("transformers.optimization", "Adafactor")
UNSUITABLE = {
    torch.optim.LBFGS: "searches along a line and calls its closure several times a step",
    torch.optim.Rprop: "uses the signs of gradients, and forgets those that have changed",
    torch.optim.SparseAdam: "updates the moments of the rows with a gradient only",
}
REQUIRED_OPTIONS = {"differentiable": False}
"""Options, each with the only value that is recorded."""
STATE_IT = (
    "Use an optimizer of torch.optim, or give yours the methods preconditioner and carry "
    "(see docs/concepts/optimizers.md)"
)


def find_rule(optimizer: torch.optim.Optimizer) -> Rule:
    """Return the rule of an optimizer; raises ``ConfigError`` if its updates have none."""
    kind = type(optimizer)
    if isinstance(optimizer, StatesItsRule):
        return UserRule(optimizer)
    if kind in RULES:
        return RULES[kind]
    if (kind.__module__, kind.__name__) == TRANSFORMERS:
        return adafactor.TRANSFORMERS
    reason = UNSUITABLE.get(kind, "states no rule")
    problem = f"is {kind.__name__}, whose updates cannot be decomposed: it {reason}"
    raise ConfigError("optimizer", problem, STATE_IT)


def refused_option(group: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the first option of a group that is not recorded, and the value that is."""
    for option, wanted in REQUIRED_OPTIONS.items():
        if group.get(option, wanted) != wanted:
            return option, wanted
    return None


def class_of(name: str) -> tuple[type, LinearRule] | None:
    """Return the class and the rule of an optimizer that a run names; None if it has no such rule.

    Only classes known here are loaded, whatever the run says.
    """
    if name == adafactor.TRANSFORMERS.name:
        module, kind = TRANSFORMERS
        return getattr(importlib.import_module(module), kind), adafactor.TRANSFORMERS
    known = {r.name: (kind, r) for kind, r in RULES.items() if isinstance(r, LinearRule)}
    return known.get(name)
