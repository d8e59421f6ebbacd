"""Exact search for the largest shifts of bigram logits between two steps, without the full matrix.

Without its layers, a language model predicts the next token v from token w alone by the logit

    M[v, w] = c · U_v · E_w

with embedding E, unembedding U and the factor c by which the model scales embeddings. (Positions
and the bias of the unembedding are left out, because they depend on no pair of tokens.) When U and
E become U' and E',

    ΔM[v, w] = c (U'_v · E'_w − U_v · E_w) = c (ΔU_v · Ē_w + Ū_v · ΔE_w),    Ū, Ē: means of the two,

so |ΔM[v, w]| ≤ c (‖ΔU_v‖ ‖Ē_w‖ + ‖Ū_v‖ ‖ΔE_w‖). Tokens v and w are sorted by these norms and cut
into blocks. Blocks are computed in float32, largest bound first, until no bound reaches the k-th
largest shift found. Entries within float32 rounding of it are computed again in float64 by the
first formula, which alone decides. The bounds hold for any weights. How many blocks they exclude
depends on the weights; one step moves few rows of U and E far, so it is most of them.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", Zero-Layer
Transformers. Rounding of a dot product: Higham 2002, section 3.1.

Shapes: V token of the vocabulary, D width, R next token v of a block, C token w of a block,
M candidate, K bigram, B block.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.bigrams.layers import EmbeddingPair

BLOCK = 512
"""Number of tokens on each side of a block."""
ENTRIES_AT_ONCE = 2**14
"""Shifts computed in float64 at a time."""


@dataclass(frozen=True, eq=False)
class BigramShifts:
    """Pairs of tokens and the shifts of their logits, largest |shift| first."""

    next_K: np.ndarray
    """v, the predicted token, int64."""
    token_K: np.ndarray
    """w, the input token, int64."""
    shift_K: np.ndarray
    """ΔM[v, w], float64."""

    def __len__(self) -> int:
        return len(self.shift_K)


def largest_shifts(
    before: EmbeddingPair, after: EmbeddingPair, k: int, token: int | None = None
) -> BigramShifts:
    """Return the k largest |ΔM| > 0; ties go to the lowest v, then to the lowest w.

    With ``token``, only bigrams with this token on either side.
    """
    change = LogitChange(before, after)
    best = TopShifts(k)
    for next_R, token_C in search_areas(len(before.embedding_VD), token):
        change.search(next_R, token_C, best)
    return best.kept


def search_areas(num_tokens: int, token: int | None) -> list[tuple[Tensor, Tensor]]:
    """Pairs of index sets (v, w) that cover each bigram to be searched once."""
    all_V = torch.arange(num_tokens)
    if token is None:
        return [(all_V, all_V)]
    others = all_V[all_V != token]
    return [(all_V[[token]], all_V), (others, all_V[[token]])]


def shifts_of(
    before: EmbeddingPair, after: EmbeddingPair, next_M: Tensor, token_M: Tensor
) -> Tensor:
    """ΔM of these bigrams, float64 [M]. Products of two float32 numbers are exact in float64."""
    found = [torch.zeros(0, dtype=torch.float64)]
    for next_m, token_m in zip(
        next_M.split(ENTRIES_AT_ONCE), token_M.split(ENTRIES_AT_ONCE), strict=True
    ):
        now_MD, then_MD = (
            pair.unembedding_VD[next_m].double() * pair.embedding_VD[token_m]
            for pair in (after, before)
        )
        found.append((now_MD - then_MD).sum(1).cpu())
    return torch.cat(found) * before.factor


class TopShifts:
    """The k largest shifts among all that were added."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.kept = BigramShifts(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @property
    def least(self) -> float:
        """Least |shift| that can be among them; 0 while there are fewer than k."""
        return abs(float(self.kept.shift_K[-1])) if len(self.kept) == self.k else 0.0

    def add(self, next_M: Tensor, token_M: Tensor, shift_M: Tensor) -> None:
        """Add bigrams; none may be added twice. Shifts of 0 are dropped."""
        moved_M = shift_M.numpy() != 0
        more = (found.cpu().numpy()[moved_M] for found in (next_M, token_M, shift_M))
        v_M, w_M, size_M = (
            np.concatenate(pair) for pair in zip(vars(self.kept).values(), more, strict=True)
        )
        order = np.lexsort((w_M, v_M, -np.abs(size_M)))[: self.k]
        self.kept = BigramShifts(v_M[order], w_M[order], size_M[order])


