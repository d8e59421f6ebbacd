"""Which parameters of a custom training loop are captured, and which optimizer trains them.

Models that spread parameters or gradients over several processes are refused here, before anything
is written.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from capture.custom_loop.ranks.wrappers import DDP
from capture.errors import ConfigError, UnitError
from capture.gradients.factors import choose_units, require_size
from capture.gradients.vmap_fallback import module_and_share

LOG = logging.getLogger(__name__)
UNCOMPILED = (
    "The model is compiled. While it is recorded it runs uncompiled, at the cost of an uncompiled "
    "step, because a compiled graph does not show which datum a gradient comes from"
)
OF_THE_MODEL = "% of the model"
EXCLUDES = "!"
"""First character of a pattern whose matches are left out."""


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers, with its own parameter names.

    The wrappers are those of ``torch.compile`` and of ``DistributedDataParallel``.
    """
    while True:
        inner = model.module if isinstance(model, DDP) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of ``torch.optim`` inside the wrappers of accelerate, Lightning, Fabric.

    Each of them keeps it as ``optimizer``, and calls its ``step``.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def is_compiled(model: nn.Module) -> bool:
    """Return whether a model, or a module in it, is compiled."""
    # ``torch.compile`` wraps a module, and ``Module.compile`` sets what calls of it run.
    modules = model.modules()
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules)


@contextmanager
def without_compilation(model: nn.Module) -> Iterator[None]:
    """Within the block, compiled models run as if they were not compiled.

    The tape has to see each call of a parameter, and a compiled graph has none. Nothing is compiled
    for the recording, and graphs that exist are used again after it.
    """
    if is_compiled(model):
        LOG.warning(UNCOMPILED)
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and loading it takes long
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def custom_loop_units(
    model: nn.Module, optimizer: torch.optim.Optimizer, patterns: Sequence[str] | None
) -> dict[str, nn.Parameter]:
    """Return the parameters that match, by name, in the model's order.

    ``patterns``: those of ``choose_units``; patterns that begin with ``!`` leave parameters out.
    Without any pattern of the first kind, all parameters that the optimizer trains are chosen.
    Raises ``ConfigError`` for invalid patterns and for parameters that the optimizer does not
    train, and ``UnitError`` for weights that are not float32.
    """
    if isinstance(patterns, str):
        raise ConfigError("units", f"got {patterns!r}, must be a list of patterns")
    if patterns is not None and not patterns:
        raise ConfigError("units", "is empty, must hold at least one pattern")
    wanted = [p for p in patterns or () if not p.startswith(EXCLUDES)]
    unwanted = [p.removeprefix(EXCLUDES) for p in patterns or () if p.startswith(EXCLUDES)]
    chosen = choose_units(model, wanted) if wanted else trained_parameters(model, optimizer)
    left_out = choose_units(model, unwanted)
    chosen = {name: parameter for name, parameter in chosen.items() if name not in left_out}
    if not chosen:
        raise ConfigError("units", "leave out every parameter", "Leave out fewer")
    require_plain(model, chosen)
    require_trained(model, optimizer, chosen)
    return chosen


def trained_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, nn.Parameter]:
    """Return the parameters of the model that the optimizer trains, by name."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    found = {n: p for n, p in parameters.items() if id(p) in trained and p.requires_grad}
    if parameters and not found:
        problem = "trains no parameter of the model"
        raise ConfigError("optimizer", problem, "Pass the model and optimizer of one loop")
    for name, parameter in found.items():
        require_size(name, parameter)
    return found


def require_plain(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
    """Raise ``UnitError`` unless all parameters are ordinary float32 tensors."""
    others = [name for name, parameter in chosen.items() if parameter.dtype != torch.float32]
    if others:
        found = str(chosen[others[0]].dtype).removeprefix("torch.")
        problem = f"is {found}, must be float32 ({module_and_share(model, others)})"
        raise UnitError(others[0], problem, "Keep weights in float32 and compute under autocast")


def require_trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, chosen: Mapping[str, nn.Parameter]
) -> None:
    """Raise ``ConfigError`` for parameters that are frozen, or that the optimizer does not have."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = [name for name, p in chosen.items() if id(p) not in trained or not p.requires_grad]
    if others:
        problem = f"{others[0]} is not a parameter that the optimizer trains"
        problem = f"{problem} ({module_and_share(model, others)})"
        raise ConfigError("units", problem, f'Leave it out: units=["!{others[0]}"]')


@contextmanager
def naming_share(model: nn.Module) -> Iterator[None]:
    """Within the block, errors about a parameter name its module and its share of the model."""
    try:
        yield
    except UnitError as error:
        known = error.where in dict(model.named_parameters())
        if not known or OF_THE_MODEL in error.problem:
            raise
        problem = f"{error.problem} ({module_and_share(model, [error.where])})"
        raise UnitError(error.where, problem, error.remedy) from error
