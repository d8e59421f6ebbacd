"""One training step in plain torch: forward, one backward pass, clipping, update, and factors.

A batch may be processed in several micro-batches: their gradients accumulate in the parameters, and
their factors are joined along N, so that slots number the whole batch. With bfloat16 the forward
pass runs under autocast and weights stay float32; factors are the rounded values that were
multiplied, stored as float32.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from capture.engine.left_out import share_of_loss
from capture.engine.step import LastToken, Step, join_last_tokens
from capture.format import checkpoint
from capture.gradients.dense import join_datums
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.gradients.vmap_fallback import factors_by_vmap
from capture.gradients.window_axis import Axis
from capture.interventions.suppression import Suppression
from capture.models.dropout import Masks, draw_masks
from capture.models.huggingface import stored_transposed
from capture.models.transformer import AnyModel, LanguageModel, dropout_entries
from capture.optim import optimizer, schedule
from capture.optim.config import TrainingConfig
from capture.optim.optimizer import Tensors
from capture.optim.update import clip_factor
from capture.process_group import SINGLE_PROCESS, Group


class Engine:
    """A model and its optimizer, advanced one step at a time."""

    partitioned = False
    """Whether weights are partitioned, so that all workers must take part in a forward pass."""
    split_unchecked = ""
    """Why no datum can go through the model alone, as the check of the split needs; or empty."""

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
        window_axes: Mapping[str, Sequence[Axis]] | None = None,
        suppression: Suppression | None = None,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        """Make the optimizer, and prepare the capture of ``units`` (which may be empty).

        ``last_only``: record the loss at each window's last position instead of the whole loss.
        ``num_steps``: length of the run, for a schedule that depends on it.
        ``vmap_units``: units without factors, whose gradients are captured by vmap.
        ``window_axes``: axis of the window in each call of a unit; see ``Tape``.
        ``suppression``: parts that are suppressed in some steps.
        ``group``: the workers that take each step together.
        """
        self.model = model
        self.forward_model: nn.Module = model
        """Module to call for a forward pass: the model, or a wrapper around it."""
        self.config = config
        self.units = units
        self.layout = Layout.of(units, stored_transposed(model))
        self.vmap_units = {name: units[name] for name in units if name in vmap_units}
        self.window_axes = window_axes
        self.suppression = suppression
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
        """The units whose factors the tape records."""
        return {name: own for name, own in self.units.items() if name not in self.vmap_units}

    def step(self, token_NT: Tensor, target_NT: Tensor, *, step: int, epoch: int) -> Step:
        """Take one step on a batch, [N, T]; all workers pass the same batch.

        The batch's rows are its slots. The returned factors are those of this worker's slots.
        """
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
        """Return the learning rate that the schedule gives for a step."""
        config = self.config
        return config.learning_rate * schedule.learning_rate_factor(
            config.schedule, config.decay, step=step, epoch=epoch, num_steps=self.num_steps
        )

    def update(
        self, learning_rate: float, step: int
    ) -> tuple[float, optimizer.UpdateParts, Tensors | None]:
        """Clip the gradient and let the optimizer move the weights.

        Returns the gradient's norm before clipping, the parts of the update, and the optimizer's
        gradients by unit if the audit needs them.
        """
        config = self.config.optimizer
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip))
        clip = clip_factor(norm, self.config.clip)
        states = optimizer.state_names(config)
        moments = optimizer.optimizer_state(self.optimizer, self.units, states[0]) if states else {}
        # Weights and first moments must be copied before the step changes them.
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
        """Whether the audit needs the gradients; see ``Step.gradients``."""
        return not self.config.optimizer.plain or self.config.precision != "float32"

    def gradients(
        self, token_NT: Tensor, target_NT: Tensor, step: int
    ) -> tuple[float, Factors, LastToken | None]:
        """Run forward and backward passes on this worker's slots, in micro-batches.

        Returns the loss, the factors and the last token's part. Gradients accumulate in the
        parameters. All of these are shares of the mean loss of the *whole* batch, however it is
        divided, so sums over micro-batches and workers need no further weights.
        """
        self.forward_model.train()
        slots = self.group.slots(len(token_NT))
        size = len(slots) // self.config.accumulate
        with self.suppressing(step):
            pieces = [
                self.micro_batch_gradients(token_NT, target_NT, slots[start : start + size], step)
                for start in range(0, len(slots), size)
            ]
        losses, factors, lasts = zip(*pieces, strict=True)
        return sum(losses), join_datums(factors), join_last_tokens([last for last in lasts if last])

    def micro_batch_gradients(
        self, token_NT: Tensor, target_NT: Tensor, slots: range, step: int
    ) -> tuple[float, Factors, LastToken | None]:
        """Run forward and backward passes on one micro-batch; see ``gradients``."""
        positions = target_NT.numel()
        token_NT, target_NT = (x[slots.start : slots.stop] for x in (token_NT, target_NT))
        masks = self.masks(slots, step, token_NT.shape[1])
        tape = Tape(self.tape_units, len(token_NT), self.window_axes)
        with tape if self.units else nullcontext(), self.autocast():
            logit_NTV = self.forward_model(token_NT, masks)
        logit_NTV = logit_NTV.float()
        loss = share_of_loss(logit_NTV, target_NT, positions)
        self.backward(loss)
        batch = (list(self.vmap_units), token_NT, target_NT, masks, positions)
        factors = tape.factors() | self.vmap_factors(*batch, scored=slice(None))
        if not self.last_only:
            return loss.item(), factors, None
        # The graph is kept: a second backward pass, of the last position's loss alone, gives new δ
        # for the same activations.
        tape.forget_deltas()
        last = F.cross_entropy(logit_NTV[:, -1], target_NT[:, -1], reduction="sum")
        grads = torch.autograd.grad(last / positions, list(self.units.values()))
        gradients = dict(zip(self.units, grads, strict=True))
        of_last = tape.factors() | self.vmap_factors(*batch, scored=slice(-1, None))
        return loss.item(), factors, LastToken(of_last, gradients)

    def backward(self, loss: Tensor) -> None:
        """Accumulate a micro-batch's gradients in the parameters."""
        loss.backward(retain_graph=self.last_only)

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
        """Return every datum's gradient of these units, computed by vmap, as factors.

        ``positions``: number of positions of the whole batch, over which the loss is a mean.
        ``scored``: the positions of the window whose loss counts.
        """
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
        """Return a checkpoint on the CPU: weights and optimizer state.

        All workers must call this; all but the first get an empty result.
        """
        if self.group.rank:
            return {}
        parameters = dict(self.model.named_parameters())
        return checkpoint.snapshot(self.model, optimizer.snapshot(self.optimizer, parameters))

    def restore(self, tensors: Tensors, step: int, where: str) -> None:
        """Restore a checkpoint taken after ``step`` updates; ``where`` names it in errors.

        Raises ``ShardError`` if it belongs to another model or optimizer.
        """
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
        """Return the current, whole weights of these units; do not modify them.

        All workers must call this.
        """
        return {name: self.units[name].detach() for name in names}

    def suppressing(self, step: int) -> AbstractContextManager[None]:
        """Return a context within which passes suppress the parts that this step suppresses."""
        return self.suppression.within(self.model, step) if self.suppression else nullcontext()

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the configured precision."""
        wanted = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def sum_over_workers(self, loss: float, last: LastToken | None) -> float:
        """Return the whole batch's loss, and sum all gradients over workers in place."""
        if self.group.size == 1:
            return loss
        total = torch.tensor([loss], device=self.device)
        parameters = self.model.parameters()
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        lasts = last.gradients.values() if last else ()
        self.group.all_reduce([total, *grads, *lasts])
        return total.item()

    def masks(self, slots: Sequence[int], step: int, window: int) -> Masks:
        """Return the dropout masks of these slots at a step."""
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
