"""Datums that an intervention leaves out: their targets are marked, so that their loss is 0.

They keep their slots, dropout masks and places in the order, and the mean loss still divides by
their number. So all other datums have the gradients that they have in the untouched run, as long as
the weights are the same.

Shapes: D training datum, N slot, T token, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.engine.step_plan import PlannedStep, StepPlan

LEFT_OUT = -100
"""Target of a datum that is left out. torch's cross-entropy ignores it unless told otherwise."""


def batch_of(
    plan: StepPlan, token_DT: Tensor, target_DT: Tensor, planned: PlannedStep
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a step's batch, [N, T], from those of all training datums."""
    datum_N = torch.from_numpy(planned.datum_N).to(token_DT.device)
    return token_DT[datum_N], without_left_out(plan, target_DT[datum_N], planned)


def without_left_out(plan: StepPlan, target_NT: Tensor, planned: PlannedStep) -> Tensor:
    """Return the targets of a step's batch, with ``LEFT_OUT`` for datums that are left out."""
    left_out = plan.left_out(planned)
    if left_out is None:
        return target_NT
    target_NT = target_NT.clone()
    target_NT[torch.from_numpy(left_out).to(target_NT.device)] = LEFT_OUT
    return target_NT


def share_of_loss(logit_NTV: Tensor, target_NT: Tensor, positions: int) -> Tensor:
    """Return the share of some slots in the mean loss over ``positions`` positions.

    ``positions`` counts datums that are left out, too.
    """
    logit_PV, target_P = logit_NTV.flatten(0, 1), target_NT.flatten()
    if bool((target_P == LEFT_OUT).any()):
        return F.cross_entropy(logit_PV, target_P, reduction="sum") / positions
    # From these slots' mean to their share.
    return F.cross_entropy(logit_PV, target_P) * (len(target_P) / positions)
