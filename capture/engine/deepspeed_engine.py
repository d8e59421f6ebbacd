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

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from capture.engine.deepspeed_setup import initialise_deepspeed
from capture.engine.engine import Engine, LastToken, Step
from capture.format import checkpoint
from capture.models.transformer import AnyModel
from capture.optim import optimizer
from capture.optim.config import TrainingConfig
from capture.optim.deepspeed_config import DeepSpeedConfig
from capture.optim.optimizer import Tensors
from capture.optim.update import clip_factor
from capture.process_group import Group


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
        """``group``: of torch's process group. DeepSpeed comes in with the first step, or before it
        when weights are restored: until then the model is whole and the worker's own."""
        super().__init__(
            model,
            config,
            units=units,
            last_only=False,
            seed=seed,
            num_steps=num_steps,
            group=group,
        )
        self.partitioned = zero.stage == 3
        self.zero = zero
        self.meta_tensors = {n: own.to("meta") for n, own in checkpoint.tensors_of(model).items()}
        self.deepspeed: Any = None

    def initialise_deepspeed(self) -> None:
        """Make the model DeepSpeed's, once. All workers do so together, with the same weights."""
        if self.deepspeed is not None:
            return
        parts = self.model, self.config, self.zero, self.optimizer, self.device, self.group
        self.deepspeed = self.forward_model = initialise_deepspeed(*parts)
        for flat in self.flat_partitions:  # what is remembered before any step
            for state in optimizer.state_names(self.config.optimizer):
                self.optimizer.state[flat][state] = torch.zeros_like(flat)
        self.set_step_count(0)
        for parameter in self.model.parameters():
            parameter.register_hook(lambda grad: grad * self.group.size)

    # --- a step ---

    def step(self, token_NT: Tensor, target_NT: Tensor, *, step: int, epoch: int) -> Step:
        self.initialise_deepspeed()
        return super().step(token_NT, target_NT, step=step, epoch=epoch)

    def backward(self, loss: Tensor) -> None:
        """After all but the last micro-batch DeepSpeed is told that this was not the last."""
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()

    def sum_over_workers(self, loss: float, last: LastToken | None) -> float:
        """The whole batch's loss; gradients are DeepSpeed's to add up."""
        total = torch.tensor([loss], device=self.device)
        self.group.all_reduce([total])
        return total.item()

    def update(
        self, learning_rate: float, step: int
    ) -> tuple[float, optimizer.UpdateParts, Tensors | None]:
        config = self.config.optimizer
        states = optimizer.state_names(config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        moments = self.gather_whole(self.units, states[0]) if states else {}
        weights = self.gather_whole(self.units) if config.weight_decay else {}
        inherited = optimizer.inherited_terms(config, weights, moments)
        grads = self.full_gradients() if self.needs_gradients else None
        self.deepspeed.step()
        norm = float(self.deepspeed.get_global_grad_norm())
        clip = clip_factor(norm, self.config.clip)
        squares = self.gather_whole(self.units, "exp_avg_sq") if len(states) > 1 else {}
        parts = optimizer.split_update(
            config, inherited, squares, learning_rate=learning_rate, clip=clip, step=step
        )
        return norm, parts, grads and {name: grad.mul_(clip) for name, grad in grads.items()}

    def full_gradients(self) -> Tensors:
        """By unit, the whole batch's, not yet clipped; between backward pass and step."""
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(own).clone() for name, own in self.units.items()}

    def autocast(self) -> torch.autocast:
        """None here: DeepSpeed ends one that begins outside it. ``Rounding`` has it instead."""
        return torch.autocast(self.device.type, enabled=False)

    # --- from pieces to gather_whole, and back ---

    def weights(self, names: Collection[str]) -> Tensors:
        self.initialise_deepspeed()
        return self.gather_whole({name: self.units[name] for name in names})

    def gather_whole(self, parameters: dict[str, nn.Parameter], state: str = "") -> Tensors:
        """Copies of these weights, or of what the optimizer remembers of them; all call it."""
        found = {name: self.place_local_piece(own, state) for name, own in parameters.items()}
        if found:
            self.group.all_reduce(list(found.values()))
        return found

    def place_local_piece(self, parameter: nn.Parameter, state: str) -> Tensor:
        """This worker's piece in its place, and zeros."""
        shape = shape_of(parameter)
        flat = torch.zeros(shape.numel(), device=self.device)
        own, start = self.local_piece(parameter, state)
        flat[start : start + len(own)] = own
        return flat.view(shape)

    def local_piece(self, parameter: nn.Parameter, state: str = "") -> tuple[Tensor, int]:
        """What this worker keeps of a weight, or of a state of it: a flat view, and its start."""
        zero: Any = self.deepspeed.optimizer
        if self.partitioned:
            number, first, size = zero.grad_position[zero.get_param_id(parameter)]
            start = self.group.rank * size
            size = max(0, min(size, shape_of(parameter).numel() - start))  # the rest is padding
        elif (own := getattr(parameter, "_hp_mapping", None)) is None:
            return torch.empty(0), 0
        else:
            number, start = own.param_group_index, own.lp_fragment_address.start
            first, size = own.hp_fragment_address.start, own.hp_fragment_address.numel
        flat = self.flat_partitions[number]
        kept = self.optimizer.state[flat][state] if state else flat
        return kept.detach().narrow(0, first, size), start

    def set_local_piece(self, parameter: nn.Parameter, value: Tensor, state: str = "") -> None:
        """Set this worker's piece of a weight, or of a state of it."""
        own, start = self.local_piece(parameter, state)
        own.copy_(value.flatten()[start : start + len(own)])

    @property
    def flat_partitions(self) -> list[Tensor]:
        """The vectors that this worker's optimizer moves: its pieces of all weights."""
        zero: Any = self.deepspeed.optimizer
        return (
            zero.fp32_partitioned_groups_flat
            if self.partitioned
            else zero.single_partition_of_fp32_groups
        )

    def set_step_count(self, step: int) -> None:
        """Tell Adam how many steps it has taken."""
        if self.config.optimizer.kind != "sgd":
            for flat in self.flat_partitions:
                self.optimizer.state[flat]["step"] = torch.tensor(float(step))

    # --- checkpoints ---

    def snapshot(self) -> Tensors:
        if self.deepspeed is None:
            return super().snapshot()
        parameters = dict(self.model.named_parameters())
        weights = {
            name: self.gather_to_first(own)
            if isinstance(own, nn.Parameter)
            else own.to("cpu", copy=True)
            for name, own in checkpoint.tensors_of(self.model).items()
        }
        remembered = {
            f"{checkpoint.OPTIMIZER}{state}/{name}": self.gather_to_first(own, state)
            for state in optimizer.state_names(self.config.optimizer)
            for name, own in parameters.items()
        }
        return {} if self.group.rank else weights | remembered

    def gather_to_first(self, parameter: nn.Parameter, state: str = "") -> Tensor:
        """The first worker's copy, on the CPU; the others' is nothing, so that none is in vain."""
        found = self.gather_whole({"": parameter}, state)[""]
        return torch.empty(0) if self.group.rank else found.to("cpu", copy=True)

    def restore(self, tensors: Tensors, step: int, where: str) -> None:
        self.initialise_deepspeed()
        weights, remembered = checkpoint.split_checkpoint(tensors)
        checkpoint.require_matching(self.meta_tensors, weights, where)
        parameters = dict(self.model.named_parameters())
        config = self.config.optimizer
        wanted = {name: self.meta_tensors[name] for name in parameters}
        optimizer.expected_state(wanted, remembered, config=config, step=step, where=where)
        for name, own in checkpoint.tensors_of(self.model).items():
            if isinstance(own, nn.Parameter):
                self.set_weight(own, weights[name])
            else:
                own.copy_(weights[name])
        for state in optimizer.state_names(config):
            for name, own in parameters.items():
                nothing = torch.zeros(wanted[name].shape)
                self.set_local_piece(own, remembered.get(f"{state}/{name}", nothing), state)
        self.set_step_count(step)

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set a weight: what forward passes use, and the optimizer's copy of it."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0, enabled=self.partitioned):
            if self.group.rank == 0 or not self.partitioned:
                parameter.copy_(value)
        self.set_local_piece(parameter, value)


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Of the whole weight, wherever it is now."""
    return getattr(parameter, "ds_shape", parameter.shape)
