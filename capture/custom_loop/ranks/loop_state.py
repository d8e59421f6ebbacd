"""The captured parameters of a loop and its optimizer, as the recorder sees them: whole."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from capture.custom_loop.ranks.agreement import Ranks
from capture.custom_loop.ranks.sharding import (
    HasGradient,
    gathered,
    local_part,
    parameter_groups,
    put_together,
    scattered,
    sharded_modules,
    whole_parameters,
)
from capture.custom_loop.update import total_gradient_norm
from capture.errors import RunError
from capture.format import checkpoint
from capture.optim import step_counts
from capture.optim.optimizer_config import OptimizerConfig


class PlainState:
    """Parameters that every rank holds whole."""

    is_sharded = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        units: Mapping[str, nn.Parameter],
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.units = dict(units)
        self.tape_units = self.units
        """The parameters that the model uses in its forward passes."""
        self.gradient_holders: Sequence[HasGradient] = list(self.units.values())
        """What holds the gradients since the last step."""
        self.trained_units: Mapping[str, HasGradient] = self.units
        """The parameters, or shards of them, that the optimizer of the loop trains."""

    def refresh(self) -> None:
        """Bring ``units`` and ``optimizer`` up to date; all ranks must call this."""

    def require_reduced(self, where: str) -> None:
        """Raise ``RunError`` if the gradients are not added up over the ranks yet."""

    def gradient_norm(self) -> float:
        """Return the norm of the gradients of all parameters that the optimizer trains."""
        return total_gradient_norm(self.optimizer)

    def put_together(self) -> AbstractContextManager[None]:
        """Within the block, the model can be called without the other ranks."""
        return nullcontext()

    def weights(self, rank: int) -> dict[str, Tensor]:
        """Return a copy of the weights on the CPU; empty on all but rank 0."""
        return {} if rank else checkpoint.snapshot(self.model)

    def snapshot(self, step: int, rank: int) -> dict[str, Tensor]:
        """Like ``weights``, with the optimizer's state after ``step`` updates."""
        if rank:
            return {}
        state = step_counts.snapshot(self.optimizer, self.model, step)
        return checkpoint.snapshot(self.model, state)

    def restore(
        self, tensors: dict[str, Tensor], config: OptimizerConfig, step: int, where: str
    ) -> None:
        """Load a snapshot; raises ``ShardError`` if it does not fit."""
        weights, state = checkpoint.split_checkpoint(tensors)
        checkpoint.restore(self.model, weights, where)
        step_counts.restore(
            self.optimizer, self.model, state, config=config, step=step, where=where
        )


