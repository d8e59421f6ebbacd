"""Law 1 while training runs: shifts and carry add up to the applied change, or training stops.

With plain SGD in float32 the two are compared as they are. Another optimizer or precision makes two
comparisons of it, so that neither hides what capture has lost:

1. Σ_i g_i with the gradient that the optimizer was given, before any preconditioner. Afterwards
   nothing could be told: Adam divides by √v̂, so where the true gradient is 0 (a key's bias) the
   rounding of a sum becomes a whole update, and two ways to add up differ by all of it.
2. The optimizer's formula (``capture.optim.optimizer``), fed with that gradient, with the change
   of the weights. Both come from the same tensor, so neither noise nor precision excuses a
   difference.

What rounding explains is no violation:

- A weight θ is stored to within 2^-24 · |θ|, in all ‖θ‖ · 2^-24 / ‖change‖ of the change. AdamW's
  decay multiplies θ first: the product and its factor 1 − lr · decay are rounded too, so thrice.
- Under bfloat16 autograd rounds each use's gradient S_u = Σ_t δ_t a_tᵀ once (unit roundoff 2^-8 of
  the entry) and, of U uses, each of the U − 1 sums again, which are at most Σ_u |S_u|. An entry may
  thus be off by 2^-8 · U · Σ_u |S_u|, the sum running over micro-batches too, which add up in
  float32. Only what exceeds this, entry by entry, is counted: a lost datum shows wherever its part
  of an entry is above 0.4 %, and among so many entries there are some, however large the batch.

Source of the bounds: Higham 2002, Accuracy and Stability of Numerical Algorithms, theorem 2.2.
Shapes: P all captured parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from capture.engine.engine import Step
from capture.gradients.dense import slice_datums, sum_shifts
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.optim.config import TrainingConfig
from capture.optim.update import BFLOAT16_ROUNDING, relative_error, rounding_error
from capture.process_group import SINGLE_PROCESS, Group


@dataclass(frozen=True)
class Discrepancy:
    """By how much one sum misses another, relative to the latter's norm."""

    error: float
    unexplained: float
    """What of it rounding does not account for."""


def discrepancies(
    step: Step,
    layout: Layout,
    total_P: Tensor,
    before_P: Tensor,
    after_P: Tensor,
    config: TrainingConfig,
    group: Group = SINGLE_PROCESS,
) -> list[Discrepancy]:
    """All that must be 0 but for rounding; ``total_P``: the sum of the recorded shifts.

    That sum is over the slots of all workers of ``group``; the step's factors are this worker's.
    """
    change_P = after_P - before_P
    stored = rounding_error(before_P, after_P) * rounding_count(config)
    if step.gradients is None:
        all_P = sum_full_loss_shifts(step, layout, group) if step.last else total_P
        return [
            compare(all_P, change_P, stored),
            *last_token_discrepancies(step, layout, total_P, config, group),
        ]
    rate = step.scale / step.clip if step.clip else 0.0  # 0: of a gradient without a number
    fresh_P = layout.flatten(step.gradients).mul_(rate)
    applied_P = fresh_P
    if step.preconditioner:
        preconditioner_P = layout.flatten(step.preconditioner)
        applied_P = fresh_P * preconditioner_P
        moved_P = preconditioner_P != 0  # where it is 0, as at a learning rate of 0, nothing tells
        total_P = torch.where(moved_P, total_P / preconditioner_P, fresh_P)
    if step.carry:
        applied_P = applied_P + layout.flatten(step.carry)
    all_P = sum_full_loss_shifts(step, layout, group) if step.last else total_P
    return [
        compare(applied_P, change_P, stored),
        gradient_discrepancy(all_P, fresh_P, step.factors, step.scale, layout, config, group),
        *last_token_discrepancies(step, layout, total_P, config, group),
    ]


def sum_full_loss_shifts(step: Step, layout: Layout, group: Group) -> Tensor:
    """Σ of the shifts of the whole loss before any preconditioner, over all workers, [P]."""
    total_P = sum_shifts(step.factors, layout, step.scale)
    group.all_reduce([total_P])
    return total_P


def last_token_discrepancies(
    step: Step, layout: Layout, total_P: Tensor, config: TrainingConfig, group: Group
) -> list[Discrepancy]:
    """Of the last token's part against autograd's, where it is what is recorded."""
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
    """Of the datums' gradients, added up, against autograd's; both times ``scale``."""
    if config.precision == "float32":
        return compare(found_P, wanted_P, 0.0)
    allowed_P = bfloat16_allowance(found_P, factors, scale, layout, config.accumulate, group)
    missed_P = (found_P - wanted_P).abs_()
    excess_P = missed_P.sub_(allowed_P).clamp_(min=0)
    exactly_P = wanted_P.double()
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
    """How far bfloat16 may put autograd's gradient off, entry by entry; times ``scale``."""
    parts = []
    for name, found in zip(layout.names, found_P.split(layout.sizes), strict=True):
        uses, own = factors[name], Layout({name: layout.shapes[name]})
        size = len(uses[0].delta_NTO) // accumulate
        pieces = [
            slice_datums({name: [use]}, number * size, (number + 1) * size)
            for use in uses
            for number in range(accumulate)
        ]
        whole = len(pieces) * group.size == 1
        sums = [found] if whole else [sum_shifts(p, own, scale) for p in pieces]
        largest = torch.stack([one.abs() for one in sums]).sum(0)
        parts.append(largest * (len(uses) * BFLOAT16_ROUNDING))
    allowed_P = torch.cat(parts)
    group.all_reduce([allowed_P])
    return allowed_P


def compare(found_P: Tensor, wanted_P: Tensor, explained: float) -> Discrepancy:
    error = relative_error(found_P, wanted_P)
    return Discrepancy(error, error - explained)


def rounding_count(config: TrainingConfig) -> int:
    """How often an update rounds at the size of the weights."""
    decoupled = config.optimizer.kind == "adamw" and config.optimizer.weight_decay
    return 3 if decoupled else 1
