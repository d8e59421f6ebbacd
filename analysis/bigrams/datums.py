"""Which datums shifted a bigram's logit in a step, exactly, without any datum's own shifts.

With ΔU_i and ΔE_i the shifts that datum i is the cause of,

    contribution of i to ΔM[v, w] = c (ΔU_i,v · Ē_w + Ū_v · ΔE_i,w),

and all contributions add up to ΔM[v, w] (see ``analysis.bigrams.shifts``); the product of the two
changes is shared equally between those who made them, which is the Shapley value of this sum of
products. Under momentum or weight decay a part of ΔU and ΔE is no datum's of the step; what it adds
is the *carry*. Of a gradient Σ_t δ_t a_tᵀ row v is Σ_t δ_tv a_t, so that a row times a vector p is
Σ_t δ_tv (a_t · p): no row is ever made. Summed over steps, contributions add up to the shift over
all of them.

Shapes: N datum, T position, V token of the vocabulary, D width, K bigram.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.bigrams.layers import Layers, Pair
from capture.gradients.factors import Factor
from capture.optim.update import ROUNDING
from capture.replay.steps import Update

STORED = 4 * ROUNDING
"""A weight is rounded when its change is added, and once or twice more where it decays."""


@dataclass(frozen=True, eq=False)
class Causes:
    """Whose doing the shifts of some bigrams in a step were, in logits, float64."""

    shift_K: Tensor
    """By which the logits have shifted."""
    datum_KN: Tensor
    """Contribution of each datum of the batch."""
    carry_K: Tensor
    """What no datum of the batch has done: momentum, weight decay."""
    allowed_K: Tensor
    """How far rounding may part a shift from the sum of contributions and carry."""

    @property
    def missed_K(self) -> Tensor:
        """What contributions and carry leave unexplained."""
        return self.shift_K - self.datum_KN.sum(1) - self.carry_K


def find_causes(
    update: Update, layers: Layers, next_K: Tensor, token_K: Tensor, tolerance: float
) -> Causes:
    """``tolerance``: of sums in float32, relative to the sum of the absolute terms."""
    before, after = (Pair.of(weights, layers) for weights in (update.before, update.after))
    sides = [
        (layers.unembedding, next_K, mean_of(before.embedding_VD, after.embedding_VD, token_K)),
        (layers.embedding, token_K, mean_of(before.unembedding_VD, after.unembedding_VD, next_K)),
    ]
    shift_K = torch.zeros(len(next_K), dtype=torch.float64, device=next_K.device)
    datum_KN = shift_K.new_zeros(len(next_K), len(update.datum_N))
    carry_K, allowed_K = shift_K.clone(), shift_K.clone()
    for unit, row_K, other_KD in sides:
        probe_KD = other_KD * layers.factor
        now_KD, then_KD = (w[unit][row_K].double() for w in (update.after, update.before))
        shift_K += ((now_KD - then_KD) * probe_KD).sum(1)
        allowed_K += STORED * (now_KD.abs() * probe_KD.abs()).sum(1)
        if update.carry is not None:
            carry_K += (update.carry[unit][row_K] * probe_KD).sum(1)
        if update.preconditioner is not None:
            probe_KD *= update.preconditioner[unit][row_K]
        for use in (uses := update.factors[unit]):
            datum_KN += update.scale * projected(use, row_K, probe_KD)
            sizes_KN = projected(use.mapped(torch.abs), row_K, probe_KD.abs())
            allowed_K += len(uses) * tolerance * abs(update.scale) * sizes_KN.sum(1)
    return Causes(shift_K, datum_KN, carry_K, allowed_K)


def mean_of(before_VD: Tensor, after_VD: Tensor, row_K: Tensor) -> Tensor:
    """The means of these rows, float64 [K, D]."""
    return (before_VD[row_K].double() + after_VD[row_K]) / 2


def projected(use: Factor, row_K: Tensor, probe_KD: Tensor) -> Tensor:
    """Row k of each datum's gradient by this use, times probe k, float64 [K, N]."""
    if use.kind == "rows":
        assert use.token_NT is not None
        weight_NTK = use.token_NT[..., None] == row_K
        a_NTD = use.delta_NTO
    else:
        left_NTV, a_NTD = use.sides
        weight_NTK = left_NTV[..., row_K]
    inner_NTK = a_NTD.double() @ probe_KD.T
    return inner_NTK.mul_(weight_NTK).sum(1).T
