"""Law 1 while training runs: shifts and carry add up to the applied change, or training stops.

With plain SGD in float32 the sum of shifts is compared with the applied change directly. Every
other optimizer or precision is audited in two stages, because one comparison would hide losses:

1. Σ_i g_i against the gradient that the optimizer was given, *before* the preconditioner. After the
   preconditioner the comparison means nothing: Adam divides by √v̂, so an entry whose true gradient
   is 0 (a key's bias) turns the rounding error of its sum into a full-size update. Two orders of
   summation then disagree by the whole update.
2. The optimizer's formula (``capture.optim.optimizer``), applied to that same gradient, against the
   change of the weights. Both sides start from the same tensor, so summation order and bfloat16
   cannot explain a difference.

At the first and the last step of a segment the sums of stage 1 are formed whole. At the others they
are seen through random vectors (``capture.engine.probe``), at a tenth of the cost, and formed whole
if what is seen is not clearly within the tolerance. Under bfloat16, where each entry has a bound of
its own, and for the loss of the last token they are always formed.

Rounding explains the following differences, which are no violation:

- A weight θ is stored to within 2^-24 · |θ|, which is ‖θ‖ · 2^-24 / ‖change‖ relative to the
  change. AdamW's decay first multiplies θ by 1 − lr · decay; that factor and the product are
  rounded too, which makes three roundings.
- Under bfloat16, autograd rounds the gradient S_u = Σ_t δ_t a_tᵀ of each of U uses once (unit
  roundoff 2^-8) and each of the U − 1 sums of uses once more; no sum exceeds Σ_u |S_u|. An entry
  may thus be off by 2^-8 · U · Σ_u |S_u|, where the sum also runs over micro-batches, which are
  added in float32. The audit counts only the excess over this bound, entry by entry. A lost datum
  shows in every entry of which it is more than about 0.4 %; among many entries there are some,
  however large the batch.

Source of the bounds: Higham 2002, Accuracy and Stability of Numerical Algorithms, theorem 2.2.
Shapes: P all captured parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from capture.engine.mapped_factors import mapped_gradients
from capture.engine.probe import LOOK_AGAIN, Probe
from capture.engine.step import Step
from capture.gradients.dense import slice_datums, sum_shifts
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.optim.config import TrainingConfig
from capture.optim.update import BFLOAT16_ROUNDING, relative_error, rounding_error
from capture.process_group import SINGLE_PROCESS, Group


@dataclass(frozen=True)
class Discrepancy:
    """Difference of two vectors, relative to the norm of the expected one."""

    error: float
    """The whole difference."""
    unexplained: float
    """The part that rounding does not explain."""


def discrepancies(
    step: Step,
    layout: Layout,
    total_P: Tensor,
    before_P: Tensor,
    after_P: Tensor,
    config: TrainingConfig,
    group: Group = SINGLE_PROCESS,
) -> list[Discrepancy]:
    """Return all comparisons of the audit; each must be 0 except for rounding.

    ``total_P``: sum of the recorded shifts over the slots of all workers of ``group``. The step's
    factors, in contrast, are those of this worker's slots.
    """
    change_P = after_P - before_P
    stored = rounding_error(before_P, after_P) * rounding_count(config)
    if step.gradients is None:
        all_P = sum_full_loss_shifts(step, layout, group) if step.last else total_P
        return [
            compare(all_P, change_P, stored),
            *last_token_discrepancies(step, layout, total_P, config, group),
        ]
    fresh_P, applied_P = formula(step, layout)
    if step.preconditioner:
        preconditioner_P = layout.flatten(step.preconditioner)
        # Stage 1 needs the shifts before the preconditioner. Where that is 0 (a parameter group
        # with learning rate 0), division is impossible, and the entry does not move in any case.
        moved_P = preconditioner_P != 0
        total_P = torch.where(moved_P, total_P / preconditioner_P, fresh_P)
    all_P = sum_full_loss_shifts(step, layout, group) if step.last else total_P
    return [
        compare(applied_P, change_P, stored),
        gradient_discrepancy(all_P, fresh_P, step.factors, step.scale, layout, config, group),
        *last_token_discrepancies(step, layout, total_P, config, group),
    ]


def can_be_probed(step: Step, config: TrainingConfig) -> bool:
    """Return whether the step's sums may be seen through random vectors instead of formed."""
    return config.precision == "float32" and step.last is None


def probed_discrepancies(
    step: Step,
    probe: Probe,
    total_Q: Tensor,
    before_P: Tensor,
    after_P: Tensor,
    config: TrainingConfig,
) -> list[Discrepancy]:
    """Return the comparisons of the audit with sums seen through ``probe``: estimates.

    ``total_Q``: what is seen of ``step.scale`` times the sum of the gradients over all slots and
    workers. The optimizer's formula is compared entry by entry, as in ``discrepancies``.
    """
    change_P = after_P - before_P
    stored = rounding_error(before_P, after_P) * rounding_count(config)
    if step.gradients is None:
        return [compare(total_Q, probe.of_vector(change_P), stored)]
    fresh_P, applied_P = formula(step, probe.layout)
    return [
        compare(applied_P, change_P, stored),
        compare(total_Q, probe.of_vector(fresh_P), 0.0),
    ]


