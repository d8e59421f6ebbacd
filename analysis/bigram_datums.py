"""Which datums shifted a bigram's logit in a step, exactly, without any datum's own shifts.

With ΔU_i and ΔE_i the shifts that datum i is the cause of,

    contribution of i to ΔM[v, w] = c (ΔU_i,v · Ē_w + Ū_v · ΔE_i,w),

and all contributions add up to ΔM[v, w] (see ``analysis.bigram_shifts``); the product of the two
changes is shared equally between those who made them, which is the Shapley value of this sum of
products. Of a gradient Σ_t δ_t a_tᵀ row v is Σ_t δ_tv a_t, so that a row times a vector p is
Σ_t δ_tv (a_t · p): no row is ever made. Summed over steps, contributions add up to the shift over
all of them.

Shapes: N datum, T position, V token of the vocabulary, D width, K bigram.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.bigram_layers import Layers, Pair
from capture.factors import Factor
from capture.retaking import Update
from capture.update import ROUNDING


@dataclass(frozen=True, eq=False)
class Causes:
    """Whose doing the shifts of some bigrams in a step were, in logits, float64."""

    shift_K: Tensor
    """By which the logits have shifted."""
    datum_KN: Tensor
    """Contribution of each datum of the batch."""
    allowed_K: Tensor
    """How far rounding may part a shift from the sum of its contributions."""

    @property
    def missed_K(self) -> Tensor:
        """What the contributions leave unexplained."""
        return self.shift_K - self.datum_KN.sum(1)


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
    datum_KN, allowed_K = shift_K.new_zeros(len(next_K), len(update.datum_N)), shift_K.clone()
    for unit, row_K, other_KD in sides:
        probe_KD = other_KD * layers.factor
        now_KD, then_KD = (w[unit][row_K].double() for w in (update.after, update.before))
        shift_K += ((now_KD - then_KD) * probe_KD).sum(1)
        # A weight is stored rounded, after its change was: twice half a unit in the last place.
        allowed_K += 2 * ROUNDING * (now_KD.abs() * probe_KD.abs()).sum(1)
        for use in update.factors[unit]:
            datum_KN += update.scale * projected(use, row_K, probe_KD)
            sizes = projected(use.mapped(torch.abs), row_K, probe_KD.abs()).sum(1)
            allowed_K += tolerance * abs(update.scale) * sizes
    return Causes(shift_K, datum_KN, allowed_K)


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
