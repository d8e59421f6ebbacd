"""A forward pass that keeps every inner state, and one that goes on from an inner state.

The first is done once for some datums; the second carries on from it with some entries changed, and
does only what the change can reach. What it leaves out is exactly what cannot differ: positions
before the first change (attention looks back only), and, where nothing but position-wise steps
follow, all positions without a change. An update of one entry reaches the next state as one column
of the weight, not as a matrix product.

Shapes: N datum, T position, S position from the first change on, C entry of a state, B changed
entry, D width, F hidden width of the MLP, Q pair of subject and datum, M position of any pair.
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

POSITIONWISE = ("mixed", "attended", "mlp_in", "before_relu", "inner", "mlp_out")
"""Points after which a layer treats each position by itself."""
POSITIONS_AT_ONCE = 800

States = dict[Point, Tensor]


@dataclass(frozen=True, eq=False)
class Trace:
    """An ordinary forward pass of some datums, nothing dropped."""

    layers: list[States]
    """Every inner state, [N, T, C]."""
    hidden_NTD: Tensor
    """After the last layer."""

    def at(self, place: SubjectSite) -> Tensor:
        """One inner state, [N, T, C]."""
        return self.layers[place.layer][place.point]

    def after(self, layer: int) -> Tensor:
        """What leaves a layer, [N, T, D]."""
        last = layer + 1 == len(self.layers)
        return self.hidden_NTD if last else self.layers[layer + 1]["attention_in"]


def trace(model: LanguageModel, token_NT: np.ndarray) -> Trace:
    """Carry datums through the model and keep what is on the way."""
    token = torch.from_numpy(token_NT).long().to(model.decoder.weight.device)
    x_NTD = embedded(model, token)
    found = []
    for layer in layers_of(model):
        states, x_NTD = layer_states(layer, x_NTD)
        found.append(states)
    return Trace(found, x_NTD)


def embedded(model: LanguageModel, token_NT: Tensor) -> Tensor:
    """What enters the first layer, [N, T, D]."""
    scale = model.config.width**0.5
    return model.encoder(token_NT) * scale + model.positions_TD[: token_NT.shape[1]]


def layer_states(layer: Layer, x_NTD: Tensor) -> tuple[States, Tensor]:
    """All states of a layer, and what leaves it."""
    attention = layer.self_attn
    qkv = F.linear(x_NTD, attention.in_proj_weight, attention.in_proj_bias)
    mixed = attend(attention, qkv, 0)
    attended = attention.out_proj(mixed)
    mlp_in = layer.norm1(x_NTD + attended)
    before_relu = layer.linear1(mlp_in)
    inner = F.relu(before_relu)
    mlp_out = layer.linear2(inner)
    states: States = {
        "attention_in": x_NTD,
        "qkv": qkv,
        "mixed": mixed,
        "attended": attended,
        "mlp_in": mlp_in,
        "before_relu": before_relu,
        "inner": inner,
        "mlp_out": mlp_out,
    }
    return states, layer.norm2(mlp_in + mlp_out)


def attend(attention: SelfAttention, qkv_NTC: Tensor, start: int) -> Tensor:
    """The heads' outputs side by side, for the positions from ``start`` on, [N, S, D]."""
    N, T, C = qkv_NTC.shape
    D = C // 3
    qkv = qkv_NTC.view(N, T, 3, attention.heads, D // attention.heads).permute(2, 0, 3, 1, 4)
    q_NHSE, k_NHTE, v_NHTE = qkv[0, :, :, start:], qkv[1], qkv[2]
    seen_ST = torch.ones(T, T, dtype=torch.bool, device=qkv.device).tril()[start:]
    mixed = F.scaled_dot_product_attention(q_NHSE, k_NHTE, v_NHTE, attn_mask=seen_ST)
    return mixed.transpose(1, 2).reshape(N, T - start, D)


def mlp(layer: Layer, x_MD: Tensor) -> Tensor:
    """The second half of a layer, from the sum that its first LayerNorm takes, [M, D]."""
    x_MD = layer.norm1(x_MD)
    return layer.norm2(x_MD + layer.linear2(F.relu(layer.linear1(x_MD))))


# --- going on from a change -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Edit:
    """Entries of one state that are replaced, for pairs of a subject and a traced datum."""

    place: SubjectSite
    subject_Q: Tensor
    """Place in the list of subjects."""
    row_Q: Tensor
    """Place in the traced datums."""
    entry_QB: Tensor
    """Which entries."""
    new_QTB: Tensor
    """What they become."""
    change_QTB: Tensor
    """By how much that changes what the next step sees."""
    first_Q: Tensor
    """First position where it does."""
    reach_Q: Tensor
    """At how many positions the last hidden state can move."""

    @classmethod
    def of(
        cls,
        found: Trace,
        place: SubjectSite,
        subject_Q: Tensor,
        row_Q: Tensor,
        entry_QB: Tensor,
        new_QTB: Tensor,
    ) -> "Edit":
        """The pairs for which anything changes, those that change late together."""
        old = entries(found.at(place), row_Q, entry_QB)
        relu = place.point == "before_relu"
        change = F.relu(new_QTB) - F.relu(old) if relu else new_QTB - old
        changed_QT = (change != 0).any(2)
        first_Q = changed_QT.int().argmax(1)
        here = place.layer + 1 == len(found.layers) and place.point in POSITIONWISE
        reach_Q = changed_QT.sum(1) if here else changed_QT.shape[1] - first_Q
        order = first_Q.argsort(stable=True)
        order = order[changed_QT.any(1)[order]]
        parts = (subject_Q, row_Q, entry_QB, new_QTB, change, first_Q, reach_Q)
        return cls(place, *(part[order] for part in parts))

    def batches(self) -> Iterator["Edit"]:
        """The same in pieces, each of which can move about so many last hidden states."""
        parts = [part for name, part in vars(self).items() if name != "place"]
        most = positions_at_once(self.row_Q.device)
        sizes = (self.reach_Q.cumsum(0) // most).bincount().tolist()
        for pieces in zip(*(part.split(sizes) for part in parts), strict=True):
            if len(pieces[0]):
                yield Edit(self.place, *pieces)


def positions_at_once(device: torch.device) -> int:
    """Hidden states that are carried on at once: on a CPU, so few that they stay in its caches."""
    return POSITIONS_AT_ONCE if device.type == "cpu" else 100 * POSITIONS_AT_ONCE


class ReachedStates(NamedTuple):
    """Last hidden states that an edit can have moved."""

    pair_M: Tensor
    """Place among the pairs of the edit."""
    position_M: Tensor
    hidden_MD: Tensor


def entries(
    state_NTC: Tensor, row_Q: Tensor, entry_QB: Tensor, position_QT: Tensor | None = None
) -> Tensor:
    """Some entries of some rows, [Q, T, B]: at every position, or at those that are said."""
    if position_QT is None:
        position_QT = torch.arange(state_NTC.shape[1], device=row_Q.device)[None]
    return state_NTC[row_Q[:, None, None], position_QT[:, :, None], entry_QB[:, None, :]]


def propagate(model: LanguageModel, found: Trace, edit: Edit) -> ReachedStates:
    """The last hidden states wherever the edit can reach."""
    layers = layers_of(model)
    layer, later = layers[edit.place.layer], layers[edit.place.layer + 1 :]
    start = int(edit.first_Q.min())
    if edit.place.point in POSITIONWISE:
        moved = positionwise(layer, found, edit)
        if not later:
            return moved
        x_QSD = found.after(edit.place.layer)[edit.row_Q, start:]
        x_QSD[moved.pair_M, moved.position_M - start] = moved.hidden_MD
    else:
        x_QSD = through_attention(layer, found, edit, start)
    for place, layer in enumerate(later, edit.place.layer + 1):
        x_QSD = rest_of_layer(layer, found.layers[place]["qkv"][edit.row_Q, :start], x_QSD)
    position_S = torch.arange(start, found.hidden_NTD.shape[1], device=edit.row_Q.device)
    pair_M, place_M = (position_S >= edit.first_Q[:, None]).nonzero(as_tuple=True)
    return ReachedStates(pair_M, place_M + start, x_QSD[pair_M, place_M])


def rest_of_layer(layer: Layer, before: Tensor, x_QSD: Tensor) -> Tensor:
    """What leaves a layer from some position on; ``before`` is qkv at the positions before it."""
    attention = layer.self_attn
    qkv = F.linear(x_QSD, attention.in_proj_weight, attention.in_proj_bias)
    start = before.shape[1]
    mixed = attend(attention, torch.cat([before, qkv], 1) if start else qkv, start)
    return mlp(layer, x_QSD + attention.out_proj(mixed))


def through_attention(layer: Layer, found: Trace, edit: Edit, start: int) -> Tensor:
    """What leaves the layer from ``start`` on, where an edit changes queries, keys or values."""
    attention, states = layer.self_attn, found.layers[edit.place.layer]
    qkv = states["qkv"][edit.row_Q]
    if edit.place.point == "qkv":
        entry_QTB = edit.entry_QB[:, None, :].expand_as(edit.new_QTB)
        qkv.scatter_(2, entry_QTB, edit.new_QTB)
    else:
        qkv += edit.change_QTB @ attention.in_proj_weight.T[edit.entry_QB]
    attended = attention.out_proj(attend(attention, qkv, start))
    return mlp(layer, states["attention_in"][edit.row_Q, start:] + attended)


def positionwise(layer: Layer, found: Trace, edit: Edit) -> ReachedStates:
    """What leaves the layer at the changed positions, where an edit stays at its position."""
    states, point = found.layers[edit.place.layer], edit.place.point
    pair_M, position_M = (edit.change_QTB != 0).any(2).nonzero(as_tuple=True)
    row_M, entry_MB = edit.row_Q[pair_M], edit.entry_QB[pair_M]
    change_MB = edit.change_QTB[pair_M, position_M]

    def at(name: Point) -> Tensor:
        return states[name][row_M, position_M]

    if point == "mixed":
        mixed_MD = at("mixed").scatter_(1, entry_MB, edit.new_QTB[pair_M, position_M])
        out_MD = mlp(layer, at("attention_in") + layer.self_attn.out_proj(mixed_MD))
    elif point == "attended":
        sum_MD = at("attention_in") + at("attended").scatter_add_(1, entry_MB, change_MB)
        out_MD = mlp(layer, sum_MD)
    elif point == "mlp_in":
        before_relu_MF = at("before_relu") + one_entry_update(
            layer.linear1.weight, entry_MB, change_MB
        )
        out_MD = layer.norm2(at("mlp_in") + layer.linear2(F.relu(before_relu_MF)))
    elif point == "mlp_out":
        sum_MD = at("mlp_in") + at("mlp_out").scatter_add_(1, entry_MB, change_MB)
        out_MD = layer.norm2(sum_MD)
    else:
        change_MD = one_entry_update(layer.linear2.weight, entry_MB, change_MB)
        out_MD = layer.norm2(at("mlp_in") + at("mlp_out") + change_MD)
    return ReachedStates(pair_M, position_M, out_MD)


def one_entry_update(weight: Tensor, entry_M1: Tensor, change_M1: Tensor) -> Tensor:
    """What a change of one input entry adds to a linear layer's output."""
    assert entry_M1.shape[1] == 1
    return F.embedding(entry_M1[:, 0], weight.T.contiguous()) * change_M1
