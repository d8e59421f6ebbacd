"""What the model predicts with and without a neuron: exactly what a naive forward pass would say.

A neuron is a column of an MLP weight. Setting ``weight[:, n] = 0`` is the same as setting entry n
of that weight's input to 0, so many neurons can be silenced in one batch, each in its own copy of
the hidden states. Two things save most of the time of a forward pass per neuron: what lies before
the neuron is computed once per datum for all neurons, and the unembedding, which costs most, is
left out where the prediction is certain to stand (``analysis.unembedding``).

Shapes: N datum, T position, M position of any datum, D width, U distinct datum,
Q pair of neuron and datum.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.unembedding import Unembedding
from capture.dropout import Masks
from capture.errors import UnitError
from capture.model import LanguageModel, Layer

DATUMS_AT_ONCE = 128
"""Datums whose inner states are held at once."""
PAIRS_AT_ONCE = 256
"""Pairs of neuron and datum that are carried through the rest of the model at once."""

Report = Callable[[int, int], None]
"""Told now and then: pairs of neuron and datum done, pairs in all."""


@dataclass(frozen=True, order=True)
class Neuron:
    """A column of an MLP weight."""

    unit: str
    column: int


@dataclass(frozen=True, eq=False)
class Changes:
    """Predictions that differ once a neuron is silenced; by neuron, datum, position."""

    neuron_M: np.ndarray
    """Place in the list of neurons that was asked about."""
    datum_M: np.ndarray
    position_M: np.ndarray
    after_M: np.ndarray
    """The token predicted without the neuron."""


@dataclass(frozen=True, eq=False)
class Silencing:
    """Predictions of some datums, and those that silencing changed."""

    datum_U: np.ndarray
    """Distinct datums, ascending."""
    before_UT: np.ndarray
    """The token predicted at every position, nothing silenced, int32."""
    changes: Changes
    certified: float
    """Share of all positions, over all neurons, that went without logits."""

    def before(self, datum_K: np.ndarray) -> np.ndarray:
        """Predictions for some of the datums, nothing silenced, [K, T]."""
        return self.before_UT[np.searchsorted(self.datum_U, datum_K)]


@torch.inference_mode()
def silence(
    model: LanguageModel,
    token_NT: np.ndarray,
    neurons: Sequence[Neuron],
    datums: Sequence[np.ndarray],
    report: Report | None = None,
) -> Silencing:
    """Silence each neuron, one at a time, on its own datums (distinct rows of ``token_NT``).

    The predictions equal those of a naive forward pass with the column set to zero, but where two
    logits are nearer to each other than float32 tells apart. Raises ``UnitError`` for a neuron that
    the model lacks.
    """
    for neuron in neurons:
        require_neuron(model, neuron)
    unembedding = Unembedding(model.decoder)
    datum_U = np.unique(np.concatenate(datums))
    before_UT = np.empty((len(datum_U), token_NT.shape[1]), np.int32)
    changes, open_positions, done = [], 0, 0
    num_pairs = sum(map(len, datums))
    for start in range(0, len(datum_U), DATUMS_AT_ONCE):
        chunk_U = datum_U[start : start + DATUMS_AT_ONCE]
        clean = Clean.of(model, unembedding, token_NT[chunk_U])
        before_UT[start : start + len(chunk_U)] = clean.token_NT.cpu().numpy()
        for pairs in pairs_among(chunk_U, neurons, datums):
            found, num_open = changes_of(model, unembedding, clean, neurons, pairs)
            changes.append(found)
            open_positions += num_open
            done += len(pairs.neuron_Q)
        if report:
            report(done, num_pairs)
    certified = 1 - open_positions / (num_pairs * token_NT.shape[1])
    return Silencing(datum_U, before_UT, in_order(changes), certified)


def require_neuron(model: LanguageModel, neuron: Neuron) -> None:
    """Raises ``UnitError`` if the model has no such neuron."""
    units = {
        f"layers.{place}.{name}.weight": linear.in_features
        for place, layer in enumerate(layers_of(model))
        for name, linear in (("linear1", layer.linear1), ("linear2", layer.linear2))
    }
    if neuron.unit not in units:
        raise UnitError(neuron.unit, "has no neurons", f"Units that have: {', '.join(units)}")
    if not 0 <= neuron.column < units[neuron.unit]:
        problem = f"does not exist: the unit's neurons are 0 to {units[neuron.unit] - 1}"
        raise UnitError(f"{neuron.unit} neuron {neuron.column}", problem)


def layers_of(model: LanguageModel) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer, Layer)]


# --- nothing silenced -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Clean:
    """An ordinary forward pass of some datums, and what has to be kept of it."""

    inputs: list[tuple[Tensor, Tensor]]
    """By layer, what enters linear1 and linear2, [N, T, …]."""
    hidden_NTD: Tensor
    """After the last layer."""
    token_NT: Tensor
    """Predictions."""
    margin_NT: Tensor
    """How far the predicted token's logit is above the next one."""

    @classmethod
    def of(cls, model: LanguageModel, unembedding: Unembedding, token_NT: np.ndarray) -> "Clean":
        device = model.decoder.weight.device
        inputs, hidden_NTD = mlp_inputs(model, torch.from_numpy(token_NT).long().to(device))
        found = unembedding.predict_with_margin(hidden_NTD.flatten(0, 1))
        return cls(inputs, hidden_NTD, *(value_M.view(token_NT.shape) for value_M in found))


