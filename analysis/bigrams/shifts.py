"""The largest shifts of the bigram logits between two moments, exactly, without ever holding all.

Without its layers a language model still predicts: token w makes token v likely by the logit

    M[v, w] = c · U_v · E_w

with E its embedding, U its unembedding, and c what it multiplies embeddings by. (Positions and the
unembedding's bias are left out: they belong to no pair of tokens.) When U and E become U' and E',

    ΔM[v, w] = c (U'_v · E'_w − U_v · E_w) = c (ΔU_v · Ē_w + Ū_v · ΔE_w),    Ū, Ē: means of the two,

so that no |ΔM[v, w]| exceeds c (‖ΔU_v‖ ‖Ē_w‖ + ‖Ū_v‖ ‖ΔE_w‖). Tokens v and w, ordered by these
norms, are cut into blocks; blocks are computed in float32, the largest bound first, until no bound
reaches the k-th largest shift found. What comes within float32's rounding of it is computed again
in float64 by the first formula, which alone decides. Both bounds hold for any weights; how many
blocks they spare depends on them. A step moves few embeddings and few unembeddings far.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", Zero-Layer
Transformers. The rounding of a dot product: Higham 2002, section 3.1.
Shapes: V token of the vocabulary, D width, R next token v of a block, C token w of it, M candidate,
K bigram.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analysis.bigrams.layers import Pair

BLOCK = 512
"""Tokens on either side of a block."""
ENTRIES_AT_ONCE = 2**14
"""Shifts computed in float64 at a time."""


@dataclass(frozen=True, eq=False)
class Bigrams:
    """Pairs of tokens and the shift of their logit; the largest |shift| first."""

    next_K: np.ndarray
    """v, the token predicted, int64."""
    token_K: np.ndarray
    """w, the token that predicts it, int64."""
    shift_K: np.ndarray
    """float64"""

    def __len__(self) -> int:
        return len(self.shift_K)


def largest_shifts(before: Pair, after: Pair, k: int, token: int | None = None) -> Bigrams:
    """The k largest |ΔM|, of equal ones the lowest v, then the lowest w; what is 0 is left out.

    With ``token``, among the bigrams that have it on either side.
    """
    change = Change(before, after)
    best = Largest(k)
    for next_R, token_C in areas(len(before.embedding_VD), token):
        change.search(next_R, token_C, best)
    return best.kept


def areas(num_tokens: int, token: int | None) -> list[tuple[Tensor, Tensor]]:
    """Which v with which w, no pair twice."""
    all_V = torch.arange(num_tokens)
    if token is None:
        return [(all_V, all_V)]
    others = all_V[all_V != token]
    return [(all_V[[token]], all_V), (others, all_V[[token]])]


def shifts_of(before: Pair, after: Pair, next_M: Tensor, token_M: Tensor) -> Tensor:
    """ΔM of these bigrams, float64 [M]: products of float32 are exact in it."""
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


class Largest:
    """The k largest of the shifts that were added so far."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.kept = Bigrams(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @property
    def least(self) -> float:
        """What a |shift| must reach to be among them; 0 while there are fewer than k."""
        return abs(float(self.kept.shift_K[-1])) if len(self.kept) == self.k else 0.0

    def add(self, next_M: Tensor, token_M: Tensor, shift_M: Tensor) -> None:
        """Bigrams that have not been added before."""
        moved_M = shift_M.numpy() != 0
        more = (found.cpu().numpy()[moved_M] for found in (next_M, token_M, shift_M))
        v_M, w_M, size_M = (
            np.concatenate(pair) for pair in zip(vars(self.kept).values(), more, strict=True)
        )
        order = np.lexsort((w_M, v_M, -np.abs(size_M)))[: self.k]
        self.kept = Bigrams(v_M[order], w_M[order], size_M[order])


class Change:
    """From one moment to another: bounds of the shifts, and the shifts of whole blocks."""

    def __init__(self, before: Pair, after: Pair) -> None:
        self.before, self.after = before, after
        U, E = before.unembedding_VD, before.embedding_VD
        self.moved_VD = after.unembedding_VD - U
        self.mean_VD = (after.unembedding_VD + U) / 2
        self.mean_embedding_VD = (after.embedding_VD + E) * (before.factor / 2)
        self.moved_embedding_VD = (after.embedding_VD - E) * before.factor
        self.rounding = (2 * E.shape[1] + 16) * 2.0**-23
        """Of a shift in float32, and of its bound, relative to the bound; twice what it can be."""
        self.next_norms = norms(self.moved_VD), norms(self.mean_VD)
        self.token_norms = norms(self.mean_embedding_VD), norms(self.moved_embedding_VD)

    def search(self, next_R: Tensor, token_C: Tensor, best: Largest) -> None:
        """Add to ``best`` all bigrams of these v with these w that can be among the largest."""
        device = self.moved_VD.device
        next_R, token_C = next_R.to(device), token_C.to(device)
        blocks_R = next_R[self.next_norms[0][next_R].argsort(descending=True)].split(BLOCK)
        blocks_C = token_C[self.by_movement(token_C)].split(BLOCK)
        bound_B = self.bounds(
            *(torch.stack([norm_V[b].amax() for b in blocks_R]) for norm_V in self.next_norms),
            *(torch.stack([norm_V[b].amax() for b in blocks_C]) for norm_V in self.token_norms),
        ).flatten()
        for place in bound_B.argsort(descending=True).tolist():
            if not float(bound_B[place]) or float(bound_B[place]) < best.least:
                break
            row, column = divmod(place, len(blocks_C))
            self.search_block(blocks_R[row], blocks_C[column], best)

    def by_movement(self, token_C: Tensor) -> Tensor:
        """Places of the tokens, the embedding that moved farthest first, then the longest."""
        longest = self.token_norms[0][token_C].argsort(descending=True)
        return longest[self.token_norms[1][token_C][longest].argsort(descending=True, stable=True)]

    def bounds(self, moved_R: Tensor, mean_R: Tensor, mean_C: Tensor, moved_C: Tensor) -> Tensor:
        """What no |shift| of such norms exceeds, rounding included, [R, C]."""
        bound_RC = torch.outer(moved_R, mean_C).addr_(mean_R, moved_C)
        return bound_RC.mul_(1 + self.rounding)

    def search_block(self, next_R: Tensor, token_C: Tensor, best: Largest) -> None:
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
        # k entries reach the k-th largest found here, less its rounding; so must any other.
        floor = best.least - margin
        if size_RC.numel() > best.k:
            kth = float(size_RC.flatten().topk(best.k, sorted=False).values.min())
            floor = max(floor, kth - 2 * margin)
        row_M, column_M = (size_RC >= floor).nonzero(as_tuple=True)
        next_M, token_M = next_R[row_M], token_C[column_M]
        best.add(next_M, token_M, shifts_of(self.before, self.after, next_M, token_M))

    def block(self, next_R: Tensor, token_C: Tensor) -> Tensor:
        """The shifts in float32, [R, C]."""
        shift_RC = self.moved_VD[next_R] @ self.mean_embedding_VD[token_C].T
        if self.token_norms[1][token_C].any():
            shift_RC.addmm_(self.mean_VD[next_R], self.moved_embedding_VD[token_C].T)
        return shift_RC


def norms(weight_VD: Tensor) -> Tensor:
    """‖row‖, [V]"""
    return torch.linalg.vector_norm(weight_VD, dim=1)
