"""Models that ``fully_shard`` (FSDP2) spreads over processes: their parts, and what is refused.

Outside of its forward and backward pass, a module holds one shard of each parameter, a ``DTensor``.
While it runs, it has the whole parameter instead, which is the same Python object every time.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from capture.errors import RunError, UnitError


class HasGradient(Protocol):
    """What may hold a gradient."""

    @property
    def grad(self) -> Tensor | None: ...


HALF_TYPES = (torch.bfloat16, torch.float16)


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules that ``fully_shard`` was called on, without loading it."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [module for module in model.modules() if kind and isinstance(module, kind)]


def is_sharded_tensor(x: object) -> bool:
    """Return whether a tensor is a ``DTensor``."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(x, kind)


def shards_of(model: nn.Module) -> dict[str, Any]:
    """Return the parameters that are ``DTensor``s, by name."""
    return {name: p for name, p in model.named_parameters() if is_sharded_tensor(p)}


def gathered(x: Any) -> Any:
    """Return the whole tensor of a shard, and anything else as it is; a collective."""
    return x.full_tensor() if is_sharded_tensor(x) else x


def local_part(x: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return x.to_local() if is_sharded_tensor(x) else x  # pyright: ignore


def scattered(whole: Tensor, like: Any) -> Tensor:
    """Return the shards of a whole tensor, which every rank has, as those of ``like`` lie."""
    if not is_sharded_tensor(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def parameter_groups(modules: list[Any]) -> list[Any]:
    """Return torch's groups of parameters that are put together at once."""
    return [group for each in modules for group in each._get_fsdp_state()._fsdp_param_groups]


def whole_parameters(model: nn.Module, modules: list[Any]) -> dict[str, nn.Parameter]:
    """Return the objects that hold the whole parameters while a module runs, by name; a collective.

    They are empty in between.
    """
    found: dict[str, nn.Parameter] = {}
    for module in modules:
        module.unshard()
        whole = {n: p for n, p in model.named_parameters() if not is_sharded_tensor(p)}
        found |= {name: p for name, p in whole.items() if name not in found}
        module.reshard()
    return {name: found[name] for name, _ in model.named_parameters()}


@contextmanager
def put_together(modules: list[Any]) -> Iterator[None]:
    """Within the block, all modules have their whole parameters, and calls exchange nothing.

    Entering the block is a collective.
    """
    groups = parameter_groups(modules)
    before = [(each.post_forward_mesh_info, each.reshard_after_backward) for each in groups]
    for module in modules:
        module.unshard()
    for each in groups:
        each.post_forward_mesh_info, each.reshard_after_backward = None, False
    try:
        yield
    finally:
        for each, (mesh_info, reshard) in zip(groups, before, strict=True):
            each.post_forward_mesh_info, each.reshard_after_backward = mesh_info, reshard
        for module in modules:
            module.reshard()


# --- what is refused ------------------------------------------------------------------------------


def require_plain_shards(model: nn.Module, num_processes: int) -> None:
    """Raise an error unless ``fully_shard`` alone spreads the model over all processes."""
    modules, shards = sharded_modules(model), shards_of(model)
    if model not in modules:
        name, shard = next(iter(shards.items()))
        if modules:
            problem = "is sharded by fully_shard, but the model as a whole is not"
            raise UnitError(name, problem, "Call fully_shard(model) last, on the model itself")
        size = shard.device_mesh.size()
        problem = f"is a DTensor, spread over {size} processes not by fully_shard"
        remedy = "Tensor parallelism (parallelize_module) cannot be recorded: use fully_shard alone"
        raise UnitError(name, problem, remedy)
    require_one_axis(shards, num_processes)
    for each in parameter_groups(modules):
        require_exact_reduction(each, num_processes)


def require_one_axis(shards: Mapping[str, Any], num_processes: int) -> None:
    """Raise ``UnitError`` for a parameter that is not sharded over all processes along one axis."""
    for name, shard in shards.items():
        mesh = shard.device_mesh
        if mesh.ndim > 1:
            problem = f"is a DTensor over {mesh.ndim} axes of processes {tuple(mesh.shape)}"
            remedy = "Tensor parallelism and hybrid sharding cannot be recorded: use one axis"
            raise UnitError(name, problem, remedy)
        if mesh.size() != num_processes:
            problem = f"is sharded over {mesh.size()} of {num_processes} processes"
            raise UnitError(name, problem, "Shard over all processes")


def require_exact_reduction(group: Any, num_processes: int) -> None:
    """Raise ``RunError`` for settings under which the update is no plain average of gradients."""
    policy = group.mp_policy
    reduced = policy.reduce_dtype or policy.param_dtype
    if reduced in HALF_TYPES:
        kind = str(reduced).removeprefix("torch.")
        problem = f"adds up the gradients of the processes in {kind}, which rounds every sum"
        remedy = "Set MixedPrecisionPolicy(…, reduce_dtype=torch.float32)"
        raise RunError("model", problem, remedy)
    if group.gradient_divide_factor not in (None, float(num_processes)):
        factor = group.gradient_divide_factor
        problem = f"divides gradients by {factor} (set_gradient_divide_factor)"
        raise RunError("model", problem, "Weigh the loss instead")
    if type(group.offload_policy).__name__ != "OffloadPolicy":
        problem = f"is sharded with {type(group.offload_policy).__name__}"
        raise RunError("model", problem, "Keep the shards on the device while you record")
