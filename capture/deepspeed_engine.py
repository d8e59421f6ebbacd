"""Training steps by DeepSpeed: weights, gradients and optimizer state partitioned among workers.

Each worker captures the factors of its own slots, as with the plain engine, whatever the ZeRO stage
(Rajbhandari et al. 2020: stage 1 partitions optimizer state, 2 gradients too, 3 weights too). A
partitioned weight is whole while its module is used, and stays the same Python object throughout,
which is what the tape knows it by. What belongs to all (weights before and after, momentum, second
moments, checkpoints) is put together from the workers' pieces: every worker lays its own piece into
zeros, and the sum is the whole.

DeepSpeed averages gradients over workers; ours are shares of one batch, to be summed. So each
parameter's gradient is multiplied by their number before DeepSpeed sees it.
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from capture import checkpoint, optimizer
from capture.dropout import Masks
from capture.engine import Engine, LastToken, TrainingConfig
from capture.errors import ConfigError
from capture.group import Group
from capture.model import AnyModel
from capture.optimizer import Tensors
from capture.update import clip_factor

LARGEST_BUCKET = 5 * 10**8
"""Numbers that are sent at once; DeepSpeed's default."""


@dataclass(frozen=True, kw_only=True)
class DeepSpeedConfig:
    """What is partitioned among the workers, with ``engine: deepspeed``."""

    stage: Literal[1, 2, 3] = 2
    """ZeRO's: 1 optimizer state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lives in the host's memory: nothing, optimizer state and weights' master copy, or (of
    stage 3) the weights too."""

    def __post_init__(self) -> None:
        if self.offload == "all" and self.stage != 3:
            problem = f"got all with stage {self.stage}, whose weights are whole on every worker"
            raise ConfigError("deepspeed.offload", problem, "Take optimizer, or deepspeed.stage=3")


def require_captured(loss_positions: str, fallback: str) -> None:
    """Raises ``ConfigError`` for what needs all weights at once, outside DeepSpeed's passes."""
    remedy = "Set engine=plain, or leave this at its default"
    if loss_positions != "all":
        problem = f"got {loss_positions}, which takes a second backward pass; DeepSpeed makes one"
        raise ConfigError("capture.loss_positions", problem, remedy)
    if fallback != "none":
        problem = f"got {fallback}, which needs whole weights; DeepSpeed partitions them"
        raise ConfigError("capture.fallback", problem, remedy)