def mlp_inputs(
    model: LanguageModel, token_NT: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """What enters linear1 and linear2 of every layer, and the last hidden state."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[module] = args[0]

    layers = layers_of(model)
    linears = [linear for layer in layers for linear in (layer.linear1, layer.linear2)]
    hooks = [linear.register_forward_pre_hook(keep) for linear in linears]
    try:
        hidden_NTD = model.hidden(token_NT, Masks.none())
    finally:
        for hook in hooks:
            hook.remove()
    return [(found[layer.linear1], found[layer.linear2]) for layer in layers], hidden_NTD


# --- one neuron silenced --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """Neurons of one unit, each with a datum of the chunk."""

    unit: str
    neuron_Q: np.ndarray
    """Place in the list of neurons."""
    row_Q: np.ndarray
    """Place in the chunk."""
    datum_Q: np.ndarray


def pairs_among(
    chunk_U: np.ndarray, neurons: Sequence[Neuron], datums: Sequence[np.ndarray]
) -> Iterator[Pairs]:
    """All pairs whose datum is in the chunk (of ascending ids), a bounded number at a time."""
    rows = [np.flatnonzero(np.isin(chunk_U, own)) for own in datums]
    for unit in sorted({neuron.unit for neuron in neurons}):
        here = [place for place, neuron in enumerate(neurons) if neuron.unit == unit]
        neuron_Q = np.repeat(here, [len(rows[place]) for place in here])
        row_Q = np.concatenate([rows[place] for place in here])
        for start in range(0, len(row_Q), PAIRS_AT_ONCE):
            some = slice(start, start + PAIRS_AT_ONCE)
            yield Pairs(unit, neuron_Q[some], row_Q[some], chunk_U[row_Q[some]])


def changes_of(
    model: LanguageModel,
    unembedding: Unembedding,
    clean: Clean,
    neurons: Sequence[Neuron],
    pairs: Pairs,
) -> tuple[Changes, int]:
    """The pairs' changed predictions, and how many of their positions took logits."""
    device = clean.hidden_NTD.device
    row_Q = torch.from_numpy(pairs.row_Q).to(device)
    column_Q = torch.tensor([neurons[place].column for place in pairs.neuron_Q], device=device)
    before_QT, margin_QT = clean.token_NT[row_Q], clean.margin_NT[row_Q]
    clean_QTD = clean.hidden_NTD[row_Q]
    hidden_QTD = silenced_hidden(model, clean, pairs.unit, row_Q, column_Q)
    moved_QT = (hidden_QTD - clean_QTD).norm(dim=2)
    certain_M = unembedding.certain(
        before_QT.flatten(), margin_QT.flatten(), clean_QTD.flatten(0, 1), moved_QT.flatten()
    )
    open_QT = ~certain_M.view(before_QT.shape)
    after_QT = before_QT.clone()
    after_QT[open_QT] = unembedding.predict(hidden_QTD[open_QT])
    pair_M, position_M = np.nonzero((after_QT != before_QT).cpu().numpy())
    after_M = after_QT.cpu().numpy()[pair_M, position_M]
    changes = Changes(pairs.neuron_Q[pair_M], pairs.datum_Q[pair_M], position_M, after_M)
    return changes, int(open_QT.sum())


def silenced_hidden(
    model: LanguageModel, clean: Clean, unit: str, row_Q: Tensor, column_Q: Tensor
) -> Tensor:
    """The last hidden state of each pair's datum, its column of the unit silenced, [Q, T, D]."""
    _, place, linear, _ = unit.split(".")
    layer, *later = layers_of(model)[int(place) :]
    residual_QTD, inner_QTF = (state[row_Q] for state in clean.inputs[int(place)])
    pair_Q = torch.arange(len(row_Q), device=row_Q.device)
    if linear == "linear1":
        silenced_QTD = residual_QTD.clone()
        silenced_QTD[pair_Q, :, column_Q] = 0
        inner_QTF = F.relu(layer.linear1(silenced_QTD))
    else:
        inner_QTF[pair_Q, :, column_Q] = 0
    x_QTD = layer.norm2(residual_QTD + layer.linear2(inner_QTF))
    for layer in later:
        x_QTD = layer(x_QTD, Masks.none())
    return x_QTD


def in_order(pieces: Sequence[Changes]) -> Changes:
    """All changes, by neuron, datum and position."""
    columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
    neuron_M, datum_M, position_M, after_M = map(np.concatenate, columns)
    order_M = np.lexsort((position_M, datum_M, neuron_M))
    return Changes(neuron_M[order_M], datum_M[order_M], position_M[order_M], after_M[order_M])