class LogitChange:
    """The change between two steps: bounds of the shifts, and the shifts of blocks."""

    def __init__(self, before: EmbeddingPair, after: EmbeddingPair) -> None:
        self.before, self.after = before, after
        U, E = before.unembedding_VD, before.embedding_VD
        self.moved_VD = after.unembedding_VD - U
        self.mean_VD = (after.unembedding_VD + U) / 2
        self.mean_embedding_VD = (after.embedding_VD + E) * (before.factor / 2)
        self.moved_embedding_VD = (after.embedding_VD - E) * before.factor
        self.rounding = (2 * E.shape[1] + 16) * 2.0**-23
        """Rounding of a float32 shift and of its bound, relative to the bound: twice the worst."""
        self.next_norms = row_norms(self.moved_VD), row_norms(self.mean_VD)
        self.token_norms = row_norms(self.mean_embedding_VD), row_norms(self.moved_embedding_VD)

    def search(self, next_R: Tensor, token_C: Tensor, best: TopShifts) -> None:
        """Add to ``best`` all bigrams of these v and w that can be among the largest."""
        device = self.moved_VD.device
        next_R, token_C = next_R.to(device), token_C.to(device)
        blocks_R = next_R[self.next_norms[0][next_R].argsort(descending=True)].split(BLOCK)
        blocks_C = token_C[self.by_movement(token_C)].split(BLOCK)
        bound_B = self.bounds(
            *(torch.stack([norm_V[b].amax() for b in blocks_R]) for norm_V in self.next_norms),
            *(torch.stack([norm_V[b].amax() for b in blocks_C]) for norm_V in self.token_norms),
        ).flatten()
        for block in bound_B.argsort(descending=True).tolist():
            # All later bounds are smaller, and ``best.least`` only grows.
            if not float(bound_B[block]) or float(bound_B[block]) < best.least:
                break
            row, column = divmod(block, len(blocks_C))
            self.search_block(blocks_R[row], blocks_C[column], best)

    def by_movement(self, token_C: Tensor) -> Tensor:
        """Order of the tokens: largest ‖ΔE‖ first, ties by largest ‖Ē‖."""
        longest = self.token_norms[0][token_C].argsort(descending=True)
        return longest[self.token_norms[1][token_C][longest].argsort(descending=True, stable=True)]

    def bounds(self, moved_R: Tensor, mean_R: Tensor, mean_C: Tensor, moved_C: Tensor) -> Tensor:
        """Upper bounds of |shift| for these norms, rounding included, [R, C]."""
        bound_RC = torch.outer(moved_R, mean_C).addr_(mean_R, moved_C)
        return bound_RC.mul_(1 + self.rounding)

    def search_block(self, next_R: Tensor, token_C: Tensor, best: TopShifts) -> None:
        """Add to ``best`` the bigrams of one block that can be among the largest."""
        bound_RC = self.bounds(
            *(norm_V[next_R] for norm_V in self.next_norms),
            *(norm_V[token_C] for norm_V in self.token_norms),
        )
        next_R = next_R[bound_RC.amax(1) >= best.least]
        token_C = token_C[bound_RC.amax(0) >= best.least]
        if not len(next_R) or not len(token_C):
            return
        margin = float(bound_RC.max()) * self.rounding
        size_RC = self.block(next_R, token_C).abs_()
        if float(size_RC.max()) + margin < best.least:
            return
        # At least k entries of this block exceed its k-th largest value, less the rounding of a
        # float32 shift. An entry must reach that bound too; its own rounding is the second margin.
        floor = best.least - margin
        if size_RC.numel() > best.k:
            kth = float(size_RC.flatten().topk(best.k, sorted=False).values.min())
            floor = max(floor, kth - 2 * margin)
        row_M, column_M = (size_RC >= floor).nonzero(as_tuple=True)
        next_M, token_M = next_R[row_M], token_C[column_M]
        best.add(next_M, token_M, shifts_of(self.before, self.after, next_M, token_M))

    def block(self, next_R: Tensor, token_C: Tensor) -> Tensor:
        """The shifts of a block in float32, [R, C]."""
        shift_RC = self.moved_VD[next_R] @ self.mean_embedding_VD[token_C].T
        if self.token_norms[1][token_C].any():
            shift_RC.addmm_(self.mean_VD[next_R], self.moved_embedding_VD[token_C].T)
        return shift_RC


def row_norms(weight_VD: Tensor) -> Tensor:
    """Norm of each row, [V]."""
    return torch.linalg.vector_norm(weight_VD, dim=1)
