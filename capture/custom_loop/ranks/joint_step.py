"""Make one step of what the ranks saw: its loss, its clip factor, its gradient norm.

Each rank computes the loss of its own datums, and the wrapper averages gradients over ranks. So the
step's loss is the mean of the ranks' losses, and a datum's share is 1 / size of its share in the
loss of its rank.

The loop may have multiplied all gradients by one number c (clipping). With the given gradient ĝ,
the same on all ranks, and the sum S_r of the gradients of rank r's datums, ĝ = c · Σ_r S_r. So
c = ⟨ĝ, ĝ⟩ / Σ_r ⟨ĝ, S_r⟩, for which the ranks exchange one number each.

Shapes: P all captured parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capture.custom_loop.causes import DROPPED, require_seen
from capture.custom_loop.passes.forward_passes import ForwardPass
from capture.custom_loop.ranks.agreement import Ranks, Values
from capture.custom_loop.ranks.step_datums import claims_of
from capture.custom_loop.step_inputs import StepInputs, StepPosition, divergence_error
from capture.custom_loop.sums import within_rounding
from capture.custom_loop.update import ONE_TOLERANCE, gradient_multiplier
from capture.engine.audit import bfloat16_allowance
from capture.errors import AuditError, RunError
from capture.gradients.dense import sum_shifts
from capture.gradients.layout import Layout
from capture.process_group import Group


@dataclass(frozen=True)
class ReadStep:
    """What a rank has read of a step, and tells the others of it."""

    inputs: StepInputs
    values: Values
    passes: Sequence[ForwardPass]

    @classmethod
    def of(cls, inputs: StepInputs, passes: Sequence[ForwardPass], num_ranks: int) -> "ReadStep":
        claims = claims_of(passes)
        if num_ranks == 1:
            return cls(inputs, {"claims": claims}, passes)
        given_P = torch.cat([grad.reshape(-1) for grad in inputs.grads.values()])
        values = {
            "claims": claims,
            "unused": [name for name in inputs.grads if name not in inputs.used],
            "loss": inputs.loss,
            "product": inputs.sums.product,
            "gradients": bit_sum(given_P),
            "weights": bit_sum(inputs.before_P),
        }
        return cls(inputs, values, passes)


def bit_sum(x_P: Tensor) -> int:
    """Return the sum of the bit patterns of float32 numbers; other numbers have another sum."""
    return int(x_P.view(torch.int32).sum(dtype=torch.int64))


def join_ranks(
    inputs: StepInputs, found: Sequence[Values], ranks: Ranks, position: StepPosition
) -> StepInputs:
    """Return a step's inputs with loss, clip factor and gradient norm of all ranks together.

    ``found``: the values of every rank. Raises, on all ranks alike, ``RunError`` or ``AuditError``
    if the ranks differ in gradients or weights, ``UnitError`` for a gradient without a cause on any
    rank.
    """
    if ranks.size == 1:
        return inputs
    require_equal(found, position.where)
    unused = set(inputs.grads).intersection(*(own["unused"] for own in found))
    used = inputs.grads.keys() - unused
    require_seen(inputs.expected.units, used, position.step)
    clip = joint_multiplier(inputs, math.fsum(own["product"] for own in found), ranks.group)
    if not math.isfinite(clip):
        raise divergence_error(position)
    loss = math.fsum(own["loss"] for own in found) / ranks.size
    norm = inputs.gradient_norm / abs(clip) if clip else 0.0
    return replace(inputs, loss=loss, clip=clip, gradient_norm=norm)


def joint_multiplier(inputs: StepInputs, product: float, group: Group) -> float:
    """Return the number by which all gradients were multiplied; ``product``: Σ_r ⟨ĝ, S_r⟩."""
    if inputs.training.precision == "float32":
        found = inputs.sums.size / product if product else 1.0
        return 1.0 if abs(found - 1) < ONE_TOLERANCE else found
    layout = Layout.of(inputs.expected.units)
    given_P = layout.flatten(inputs.grads)
    # Entries were rounded one by one, so that the number must be compatible with all of them.
    summed_P = sum_shifts(inputs.factors, layout, 1.0)
    group.all_reduce([summed_P])
    pieces = inputs.training.accumulate
    rounding_P = bfloat16_allowance(summed_P, inputs.factors, 1.0, layout, pieces, group)
    found = gradient_multiplier(given_P, summed_P)
    return within_rounding(found, given_P, summed_P, rounding_P)


def require_equal(found: Sequence[Values], where: str) -> None:
    """Raise an error if a rank was given other gradients, or has other weights, than rank 0."""
    for rank, own in enumerate(found):
        if own["weights"] != found[0]["weights"]:
            problem = f"the weights of rank {rank} differ from those of rank 0"
            raise AuditError(where, problem, f"Start all ranks from the same weights. {DROPPED}")
        if own["gradients"] != found[0]["gradients"]:
            problem = f"the gradients of rank {rank} differ from those of rank 0: not averaged"
            remedy = "Leave no_sync() for the last backward pass of each step"
            raise RunError(where, problem, f"{remedy}. {DROPPED}")


def all_skip(found: Sequence[Values], where: str) -> bool:
    """Return whether the optimizer skips the step; raises ``RunError`` if on some ranks only."""
    skipping = {"claims" not in own for own in found}
    if len(skipping) > 1:
        raise RunError(where, "is skipped by some ranks only (infinite gradients)", DROPPED)
    return skipping.pop()
