"""Training steps by DeepSpeed: weights, gradients and optimizer state partitioned among workers.

Each worker captures the factors of its own slots, as the plain engine does, at every ZeRO stage
(Rajbhandari et al. 2020: stage 1 partitions optimizer state, 2 gradients too, 3 weights too). A
partitioned weight is whole while its module runs, and it stays the same Python object, by which the
tape recognizes it.

Whole tensors (weights before and after the step, moments, checkpoints) are assembled by an
all-reduce: each worker writes its piece into zeros, and the sum is the whole tensor.

DeepSpeed averages gradients over workers, but a worker's gradient here is its share of one batch,
and shares must be summed. A hook therefore multiplies each gradient by the number of workers.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from capture.engine.deepspeed_setup import initialise_deepspeed
from capture.engine.engine import Engine
from capture.engine.step import LastToken, Step
from capture.format import checkpoint
from capture.gradients.window_axis import Axis
from capture.interventions.suppression import Suppression
from capture.models.transformer import AnyModel
from capture.optim import optimizer
from capture.optim.config import TrainingConfig
from capture.optim.deepspeed_config import DeepSpeedConfig
from capture.optim.optimizer import Tensors
from capture.optim.update import clip_factor
from capture.process_group import Group


class DeepSpeedEngine(Engine):
    """Takes the same steps as the plain engine, with DeepSpeed."""

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
        window_axes: Mapping[str, Sequence[Axis]] | None = None,
        suppression: Suppression | None = None,
    ) -> None:
        """``group``: the workers of torch's process group.

        DeepSpeed is initialized at the first step or when weights are restored. Until then each
        worker holds the whole model.
        """
        super().__init__(
            model,
            config,
            units=units,
            last_only=False,
            seed=seed,
            num_steps=num_steps,
            window_axes=window_axes,
            suppression=suppression,
            group=group,
        )
        self.partitioned = zero.stage == 3
        if self.partitioned:
            self.split_unchecked = "DeepSpeed partitions the weights (deepspeed.stage=3)"
        self.zero = zero
        self.meta_tensors = {n: own.to("meta") for n, own in checkpoint.tensors_of(model).items()}
        self.deepspeed: Any = None

    def initialise_deepspeed(self) -> None:
        """Let DeepSpeed partition the model, once.

        All workers must call this at the same point, with the same weights.
        """
        if self.deepspeed is not None:
            return
        parts = self.model, self.config, self.zero, self.optimizer, self.device, self.group
        self.deepspeed = self.forward_model = initialise_deepspeed(*parts)
        for flat in self.flat_partitions:  # torch would create the moments at the first step
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
        """Accumulate gradients; ``step`` after all but the last micro-batch only counts it."""
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()

    def sum_over_workers(self, loss: float, last: LastToken | None) -> float:
        """Return the whole batch's loss; DeepSpeed itself sums the gradients."""
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
        """Return the whole batch's gradients by unit, before clipping.

        Call this between backward pass and step.
        """
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(own).clone() for name, own in self.units.items()}

    def autocast(self) -> torch.autocast:
        """Return a disabled context; ``AutocastModel`` enters autocast inside DeepSpeed instead."""
        return torch.autocast(self.device.type, enabled=False)

    # --- from pieces to gather_whole, and back ---

    def weights(self, names: Collection[str]) -> Tensors:
        self.initialise_deepspeed()
        return self.gather_whole({name: self.units[name] for name in names})

    def gather_whole(self, parameters: dict[str, nn.Parameter], state: str = "") -> Tensors:
        """Return whole copies of these weights, or of one optimizer state of them.

        All workers must call this.
        """
        found = {name: self.place_local_piece(own, state) for name, own in parameters.items()}
        if found:
            self.group.all_reduce(list(found.values()))
        return found

    def place_local_piece(self, parameter: nn.Parameter, state: str) -> Tensor:
        """Return a tensor of the whole shape with this worker's piece in place, zeros elsewhere."""
        shape = shape_of(parameter)
        flat = torch.zeros(shape.numel(), device=self.device)
        own, start = self.local_piece(parameter, state)
        flat[start : start + len(own)] = own
        return flat.view(shape)

    def local_piece(self, parameter: nn.Parameter, state: str = "") -> tuple[Tensor, int]:
        """Return this worker's piece of a weight, or of an optimizer state of it.

        The piece is a flat view; the second value is the index of its first entry in the whole.
        """
        zero: Any = self.deepspeed.optimizer
        if self.partitioned:
            number, first, size = zero.grad_position[zero.get_param_id(parameter)]
            start = self.group.rank * size
            # Stage 3 splits every weight into equal pieces; the last ones may be padding.
            size = max(0, min(size, shape_of(parameter).numel() - start))
        elif (own := getattr(parameter, "_hp_mapping", None)) is None:
            # Stages 1 and 2 cut one vector of all weights: a worker may hold nothing of this one.
            return torch.empty(0), 0
        else:
            number, start = own.param_group_index, own.lp_fragment_address.start
            first, size = own.hp_fragment_address.start, own.hp_fragment_address.numel
        flat = self.flat_partitions[number]
        kept = self.optimizer.state[flat][state] if state else flat
        return kept.detach().narrow(0, first, size), start

    def set_local_piece(self, parameter: nn.Parameter, value: Tensor, state: str = "") -> None:
        """Set this worker's piece of a weight, or of an optimizer state of it."""
        own, start = self.local_piece(parameter, state)
        own.copy_(value.flatten()[start : start + len(own)])

    @property
    def flat_partitions(self) -> list[Tensor]:
        """The vectors that this worker's optimizer updates: its pieces of all weights."""
        zero: Any = self.deepspeed.optimizer
        return (
            zero.fp32_partitioned_groups_flat
            if self.partitioned
            else zero.single_partition_of_fp32_groups
        )

    def set_step_count(self, step: int) -> None:
        """Set Adam's count of steps taken."""
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
        """Return a whole copy on the CPU of worker 0; an empty tensor on all others."""
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
        """Set a weight: the tensor of the forward pass and the optimizer's float32 copy."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0, enabled=self.partitioned):
            if self.group.rank == 0 or not self.partitioned:
                parameter.copy_(value)
        self.set_local_piece(parameter, value)


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole weight, even while it is partitioned."""
    return getattr(parameter, "ds_shape", parameter.shape)
