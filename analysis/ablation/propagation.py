"""A forward pass that keeps every intermediate state, and one that resumes from an edited state.

``trace`` runs once for some datums. ``propagate`` resumes from a trace in which some entries of one
state are replaced, and computes only what the change can reach. It skips positions before the first
change, because attention is causal, and, if only position-wise operations follow, every position
without a change. Changing one input entry of a linear layer adds one column of the weight to the
layer's output, which takes no matrix product.

Shapes: N datum, T position, S position from the first change on, C entry of a state, B changed
entry, D width, F hidden width of the MLP, Q (subject, datum) pair, M position of any pair.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.ablation.edits import Edit, ReachedStates
from analysis.ablation.subjects import Point, SubjectSite, layers_of
from capture.models.transformer import LanguageModel, Layer, SelfAttention

POSITIONWISE = ("heads_out", "attention_out", "mlp_in", "before_relu", "after_relu", "mlp_out")
"""Points after which a layer treats each position independently."""
POSITIONS_AT_ONCE = 800
"""Hidden states propagated at once on a CPU."""

States = dict[Point, Tensor]


@dataclass(frozen=True, eq=False)
class Trace:
    """The states of an ordinary forward pass of some datums, without dropout."""

    layers: list[States]
    """Every intermediate state of each layer, [N, T, C]."""
    hidden_NTD: Tensor
    """Output of the last layer."""

    @property
    def positions_at_once(self) -> int:
        """Number of hidden states to propagate at once.

        On a CPU the number is small enough for the states to stay in its caches.
        """
        on_cpu = self.hidden_NTD.device.type == "cpu"
        return POSITIONS_AT_ONCE if on_cpu else 100 * POSITIONS_AT_ONCE

    def at(self, site: SubjectSite) -> Tensor:
        """Return one intermediate state, [N, T, C]."""
        return self.layers[site.layer][site.point]

    def effect(self, site: SubjectSite, old: Tensor, new: Tensor) -> Tensor:
        """Return the change of the next operation's input that replacing entries makes."""
        # A change that stays below zero before the ReLU is no change after it.
        return F.relu(new) - F.relu(old) if site.point == "before_relu" else new - old

    def stays_in_place(self, site: SubjectSite) -> bool:
        """Return whether a change reaches the unembedding at its own position alone."""
        return site.layer + 1 == len(self.layers) and site.point in POSITIONWISE

    def after(self, layer: int) -> Tensor:
        """Return the output of a layer, [N, T, D]."""
        last = layer + 1 == len(self.layers)
        return self.hidden_NTD if last else self.layers[layer + 1]["attention_in"]


def trace(model: LanguageModel, token_NT: np.ndarray) -> Trace:
    """Run a forward pass and keep every intermediate state."""
    token = torch.from_numpy(token_NT).long().to(model.decoder.weight.device)
    x_NTD = model.embed(token)
    found = []
    for layer in layers_of(model):
        states, x_NTD = layer_states(layer, x_NTD)
        found.append(states)
    return Trace(found, x_NTD)


def layer_states(layer: Layer, x_NTD: Tensor) -> tuple[States, Tensor]:
    """Return every state of a layer and the layer's output, [N, T, D]."""
    attention = layer.self_attn
    qkv = F.linear(x_NTD, attention.in_proj_weight, attention.in_proj_bias)
    heads_out = attend(attention, qkv, 0)
    attention_out = attention.out_proj(heads_out)
    mlp_in = layer.norm1(x_NTD + attention_out)
    states: States = {
        "attention_in": x_NTD,
        "qkv": qkv,
        "heads_out": heads_out,
        "attention_out": attention_out,
    }
    if not layer.has_mlp:
        return states, mlp_in
    before_relu = layer.linear1(mlp_in)
    after_relu = F.relu(before_relu)
    mlp_out = layer.linear2(after_relu)
    states |= {
        "mlp_in": mlp_in,
        "before_relu": before_relu,
        "after_relu": after_relu,
        "mlp_out": mlp_out,
    }
    return states, layer.norm2(mlp_in + mlp_out)


