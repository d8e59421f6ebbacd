"""The exact contribution of each datum to a step's shift of a bigram's logit.

With ΔU_i and ΔE_i the shifts of the unembedding and the embedding due to datum i,

    contribution of i to ΔM[v, w] = c (ΔU_i,v · Ē_w + Ū_v · ΔE_i,w),

and all contributions add up to ΔM[v, w] (see ``analysis.bigrams.shifts``). The product of the two
changes, ΔU_v · ΔE_w, is split equally between them, which is its Shapley value. Under momentum or
weight decay, a part of ΔU and ΔE is due to no datum of the step; its contribution is the *carry*.

No gradient matrix is formed: row v of a gradient Σ_t δ_t a_tᵀ is Σ_t δ_tv a_t, so its product with
a vector p is Σ_t δ_tv (a_t · p). Contributions of several steps add up to the shift over all of
them.

Shapes: N datum, T position, V token of the vocabulary, D width, K bigram.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.bigrams.layers import EmbeddingNames, EmbeddingPair
from capture.gradients.factors import Factor
from capture.optim.update import ROUNDING

if TYPE_CHECKING:
    from capture.replay.steps import Update

STORAGE_ROUNDING = 4 * ROUNDING
"""Relative rounding of a stored weight: once when its change is added, up to twice for decay."""


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions to one step's shifts of some bigram logits, float64."""

    shift_K: Tensor
    """Change of each logit."""
    datum_KN: Tensor
    """Contribution of each datum of the batch."""
    carry_K: Tensor
    """Contribution of momentum and weight decay, which is due to no datum of the batch."""
    allowed_K: Tensor
    """Largest difference between the shift and the sum of its parts that rounding can explain."""

    @property
    def missed_K(self) -> Tensor:
        """The shift minus all contributions and the carry."""
        return self.shift_K - self.datum_KN.sum(1) - self.carry_K


def find_contributions(
    update: "Update", layers: EmbeddingNames, next_K: Tensor, token_K: Tensor, tolerance: float
) -> Contributions:
    """Contributions of a step's datums to the logits of some bigrams (next token, token).

    ``tolerance`` is the relative error of sums in float32; it multiplies the sum of the absolute
    terms.
    """
    before, after = (EmbeddingPair.of(weights, layers) for weights in (update.before, update.after))
    # ΔM is linear in each side's change if the other side is taken at the mean of both moments.
    sides = [
        (layers.unembedding, next_K, mean_rows(before.embedding_VD, after.embedding_VD, token_K)),
        (layers.embedding, token_K, mean_rows(before.unembedding_VD, after.unembedding_VD, next_K)),
    ]
    shift_K = torch.zeros(len(next_K), dtype=torch.float64, device=next_K.device)
    datum_KN = shift_K.new_zeros(len(next_K), len(update.datum_N))
    carry_K, allowed_K = shift_K.clone(), shift_K.clone()
    for unit, row_K, other_KD in sides:
        probe_KD = other_KD * layers.factor
        now_KD, then_KD = (w[unit][row_K].double() for w in (update.after, update.before))
        shift_K += ((now_KD - then_KD) * probe_KD).sum(1)
        allowed_K += STORAGE_ROUNDING * (now_KD.abs() * probe_KD.abs()).sum(1)
        if update.carry is not None:
            carry_K += (update.carry[unit][row_K] * probe_KD).sum(1)
        if update.preconditioner is not None:
            probe_KD *= update.preconditioner[unit][row_K]
        for factor in (factors := update.factors[unit]):
            datum_KN += update.scale * project_gradient_rows(factor, row_K, probe_KD)
            size_KN = project_gradient_rows(factor.map_tensors(torch.abs), row_K, probe_KD.abs())
            allowed_K += len(factors) * tolerance * abs(update.scale) * size_KN.sum(1)
    return Contributions(shift_K, datum_KN, carry_K, allowed_K)


def mean_rows(before_VD: Tensor, after_VD: Tensor, row_K: Tensor) -> Tensor:
    """Means of these rows over the two moments, float64 [K, D]."""
    return (before_VD[row_K].double() + after_VD[row_K]) / 2


def project_gradient_rows(factor: Factor, row_K: Tensor, probe_KD: Tensor) -> Tensor:
    """Inner product of row ``row_K[k]`` of each datum's gradient with probe k, float64 [K, N]."""
    if factor.kind == "rows":
        # An embedding's gradient has row v at the positions whose input token is v.
        assert factor.token_NT is not None
        weight_NTK = factor.token_NT[..., None] == row_K
        a_NTD = factor.delta_NTO
    else:
        left_NTV, a_NTD = factor.sides
        weight_NTK = left_NTV[..., row_K]
    inner_NTK = a_NTD.double() @ probe_KD.T
    return inner_NTK.mul_(weight_NTK).sum(1).T
