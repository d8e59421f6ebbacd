"""The matrices of attention heads, whichever way a library stores them.

Known ways: queries, keys and values stacked in one weight (``nn.MultiheadAttention`` and the
study's model, GPT-2), interleaved head by head in one weight (GPT-NeoX, BLOOM), or in weights of
their own (Llama, OPT, Mistral, …; keys and values may be shared by several heads).

Shapes: D width, H head, E width of a head, C widths of all heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STACKED = ("in_proj_weight", "c_attn.weight")
INTERLEAVED = "query_key_value.weight"
INTERLEAVED_IN = ("GPTNeoX", "Bloom")
"""Families whose ``query_key_value`` is interleaved by head; others order it otherwise."""
SEPARATE = tuple(f"{name}_proj.weight" for name in "qkv")
KNOWN_ENDS = (*STACKED, INTERLEAVED, *SEPARATE)


@dataclass(frozen=True, eq=False)
class HeadMatrices:
    """The maps of the heads of one layer: each row of q, k and v reads the stream, o writes it."""

    q_HED: Tensor
    k_HED: Tensor
    v_HED: Tensor
    o_HDE: Tensor

    @property
    def reads_HDD(self) -> Tensor:
        """W_QK = W_Qᵀ W_K of each head: x_t W_QK x_s is the score, up to its scale."""
        return self.q_HED.transpose(1, 2) @ self.k_HED

    @property
    def writes_HDD(self) -> Tensor:
        """W_OV = W_O W_V of each head: what it adds to the stream from the state looked at."""
        return self.o_HDE @ self.v_HED


def head_matrices(
    block: nn.Module, projection: nn.Module | None, num_heads: int
) -> HeadMatrices | None:
    """Return the matrices of a layer's heads, float64; None if they are stored in no known way.

    ``projection``: the module that mixes the heads' outputs.
    """
    named = {name: weight.detach().double() for name, weight in block.named_parameters()}
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    out_DC = weight.detach().double()
    out_DC = out_DC.T if transposed(projection) else out_DC
    found = inputs_of(block, named, num_heads)
    if found is None or out_DC.shape[1] % num_heads:
        return None
    q_HED, k_HED, v_HED = found
    o_HDE = out_DC.unflatten(1, (num_heads, -1)).transpose(0, 1)
    fits = len({x.shape for x in (q_HED, k_HED, v_HED)}) == 1
    fits = fits and o_HDE.shape[2] == v_HED.shape[1] and o_HDE.shape[1] == v_HED.shape[2]
    return HeadMatrices(q_HED, k_HED, v_HED, o_HDE) if fits else None


def inputs_of(
    block: nn.Module, named: dict[str, Tensor], num_heads: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the matrices of queries, keys and values, each [H, E, D]; None if not known."""
    ends = {end: name for name in named for end in KNOWN_ENDS if name.endswith(end)}
    if all(end in ends for end in SEPARATE):
        q_CD, k_CD, v_CD = (named[ends[end]] for end in SEPARATE)
        q_HED = q_CD.unflatten(0, (num_heads, -1))
        width = q_HED.shape[1]
        return q_HED, shared(k_CD, num_heads, width), shared(v_CD, num_heads, width)
    for end in STACKED:
        if end in ends:
            weight = named[ends[end]].T if end.startswith("c_attn") else named[ends[end]]
            if len(weight) % (3 * num_heads):
                return None
            q, k, v = weight.unflatten(0, (3, num_heads, -1)).unbind(0)
            return q, k, v
    family = type(block).__name__
    if INTERLEAVED in ends and family.startswith(INTERLEAVED_IN):
        q, k, v = named[ends[INTERLEAVED]].unflatten(0, (num_heads, 3, -1)).unbind(1)
        return q, k, v
    return None


def shared(weight_CD: Tensor, num_heads: int, width: int) -> Tensor:
    """Return a matrix for each head from one that neighbouring heads share, [H, E, D]."""
    own_GED = weight_CD.unflatten(0, (-1, width))
    return torch.repeat_interleave(own_GED, max(1, num_heads // len(own_GED)), 0)


def transposed(module: nn.Module | None) -> bool:
    """Whether a module stores its weight [inputs, outputs], as GPT-2's ``Conv1D`` does."""
    return type(module).__name__ == "Conv1D"