def are_clearly_within(allowed: float, found: list[Discrepancy]) -> bool:
    """Return whether estimates leave no doubt that the differences are within the tolerance."""
    return all(each.unexplained <= LOOK_AGAIN * allowed for each in found)


def formula(step: Step, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return what the optimizer makes of the gradient that it was given, [P], in two stages.

    First before the preconditioner, then the whole update. ``step.gradients`` are clipped already,
    so the clip factor is divided out of the scale; it is 0 only if the gradient's norm is infinite.
    """
    assert step.gradients is not None
    rate = step.scale / step.clip if step.clip else 0.0
    fresh_P = layout.flatten(step.gradients).mul_(rate)
    applied_P = fresh_P
    if step.side_maps:
        applied_P = mapped_gradients(fresh_P, layout, step.side_maps)
    if step.preconditioner:
        applied_P = applied_P * layout.flatten(step.preconditioner)
    if step.carry:
        applied_P = applied_P + layout.flatten(step.carry)
    return fresh_P, applied_P


def sum_full_loss_shifts(step: Step, layout: Layout, group: Group) -> Tensor:
    """Return the sum of all workers' shifts of the whole loss, before preconditioning, [P]."""
    total_P = sum_shifts(step.factors, layout, step.scale)
    group.all_reduce([total_P])
    return total_P


def last_token_discrepancies(
    step: Step, layout: Layout, total_P: Tensor, config: TrainingConfig, group: Group
) -> list[Discrepancy]:
    """Compare the last token's shifts with autograd, if those are recorded; else return []."""
    if not step.last:
        return []
    wanted_P = layout.flatten(step.last.gradients) * step.scale
    last = step.last.factors
    return [gradient_discrepancy(total_P, wanted_P, last, step.scale, layout, config, group)]


def gradient_discrepancy(
    found_P: Tensor,
    wanted_P: Tensor,
    factors: Factors,
    scale: float,
    layout: Layout,
    config: TrainingConfig,
    group: Group = SINGLE_PROCESS,
) -> Discrepancy:
    """Compare the sum of the datums' gradients with autograd's gradient; both times ``scale``."""
    if config.precision == "float32":
        return compare(found_P, wanted_P, 0.0)
    allowed_P = bfloat16_allowance(found_P, factors, scale, layout, config.accumulate, group)
    missed_P = (found_P - wanted_P).abs_()
    excess_P = missed_P.sub_(allowed_P).clamp_(min=0)
    exactly_P = wanted_P.double()  # in float32 a tiny excess would vanish in the addition
    unexplained = relative_error(exactly_P + excess_P, exactly_P)
    return Discrepancy(relative_error(found_P, wanted_P), unexplained)


def bfloat16_allowance(
    found_P: Tensor,
    factors: Factors,
    scale: float,
    layout: Layout,
    accumulate: int,
    group: Group,
) -> Tensor:
    """Return bounds on bfloat16's rounding of autograd's gradient, [P], times ``scale``.

    The bound of an entry is 2^-8 · U · Σ_u |S_u| over uses, micro-batches and workers.
    """
    parts = []
    for name, found in zip(layout.names, found_P.split(layout.sizes), strict=True):
        uses, own = factors[name], Layout({name: layout.shapes[name]})
        size = len(uses[0].delta_NTO) // accumulate
        pieces = [
            slice_datums({name: [use]}, number * size, (number + 1) * size)
            for use in uses
            for number in range(accumulate)
        ]
        # With one use, micro-batch and worker, S_u is the total, which is known already.
        whole = len(pieces) * group.size == 1
        sums = [found] if whole else [sum_shifts(p, own, scale) for p in pieces]
        largest = torch.stack([one.abs() for one in sums]).sum(0)
        parts.append(largest * (len(uses) * BFLOAT16_ROUNDING))
    allowed_P = torch.cat(parts)
    group.all_reduce([allowed_P])
    return allowed_P


def compare(found_P: Tensor, wanted_P: Tensor, explained: float) -> Discrepancy:
    """Return the relative difference, of which ``explained`` is due to rounding."""
    error = relative_error(found_P, wanted_P)
    return Discrepancy(error, error - explained)


def rounding_count(config: TrainingConfig) -> int:
    """Return how many roundings of an update are as large as a weight's."""
    decoupled = config.optimizer.kind == "adamw" and config.optimizer.weight_decay
    return 3 if decoupled else 1
