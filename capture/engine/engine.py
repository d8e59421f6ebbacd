"""One training step in plain torch: forward, one backward pass, clip, update; factors on the side.

A batch may go through in several micro-batches: their gradients add up in the parameters, and their
factors are joined along N, so that slots number the whole batch. With bfloat16 the forward pass
runs under autocast, the weights stay float32, and factors are what was multiplied, as float32.
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from capture.format import checkpoint
from capture.gradients.dense import join_datums
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.gradients.vmap_fallback import factors_by_vmap
from capture.models.dropout import Masks, draw_masks
from capture.models.huggingface import stored_transposed
from capture.models.transformer import AnyModel, LanguageModel, dropout_entries
from capture.optim import optimizer, schedule
from capture.optim.config import TrainingConfig
from capture.optim.optimizer import Tensors
from capture.optim.update import clip_factor
from capture.process_group import SINGLE_PROCESS, Group


@dataclass(frozen=True)
class LastToken:
    """What the loss at each window's last position alone contributes to a step."""

    factors: Factors
    gradients: Tensors
    """By unit, from autograd: what the factors must add up to."""


@dataclass(frozen=True)
class Step:
    """What one optimizer update was."""

    loss: float
    """Mean cross-entropy of the batch, nats per token."""
    gradient_norm: float
    clip: float
    learning_rate: float
    factors: Factors
    """Of the training loss."""
    last: LastToken | None
    """The last token's part of it, where that is what is recorded."""
    scale: float
    """What a gradient is multiplied by (and then by the preconditioner) to become a shift."""
    preconditioner: Tensors | None = None
    """By unit, what an entry's shift is multiplied by besides; None: 1, as with SGD."""
    carry: Tensors | None = None
    """By unit, the part of the change that is no datum's: momentum, weight decay; None: 0."""
    gradients: Tensors | None = None
    """By unit, what the optimizer was given: autograd's sum over the batch, clipped. None where an
    update is scale times the sum of the datums' gradients in float32, and nothing else."""