def require_installed() -> None:
    """Raises ``ConfigError`` where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        problem = "got deepspeed, which is not installed here"
        raise ConfigError("engine", problem, "Install it: pip install 'ontogeny[cluster]'")


class DeepSpeedEngine(Engine):
    """The same steps as the plain engine's, taken by DeepSpeed."""

    def __init__(
        self,
        model: AnyModel,
        config: TrainingConfig,
        zero: DeepSpeedConfig,
        *,
        units: dict[str, nn.Parameter],
        seed: int,
        num_steps: int,
        group: Group,
    ) -> None:
        """``model``: with the same weights on all workers. ``group``: of torch's process group."""
        super().__init__(
            model,
            config,
            units=units,
            last_only=False,
            seed=seed,
            num_steps=num_steps,
            group=group,
        )
        self.scattered = zero.stage == 3
        self.stage = zero.stage
        kept = checkpoint.tensors_of(model)
        self.outline = {name: own.detach().to("meta") for name, own in kept.items()}
        self.initial: Tensors | None = super().snapshot()
        """The checkpoint before any step, for which no worker has to wait for the others."""
        self.deep = initialised(model, config, zero, self.optimizer, self.device, group)
        self.entrance = self.deep
        self.prepare()
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: grad * group.size)

    # --- a step ---

    def backward(self, loss: Tensor) -> None:
        """After all but the last micro-batch DeepSpeed is told that this was not the last."""
        self.deep.backward(loss, scale_wrt_gas=False)
        if not self.deep.is_gradient_accumulation_boundary():
            self.deep.step()

    def summed(self, loss: float, last: LastToken | None) -> float:
        """The whole batch's loss; gradients are DeepSpeed's to add up."""
        total = torch.tensor([loss], device=self.device)
        self.group.sum_([total])
        return total.item()

    def update(
        self, learning_rate: float, step: int
    ) -> tuple[float, optimizer.Split, Tensors | None]:
        config = self.config.optimizer
        states = optimizer.states_of(config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        moments = self.wholes(self.units, states[0]) if states else {}
        weights = self.wholes(self.units) if config.weight_decay else {}
        legacy = optimizer.inherit(config, weights, moments)
        grads = self.full_gradients() if self.gives_gradients else None
        self.deep.step()
        self.initial = None
        norm = float(self.deep.get_global_grad_norm())
        clip = clip_factor(norm, self.config.clip)
        squares = self.wholes(self.units, "exp_avg_sq") if len(states) > 1 else {}
        parts = optimizer.split(
            config, legacy, squares, learning_rate=learning_rate, clip=clip, step=step
        )
        return norm, parts, grads and {name: grad.mul_(clip) for name, grad in grads.items()}

    def full_gradients(self) -> Tensors:
        """By unit, the whole batch's, not yet clipped; between backward pass and step."""
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(own).clone() for name, own in self.units.items()}

    def autocast(self) -> torch.autocast:
        """None here: DeepSpeed ends one that begins outside it. ``Rounding`` has it instead."""
        return torch.autocast(self.device.type, enabled=False)

    # --- from pieces to wholes, and back ---

    def weights(self, names: Collection[str]) -> Tensors:
        return self.wholes({name: self.units[name] for name in names})

    def wholes(self, parameters: dict[str, nn.Parameter], state: str = "") -> Tensors:
        """Copies of these weights, or of what the optimizer remembers of them; all call it."""
        found = {name: self.laid_out(own, state) for name, own in parameters.items()}
        if found:
            self.group.sum_(list(found.values()))
        return found

    def laid_out(self, parameter: nn.Parameter, state: str) -> Tensor:
        """This worker's piece in its place, and zeros."""
        shape = shape_of(parameter)
        flat = torch.zeros(shape.numel(), device=self.device)
        own, start = self.piece(parameter, state)
        flat[start : start + len(own)] = own
        return flat.view(shape)

    def piece(self, parameter: nn.Parameter, state: str = "") -> tuple[Tensor, int]:
        """What this worker keeps of a weight, or of a state of it: a flat view, and its start."""
        zero: Any = self.deep.optimizer
        if self.stage == 3:
            number, first, size = zero.grad_position[zero.get_param_id(parameter)]
            start = self.group.rank * size
            size = max(0, min(size, shape_of(parameter).numel() - start))  # the rest is padding
        elif (own := getattr(parameter, "_hp_mapping", None)) is None:
            return torch.empty(0), 0
        else:
            number, start = own.param_group_index, own.lp_fragment_address.start
            first, size = own.hp_fragment_address.start, own.hp_fragment_address.numel
        flat = self.flats[number]
        kept = self.optimizer.state[flat][state] if state else flat
        return kept.detach().narrow(0, first, size), start

    def put(self, parameter: nn.Parameter, value: Tensor, state: str = "") -> None:
        """Set this worker's piece of a weight, or of a state of it."""
        own, start = self.piece(parameter, state)
        own.copy_(value.flatten()[start : start + len(own)])

    @property
    def flats(self) -> list[Tensor]:
        """The vectors that this worker's optimizer moves: its pieces of all weights."""
        zero: Any = self.deep.optimizer
        return (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )

    def prepare(self) -> None:
        """Have the optimizer remember what it does before any step: zeros, and none counted."""
        for flat in self.flats:
            for state in optimizer.states_of(self.config.optimizer):
                self.optimizer.state[flat][state] = torch.zeros_like(flat)
        self.count(0)

    def count(self, step: int) -> None:
        """Tell Adam how many steps it has taken."""
        if self.config.optimizer.kind != "sgd":
            for flat in self.flats:
                self.optimizer.state[flat]["step"] = torch.tensor(float(step))

    # --- checkpoints ---

    def snapshot(self) -> Tensors:
        if self.initial is not None:
            return self.initial
        parameters = dict(self.model.named_parameters())
        whole = {id(own): self.kept(own) for own in parameters.values()}
        weights = {
            name: whole[id(own)] if id(own) in whole else own.cpu()
            for name, own in checkpoint.tensors_of(self.model).items()
        }
        remembered = {
            f"{checkpoint.OPTIMIZER}{state}/{name}": self.kept(own, state)
            for state in optimizer.states_of(self.config.optimizer)
            for name, own in parameters.items()
        }
        return {} if self.group.rank else weights | remembered

    def kept(self, parameter: nn.Parameter, state: str = "") -> Tensor:
        """The first worker's copy, on the CPU; the others' is nothing, so that none is in vain."""
        found = self.wholes({"": parameter}, state)[""]
        return torch.empty(0) if self.group.rank else found.to("cpu", copy=True)

    def restore(self, tensors: Tensors, step: int, where: str) -> None:
        weights, remembered = checkpoint.parted(tensors)
        checkpoint.require_of_model(self.outline, weights, where)
        parameters = dict(self.model.named_parameters())
        config = self.config.optimizer
        wanted = {name: self.outline[name] for name in parameters}
        optimizer.remembered_by(wanted, remembered, config=config, step=step, where=where)
        for name, own in checkpoint.tensors_of(self.model).items():
            if isinstance(own, nn.Parameter):
                self.replace(own, weights[name])
            else:
                own.copy_(weights[name])
        for state in optimizer.states_of(config):
            for name, own in parameters.items():
                nothing = torch.zeros(wanted[name].shape)
                self.put(own, remembered.get(f"{state}/{name}", nothing), state)
        self.count(step)
        self.initial = None

    @torch.no_grad()
    def replace(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set a weight: what forward passes use, and the optimizer's copy of it."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
            if self.stage != 3 or self.group.rank == 0:
                parameter.copy_(value)
        self.put(parameter, value)


class Rounding(nn.Module):
    """The model under autocast, while it trains, if that is wanted."""

    def __init__(self, model: nn.Module, device: torch.device, *, wanted: bool) -> None:
        super().__init__()
        self.model = model
        self.device_type = device.type
        self.wanted = wanted

    def forward(self, token_NT: Tensor, masks: Masks | None = None) -> Tensor:
        enabled = self.wanted and self.training
        with torch.autocast(self.device_type, torch.bfloat16, enabled=enabled):
            return self.model(token_NT, masks)


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Of the whole weight, wherever it is now."""
    return getattr(parameter, "ds_shape", parameter.shape)


def initialised(
    model: nn.Module,
    config: TrainingConfig,
    zero: DeepSpeedConfig,
    chosen: torch.optim.Optimizer,
    device: torch.device,
    group: Group,
) -> Any:
    """DeepSpeed's engine around the model, which it partitions."""
    local = torch.cuda.current_device() if device.type == "cuda" else 0
    os.environ.setdefault("LOCAL_RANK", str(local))  # DeepSpeed asks its environment alone
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as compiled
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # of DeepSpeed's calls
    compiled["deepspeed_shm_comm"] = False  # it would call a C++ compiler; gloo does the same
    wrapped = Rounding(model, device, wanted=config.precision == "bfloat16")
    numbers = sum(parameter.numel() for parameter in model.parameters())
    engine, *_ = deepspeed.initialize(
        model=wrapped,
        optimizer=chosen,
        config=settings(config, zero, numbers=numbers, workers=group.size),
        dist_init_required=False,
    )
    return engine


def settings(
    config: TrainingConfig, zero: DeepSpeedConfig, *, numbers: int, workers: int
) -> dict[str, Any]:
    """Ours in DeepSpeed's words; ``numbers``: that the model has."""
    bucket = min(LARGEST_BUCKET, numbers)
    host = {"device": "cpu"}
    offloaded = {"offload_optimizer": host} if zero.offload != "none" else {}
    offloaded |= {"offload_param": host} if zero.offload == "all" else {}
    return {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.batch // workers // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.clip,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own, whose formula the audit knows
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "memory_efficient_linear": False,  # it would hide the weights' use from the tape
            **offloaded,
        },
    }
