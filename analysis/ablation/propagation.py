"""A forward pass that keeps every intermediate state, and one that resumes from an edited state.

``trace`` runs once for some datums. ``propagate`` resumes from a trace in which some entries of one
state are replaced, and computes only what the change can reach. It skips positions before the first
change, because attention is causal, and, if only position-wise operations follow, every position
without a change. Changing one input entry of a linear layer adds one column of the weight to the
layer's output, which takes no matrix product.

Shapes: N datum, T position, S position from the first change on, C entry of a state, B changed
entry, D width, F hidden width of the MLP, Q (subject, datum) pair, M position of any pair.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.ablation.subjects import Point, SubjectSite, layers_of
from capture.models.transformer import LanguageModel, Layer, SelfAttention

POSITIONWISE = ("heads_out", "attention_out", "mlp_in", "before_relu", "after_relu", "mlp_out")
"""Points after which a layer treats each position independently."""
POSITIONS_AT_ONCE = 800
"""Hidden states propagated at once on a CPU, see ``positions_at_once``."""

States = dict[Point, Tensor]


@dataclass(frozen=True, eq=False)
class Trace:
    """The states of an ordinary forward pass of some datums, without dropout."""

    layers: list[States]
    """Every intermediate state of each layer, [N, T, C]."""
    hidden_NTD: Tensor
    """Output of the last layer."""

    def at(self, site: SubjectSite) -> Tensor:
        """Return one intermediate state, [N, T, C]."""
        return self.layers[site.layer][site.point]

    def after(self, layer: int) -> Tensor:
        """Return the output of a layer, [N, T, D]."""
        last = layer + 1 == len(self.layers)
        return self.hidden_NTD if last else self.layers[layer + 1]["attention_in"]


def trace(model: LanguageModel, token_NT: np.ndarray) -> Trace:
    """Run a forward pass and keep every intermediate state."""
    token = torch.from_numpy(token_NT).long().to(model.decoder.weight.device)
    x_NTD = embedded(model, token)
    found = []
    for layer in layers_of(model):
        states, x_NTD = layer_states(layer, x_NTD)
        found.append(states)
    return Trace(found, x_NTD)


def embedded(model: LanguageModel, token_NT: Tensor) -> Tensor:
    """Return the input of the first layer, [N, T, D]."""
    scale = model.config.width**0.5
    return model.encoder(token_NT) * scale + model.positions_TD[: token_NT.shape[1]]


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


@dataclass(frozen=True, eq=False)
class Edit:
    """Replacement of entries of one state, for pairs of a subject and a traced datum."""

    site: SubjectSite
    subject_Q: Tensor
    """Index into the list of subjects."""
    row_Q: Tensor
    """Index into the traced datums."""
    entry_QB: Tensor
    """Replaced entries."""
    new_QTB: Tensor
    """Their new values."""
    change_QTB: Tensor
    """Resulting change of the next operation's input."""
    first_Q: Tensor
    """First position with a change."""
    num_reached_Q: Tensor
    """Number of positions whose last hidden state can change."""

    @classmethod
    def of(
        cls,
        found: Trace,
        site: SubjectSite,
        subject_Q: Tensor,
        row_Q: Tensor,
        entry_QB: Tensor,
        new_QTB: Tensor,
    ) -> "Edit":
        """Build an edit from the pairs for which anything changes, sorted by first change."""
        old = entries(found.at(site), row_Q, entry_QB)
        relu = site.point == "before_relu"
        # A change that stays below zero before the ReLU is no change after it.
        change = F.relu(new_QTB) - F.relu(old) if relu else new_QTB - old
        changed_QT = (change != 0).any(2)
        first_Q = changed_QT.int().argmax(1)
        in_place = site.layer + 1 == len(found.layers) and site.point in POSITIONWISE
        num_reached_Q = changed_QT.sum(1) if in_place else changed_QT.shape[1] - first_Q
        # A batch is propagated from its earliest change, so pairs of similar first position share
        # a batch.
        order = first_Q.argsort(stable=True)
        order = order[changed_QT.any(1)[order]]
        parts = (subject_Q, row_Q, entry_QB, new_QTB, change, first_Q, num_reached_Q)
        return cls(site, *(part[order] for part in parts))

    def batches(self) -> Iterator["Edit"]:
        """Split into edits that reach about ``positions_at_once`` hidden states each."""
        parts = [part for name, part in vars(self).items() if name != "site"]
        most = positions_at_once(self.row_Q.device)
        sizes = (self.num_reached_Q.cumsum(0) // most).bincount().tolist()
        for pieces in zip(*(part.split(sizes) for part in parts), strict=True):
            if len(pieces[0]):
                yield Edit(self.site, *pieces)


def positions_at_once(device: torch.device) -> int:
    """Return how many hidden states to propagate at once.

    On a CPU the number is small enough for the states to stay in its caches.
    """
    return POSITIONS_AT_ONCE if device.type == "cpu" else 100 * POSITIONS_AT_ONCE


class ReachedStates(NamedTuple):
    """The last hidden states that an edit can change."""

    pair_M: Tensor
    """Index into the pairs of the edit."""
    position_M: Tensor
    hidden_MD: Tensor


def entries(
    state_NTC: Tensor, row_Q: Tensor, entry_QB: Tensor, position_QT: Tensor | None = None
) -> Tensor:
    """Gather entries of a state for some rows, [Q, T, B].

    Without ``position_QT``, entry t of the result comes from position t.
    """
    if position_QT is None:
        position_QT = torch.arange(state_NTC.shape[1], device=row_Q.device)[None]
    return state_NTC[row_Q[:, None, None], position_QT[:, :, None], entry_QB[:, None, :]]


def propagate(model: LanguageModel, found: Trace, edit: Edit) -> ReachedStates:
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


def through_attention(layer: Layer, found: Trace, edit: Edit, start: int) -> Tensor:
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


def positionwise(layer: Layer, found: Trace, edit: Edit) -> ReachedStates:
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