class Engine:
    """A model and its optimizer, advanced one step at a time."""

    partitioned = False
    """Whether no worker holds the whole model, so that all must call for any forward pass."""

    def __init__(
        self,
        model: AnyModel,
        config: TrainingConfig,
        *,
        units: dict[str, nn.Parameter],
        last_only: bool,
        seed: int,
        num_steps: int = 0,
        vmap_units: Collection[str] = (),
        group: Group = SINGLE_PROCESS,
    ) -> None:
        """``num_steps``: of the whole run, for a schedule that ends with it.

        ``vmap_units``: the units that have no factors and are captured by the fall-back.
        ``group``: the workers that take each step together, of which this is one.
        """
        self.model = model
        self.forward_model: nn.Module = model
        """What forward passes go through: the model, or what an engine has put around it."""
        self.config = config
        self.units = units
        self.layout = Layout.of(units, stored_transposed(model))
        self.vmap_units = {name: units[name] for name in units if name in vmap_units}
        self.last_only = last_only
        self.seed = seed
        self.num_steps = num_steps
        self.group = group
        self.device = next(model.parameters()).device
        self.optimizer = optimizer.make_optimizer(
            model.parameters(), config.optimizer, config.learning_rate
        )

    @property
    def tape_units(self) -> dict[str, nn.Parameter]:
        """The units whose factors are recorded in the forward pass."""
        return {name: own for name, own in self.units.items() if name not in self.vmap_units}

    def step(self, token_NT: Tensor, target_NT: Tensor, *, step: int, epoch: int) -> Step:
        """Apply one update. The batch's slots are its rows, of which factors are this worker's."""
        learning_rate = self.learning_rate(step, epoch)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.model.zero_grad()
        loss, factors, last = self.gradients(token_NT, target_NT, step)
        loss = self.sum_over_workers(loss, last)
        norm, parts, gradients = self.update(learning_rate, step)
        return Step(
            loss,
            norm,
            clip_factor(norm, self.config.clip),
            learning_rate,
            factors,
            last,
            parts.scale,
            parts.preconditioner,
            parts.carry,
            gradients,
        )

    def learning_rate(self, step: int, epoch: int) -> float:
        config = self.config
        return config.learning_rate * schedule.learning_rate_factor(
            config.schedule, config.decay, step=step, epoch=epoch, num_steps=self.num_steps
        )

    def update(
        self, learning_rate: float, step: int
    ) -> tuple[float, optimizer.UpdateParts, Tensors | None]:
        """Have the optimizer move the weights; the gradient's norm before it was clipped, the parts
        of the update, and the gradients that it had."""
        config = self.config.optimizer
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip))
        clip = clip_factor(norm, self.config.clip)
        states = optimizer.state_names(config)
        moments = optimizer.optimizer_state(self.optimizer, self.units, states[0]) if states else {}
        inherited = optimizer.inherited_terms(config, self.units, moments)
        self.optimizer.step()
        squares = optimizer.optimizer_state(self.optimizer, self.units, "exp_avg_sq")
        parts = optimizer.split_update(
            config, inherited, squares, learning_rate=learning_rate, clip=clip, step=step
        )
        if not self.needs_gradients:
            return norm, parts, None
        grads = {name: parameter.grad for name, parameter in self.units.items()}
        return norm, parts, {name: grad for name, grad in grads.items() if grad is not None}

    @property
    def needs_gradients(self) -> bool:
        """Whether the audit must know the gradients: see ``Step.gradients``."""
        return not self.config.optimizer.plain or self.config.precision != "float32"

    def gradients(
        self, token_NT: Tensor, target_NT: Tensor, step: int
    ) -> tuple[float, Factors, LastToken | None]:
        """Forward and backward: gradients into the parameters, factors on the tape.

        All of them are of the whole batch's mean loss, in however many pieces it goes through, and
        the share of this worker's slots in it.
        """
        self.forward_model.train()
        slots = self.group.slots(len(token_NT))
        size = len(slots) // self.config.accumulate
        pieces = [
            self.micro_batch_gradients(token_NT, target_NT, slots[start : start + size], step)
            for start in range(0, len(slots), size)
        ]
        losses, factors, lasts = zip(*pieces, strict=True)
        return sum(losses), join_datums(factors), join_last_tokens([last for last in lasts if last])

    def micro_batch_gradients(
        self, token_NT: Tensor, target_NT: Tensor, slots: range, step: int
    ) -> tuple[float, Factors, LastToken | None]:
        """The same for some slots of the batch, a micro-batch."""
        positions = target_NT.numel()
        token_NT, target_NT = (x[slots.start : slots.stop] for x in (token_NT, target_NT))
        masks = self.masks(slots, step, token_NT.shape[1])
        tape = Tape(self.tape_units, len(token_NT))
        with tape if self.units else nullcontext(), self.autocast():
            logit_NTV = self.forward_model(token_NT, masks)
        logit_NTV = logit_NTV.float()
        loss = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten())
        loss = loss * (target_NT.numel() / positions)
        self.backward(loss)
        batch = (token_NT, target_NT, masks, positions)
        factors = tape.factors() | self.fallback_factors(*batch, scored=slice(None))
        if not self.last_only:
            return loss.item(), factors, None
        tape.forget_deltas()
        last = F.cross_entropy(logit_NTV[:, -1], target_NT[:, -1], reduction="sum")
        grads = torch.autograd.grad(last / positions, list(self.units.values()))
        gradients = dict(zip(self.units, grads, strict=True))
        of_last = tape.factors() | self.fallback_factors(*batch, scored=slice(-1, None))
        return loss.item(), factors, LastToken(of_last, gradients)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients to the parameters'."""
        loss.backward(retain_graph=self.last_only)

    def fallback_factors(
        self, token_NT: Tensor, target_NT: Tensor, masks: Masks, positions: int, *, scored: slice
    ) -> Factors:
        """Of the units that have no factors; ``scored``: where in the window the loss counts."""
        names = list(self.vmap_units)
        return self.vmap_factors(names, token_NT, target_NT, masks, positions, scored=scored)

    def vmap_factors(
        self,
        names: Sequence[str],
        token_NT: Tensor,
        target_NT: Tensor,
        masks: Masks,
        positions: int,
        *,
        scored: slice,
    ) -> Factors:
        """Every datum's gradient of these units, dense; ``positions``: those of the whole batch."""
        if not names:
            return {}
        pools = () if masks.pool_NK is None else (masks.pool_NK,)

        def loss_of(
            weights: dict[str, Tensor], token_T: Tensor, target_T: Tensor, *pool_K: Tensor
        ) -> Tensor:
            masks = Masks(pool_K[0][None]) if pool_K else Masks.none()
            with self.autocast():
                logit_TV = functional_call(self.model, weights, (token_T[None], masks))[0].float()
            lost = F.cross_entropy(logit_TV[scored], target_T[scored], reduction="sum")
            return lost / positions

        units = {name: self.units[name] for name in names}
        return factors_by_vmap(loss_of, units, (token_NT, target_NT, *pools))

    def snapshot(self) -> Tensors:
        """A checkpoint: weights, and what the optimizer remembers, copied to the CPU.

        All workers call it, and the first one has it; the others get nothing.
        """
        if self.group.rank:
            return {}
        parameters = dict(self.model.named_parameters())
        return checkpoint.snapshot(self.model, optimizer.snapshot(self.optimizer, parameters))

    def restore(self, tensors: Tensors, step: int, where: str) -> None:
        """Go back to a checkpoint after ``step`` updates; raises ``ShardError`` for another's."""
        weights, remembered = checkpoint.split_checkpoint(tensors)
        checkpoint.restore(self.model, weights, where)
        optimizer.restore(
            self.optimizer,
            dict(self.model.named_parameters()),
            remembered,
            config=self.config.optimizer,
            step=step,
            where=where,
        )

    def weights(self, names: Collection[str]) -> Tensors:
        """Of these units, whole, as they stand now (not to be changed); all workers call it."""
        return {name: self.units[name].detach() for name in names}

    def autocast(self) -> torch.autocast:
        wanted = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def sum_over_workers(self, loss: float, last: LastToken | None) -> float:
        """The whole batch's loss; all gradients become the whole batch's too."""
        if self.group.size == 1:
            return loss
        total = torch.tensor([loss], device=self.device)
        parameters = self.model.parameters()
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        lasts = last.gradients.values() if last else ()
        self.group.all_reduce([total, *grads, *lasts])
        return total.item()

    def masks(self, slots: Sequence[int], step: int, window: int) -> Masks:
        if not isinstance(self.model, LanguageModel):
            return Masks.none()
        return draw_masks(
            slots,
            entries=dropout_entries(self.model.config, window),
            dropout=self.model.config.dropout,
            seed=self.seed,
            step=step,
            device=self.device,
        )


def join_last_tokens(pieces: Sequence[LastToken]) -> LastToken | None:
    """Of a batch, from its micro-batches in order."""
    if not pieces:
        return None
    first, *others = (piece.gradients for piece in pieces)
    sums = {name: sum((other[name] for other in others), grad) for name, grad in first.items()}
    return LastToken(join_datums([piece.factors for piece in pieces]), sums)