class ShardedState(PlainState):
    """Parameters that ``fully_shard`` spreads over ranks.

    ``units`` and ``optimizer`` are whole copies of the captured parameters, their gradients and
    their optimizer state, on every rank.
    """

    is_sharded = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        units: Mapping[str, nn.Parameter],
        ranks: Ranks,
    ) -> None:
        """All ranks must call this at the same point."""
        super().__init__(model, optimizer, units)
        self.ranks = ranks
        self.shards, self.trained = self.units, optimizer
        self.modules = sharded_modules(model)
        whole = whole_parameters(model, self.modules)
        self.tape_units = {name: whole[name] for name in units}
        groups = parameter_groups(self.modules)
        self.unreduced = [Unreduced(each) for group in groups for each in group.fsdp_params]
        kept = (self.tape_units.values(), self.shards.values(), self.unreduced)
        self.gradient_holders = [each for holders in kept for each in holders]
        self.units = {
            name: nn.Parameter(torch.empty(shard.shape, device=shard.device))
            for name, shard in self.shards.items()
        }
        self.groups = copied_groups(optimizer, self.shards, self.units)
        self.optimizer = type(optimizer)([own for own, _ in self.groups])  # pyright: ignore
        self.norm = 0.0

    @torch.no_grad()
    def refresh(self) -> None:
        for name, shard in self.shards.items():
            own, state = self.units[name], self.trained.state.get(shard, {})
            own.data = gathered(shard.detach())
            own.grad = None if shard.grad is None else gathered(shard.grad)
            self.optimizer.state[own] = {key: gathered(x) for key, x in state.items()}
        for own, (_, group) in zip(self.optimizer.param_groups, self.groups, strict=True):
            own |= {key: value for key, value in group.items() if key != "params"}
        for name in ("grad_scale", "found_inf"):  # what a GradScaler tells fused optimizers
            setattr(self.optimizer, name, getattr(self.trained, name, None))
        parameters = [p for group in self.trained.param_groups for p in group["params"]]
        grads = [local_part(p.grad).double() for p in parameters if p.grad is not None]
        device = next(iter(self.units.values())).device
        square = torch.zeros((), dtype=torch.float64, device=device)
        square += sum(grad.square().sum() for grad in grads)
        self.ranks.group.all_reduce([square])
        self.norm = square.sqrt().item()

    def require_reduced(self, where: str) -> None:
        kept = [*self.tape_units.values(), *self.unreduced]
        if any(each.grad is not None for each in kept):
            problem = "gradients were not added up over the ranks"
            remedy = "Call set_requires_gradient_sync(True) before the last backward pass of each"
            raise RunError(where, problem, f"{remedy} step")

    def gradient_norm(self) -> float:
        return self.norm

    def put_together(self) -> AbstractContextManager[None]:
        return put_together(self.modules)

    def weights(self, rank: int) -> dict[str, Tensor]:
        found = {}
        for name, tensor in checkpoint.tensors_of(self.model).items():
            whole = gathered(tensor.detach())
            found |= {} if rank else {name: whole.to("cpu", copy=True)}
        return found

    def snapshot(self, step: int, rank: int) -> dict[str, Tensor]:
        weights, states = self.weights(rank), {}
        for name, shard in self.model.named_parameters():
            for key, value in self.trained.state.get(shard, {}).items():
                whole = gathered(value)
                if key != "step" and isinstance(whole, Tensor) and not rank:
                    states[f"{key}/{name}"] = whole.detach().to("cpu", copy=True)
        if rank:
            return {}
        parameters = dict(self.model.named_parameters())
        states |= step_counts.own_step_counts(self.trained, parameters, step)
        return weights | {f"{checkpoint.OPTIMIZER}{key}": x for key, x in states.items()}

    def restore(
        self, tensors: dict[str, Tensor], config: OptimizerConfig, step: int, where: str
    ) -> None:
        weights, state = checkpoint.split_checkpoint(tensors)
        own = checkpoint.tensors_of(self.model)
        checkpoint.require_matching(own, weights, where)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(scattered(weights[name], tensor))
        step_counts.restore(self.trained, self.model, state, config=config, step=step, where=where)
        for shard, kept in self.trained.state.items():
            for key, value in kept.items():
                if key != "step":
                    kept[key] = scattered(value, shard)


class Unreduced:
    """A gradient in another type than the parameter's, before the ranks have added theirs up."""

    def __init__(self, parameter: Any) -> None:
        """``parameter``: torch's own record of a sharded parameter."""
        self.parameter = parameter

    @property
    def grad(self) -> Tensor | None:
        return self.parameter.unsharded_accumulated_grad


def copied_groups(
    optimizer: torch.optim.Optimizer, shards: Mapping[str, Any], units: Mapping[str, nn.Parameter]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return parameter groups of ``units``, each with the group of ``optimizer`` that it copies."""
    names = {id(shard): name for name, shard in shards.items()}
    found = []
    for group in optimizer.param_groups:
        own = [units[names[id(p)]] for p in group["params"] if id(p) in names]
        if own:
            found.append(({**group, "params": own}, group))
    return found


def state_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    units: Mapping[str, nn.Parameter],
    ranks: Ranks,
) -> PlainState:
    """Return how the recorder sees a loop; all ranks must call this at the same point."""
    if sharded_modules(model):
        return ShardedState(model, optimizer, units, ranks)
    return PlainState(model, optimizer, units)
