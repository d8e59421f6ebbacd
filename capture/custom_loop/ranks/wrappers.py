"""Which processes train a model together, and wrappers whose training cannot be recorded."""

from torch import distributed as dist
from torch import nn

from capture.custom_loop.ranks.agreement import Ranks
from capture.custom_loop.ranks.sharding import require_plain_shards, shards_of
from capture.errors import RunError

ONE_LOOP = (
    "Pass the model in torch.nn.parallel.DistributedDataParallel over all processes, or sharded by "
    "fully_shard: ontogeny.record follows no other kind of training in several"
)
DDP = nn.parallel.DistributedDataParallel


def ranks_of(model: nn.Module, patience_seconds: float) -> Ranks:
    """Return the ranks that train the model together; one rank for a model in no wrapper.

    All processes must call this at the same point. Raises ``RunError``, on all of them alike, for a
    wrapper whose training cannot be recorded.
    """
    require_known(model)
    device = next(model.parameters()).device
    if shards := shards_of(model):
        require_plain_shards(model, num_processes())
        if num_processes() == 1:
            return Ranks()
        process_group = next(iter(shards.values())).device_mesh.get_group()
        return Ranks.of_processes(process_group, device, patience_seconds)
    wrapper = data_parallel(model)
    if wrapper is None or num_processes() == 1:
        return Ranks()
    assert isinstance(wrapper.process_group, dist.ProcessGroup)
    require_plain_averages(wrapper, wrapper.process_group.size())
    return Ranks.of_processes(wrapper.process_group, device, patience_seconds)


def num_processes() -> int:
    """Return the size of torch's process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def data_parallel(model: nn.Module) -> DDP | None:
    """Return the wrapper that averages gradients over processes, also inside a compiled model."""
    while not isinstance(model, DDP):
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model


def require_known(model: nn.Module) -> None:
    """Raise ``RunError`` for wrappers that change what the optimizer trains, wherever they are."""
    wrapper, total = data_parallel(model), num_parameters(model)
    for name, module in model.named_modules():
        if module is not wrapper and (refusal := why_refused(module)):
            problem, remedy = refusal
            share = num_parameters(module) / total if total else 0.0
            where = f"model.{name}".rstrip(".")
            problem = f"is {type(module).__name__} ({share:.1%} of the model), {problem}"
            raise RunError(where, problem, remedy)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def why_refused(module: nn.Module) -> tuple[str, str] | None:
    """Return why a model with this module is not recorded, and a remedy; None if it is."""
    kind = type(module).__name__
    if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
        problem = f"which splits the batch over {len(module.device_ids)} devices"
        return problem, "Record the model inside it, on one device"
    if kind == "FullyShardedDataParallel":
        problem = "of FSDP1, whose optimizer trains flattened parameters"
        return problem, "Shard it by torch.distributed.fsdp.fully_shard instead"
    if kind == "DeepSpeedEngine":
        problem = "whose optimizer trains partitions of the parameters"
        return problem, "Use ontogeny capture with engine=deepspeed"
    if isinstance(module, nn.SyncBatchNorm) and module.training and num_processes() > 1:
        return "in which the datums of all ranks interact", "Freeze it by eval()"
    if isinstance(module, DDP) and num_processes() > 1:
        return "but only a part of the model", ONE_LOOP
    return None


def require_plain_averages(wrapper: DDP, size: int) -> None:
    """Raise ``RunError`` unless the gradients are the plain averages over all processes.

    ``size``: number of processes that average.
    """
    name = type(wrapper).__name__
    if size != num_processes():
        problem = f"is {name} over {size} of {num_processes()} processes"
        raise RunError("model", problem, ONE_LOOP)
    if wrapper._comm_hooks:
        hook = getattr(wrapper._comm_hooks[0][0], "__name__", "a hook")
        problem = f"is {name} with {hook} (register_comm_hook), which changes the gradients"
        raise RunError("model", problem, "Leave the hook out while you record")
    if wrapper.mixed_precision is not None:
        problem = f"is {name} with mixed_precision, which casts the parameters"
        raise RunError("model", problem, "Compute under torch.autocast instead")