def attend(attention: SelfAttention, qkv_NTC: Tensor, start: int) -> Tensor:
    """Return the heads' outputs side by side, for positions from ``start`` on, [N, S, D]."""
    N, T, C = qkv_NTC.shape
    D = C // 3
    # Axes after the permutation: q/k/v, datum, head, position, entry of the head.
    qkv = qkv_NTC.view(N, T, 3, attention.heads, D // attention.heads).permute(2, 0, 3, 1, 4)
    q_NHSE, k_NHTE, v_NHTE = qkv[0, :, :, start:], qkv[1], qkv[2]
    seen_ST = torch.ones(T, T, dtype=torch.bool, device=qkv.device).tril()[start:]
    heads_out = F.scaled_dot_product_attention(q_NHSE, k_NHTE, v_NHTE, attn_mask=seen_ST)
    return heads_out.transpose(1, 2).reshape(N, T - start, D)


def mlp(layer: Layer, x_MD: Tensor) -> Tensor:
    """Return a layer's output, given the input of its first LayerNorm, [M, D]."""
    x_MD = layer.norm1(x_MD)
    if not layer.has_mlp:
        return x_MD
    return layer.norm2(x_MD + layer.linear2(F.relu(layer.linear1(x_MD))))


# --- resuming from an edited state ----------------------------------------------------------------


def propagate(model: LanguageModel, found: Trace, edit: Edit[SubjectSite]) -> ReachedStates:
    """Return the last hidden states at every position that the edit can reach."""
    layers = layers_of(model)
    layer, later = layers[edit.site.layer], layers[edit.site.layer + 1 :]
    start = int(edit.first_Q.min())
    if edit.site.point in POSITIONWISE:
        reached = positionwise(layer, found, edit)
        if not later:
            return reached
        x_QSD = found.after(edit.site.layer)[edit.row_Q, start:]
        x_QSD[reached.pair_M, reached.position_M - start] = reached.hidden_MD
    else:
        x_QSD = through_attention(layer, found, edit, start)
    for number, layer in enumerate(later, edit.site.layer + 1):
        x_QSD = rest_of_layer(layer, found.layers[number]["qkv"][edit.row_Q, :start], x_QSD)
    # The batch starts at its earliest change; each pair keeps only positions from its own on.
    position_S = torch.arange(start, found.hidden_NTD.shape[1], device=edit.row_Q.device)
    pair_M, offset_M = (position_S >= edit.first_Q[:, None]).nonzero(as_tuple=True)
    return ReachedStates(pair_M, offset_M + start, x_QSD[pair_M, offset_M])


def rest_of_layer(layer: Layer, before: Tensor, x_QSD: Tensor) -> Tensor:
    """Return a layer's output from some position on, [Q, S, D].

    ``before`` holds the unchanged qkv of the positions before it, [Q, T − S, 3D].
    """
    attention = layer.self_attn
    qkv = F.linear(x_QSD, attention.in_proj_weight, attention.in_proj_bias)
    start = before.shape[1]
    heads_out = attend(attention, torch.cat([before, qkv], 1) if start else qkv, start)
    return mlp(layer, x_QSD + attention.out_proj(heads_out))


def through_attention(layer: Layer, found: Trace, edit: Edit[SubjectSite], start: int) -> Tensor:
    """Return the layer's output from ``start`` on, for an edit of queries, keys or values."""
    attention, states = layer.self_attn, found.layers[edit.site.layer]
    qkv = states["qkv"][edit.row_Q]
    if edit.site.point == "qkv":
        entry_QTB = edit.entry_QB[:, None, :].expand_as(edit.new_QTB)
        qkv.scatter_(2, entry_QTB, edit.new_QTB)
    else:
        qkv += edit.change_QTB @ attention.in_proj_weight.T[edit.entry_QB]
    attention_out = attention.out_proj(attend(attention, qkv, start))
    return mlp(layer, states["attention_in"][edit.row_Q, start:] + attention_out)


def positionwise(layer: Layer, found: Trace, edit: Edit[SubjectSite]) -> ReachedStates:
    """Return the layer's output at the changed positions, for an edit after attention."""
    states, point = found.layers[edit.site.layer], edit.site.point
    pair_M, position_M = (edit.change_QTB != 0).any(2).nonzero(as_tuple=True)
    row_M, entry_MB = edit.row_Q[pair_M], edit.entry_QB[pair_M]
    change_MB = edit.change_QTB[pair_M, position_M]

    def at(name: Point) -> Tensor:
        return states[name][row_M, position_M]

    if point == "heads_out":
        heads_MD = at("heads_out").scatter_(1, entry_MB, edit.new_QTB[pair_M, position_M])
        out_MD = mlp(layer, at("attention_in") + layer.self_attn.out_proj(heads_MD))
    elif point == "attention_out":
        sum_MD = at("attention_in") + at("attention_out").scatter_add_(1, entry_MB, change_MB)
        out_MD = mlp(layer, sum_MD)
    elif point == "mlp_in":
        # Zeroing a column of linear1 leaves the residual path around the MLP as it is.
        update_MF = one_entry_update(layer.linear1.weight, entry_MB, change_MB)
        after_relu_MF = F.relu(at("before_relu") + update_MF)
        out_MD = layer.norm2(at("mlp_in") + layer.linear2(after_relu_MF))
    elif point == "mlp_out":
        sum_MD = at("mlp_in") + at("mlp_out").scatter_add_(1, entry_MB, change_MB)
        out_MD = layer.norm2(sum_MD)
    else:  # before_relu and after_relu: ``change_QTB`` is the change after the ReLU for both
        change_MD = one_entry_update(layer.linear2.weight, entry_MB, change_MB)
        out_MD = layer.norm2(at("mlp_in") + at("mlp_out") + change_MD)
    return ReachedStates(pair_M, position_M, out_MD)


def one_entry_update(weight: Tensor, entry_M1: Tensor, change_M1: Tensor) -> Tensor:
    """Return what a change of one input entry adds to a linear layer's output, [M, O]."""
    assert entry_M1.shape[1] == 1
    return F.embedding(entry_M1[:, 0], weight.T.contiguous()) * change_M1
