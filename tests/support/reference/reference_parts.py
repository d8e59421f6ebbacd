"""Reference ablation of any model: changed weights or one hook, and one ordinary forward pass.

Shapes: N datum, T position, C entry of a state, V vocabulary.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from analysis.ablation.replacement import ResamplingSources
from analysis.ablation.subjects import Subject
from capture.parts import Parted
from capture.parts.stack import logits_of


@torch.no_grad()
def plain_logits(network: nn.Module, token_NT: np.ndarray) -> np.ndarray:
    """Return the logits of an ordinary forward pass, float64 [N, T, V]."""
    found = logits_of(network(torch.from_numpy(token_NT).long()))
    assert found is not None
    return found.double().numpy()


def weight_and_entries(model: Parted, subject: Subject) -> tuple[str, slice]:
    """Return the weight and the inputs (rows: outputs) that a subject is made of."""
    if subject.level != "head":
        return subject.unit, slice(subject.group, subject.group + 1)
    own = model.parts.attention_called(subject.unit)
    size = model.parts.uses[own.out].inputs // own.heads
    return own.out, slice(subject.group * size, (subject.group + 1) * size)


def without_weights(model: Parted, subject: Subject) -> nn.Module:
    """Return a copy of the network in which the subject's weights are zero."""
    weight, own = weight_and_entries(model, subject)
    changed = copy.deepcopy(model.network)
    outputs_first = not model.parts.uses[weight].transposed
    with torch.no_grad():
        values = changed.get_parameter(weight)
        if (subject.level == "row") == outputs_first:
            values[own] = 0
        else:
            values[:, own] = 0
    return changed


def naive_logits(
    model: Parted, subject: Subject, token_NT: np.ndarray, value: str, sources: ResamplingSources
) -> np.ndarray:
    """Return the logits with a subject ablated, float64 [N, T, V]."""
    if value == "zero":
        return plain_logits(without_weights(model, subject), token_NT)
    clean = hooked(model, subject, token_NT, lambda state: None)[1]
    if value == "mean":
        new = clean.double().mean((0, 1)).float().expand_as(clean)
    else:
        datum_N1 = torch.from_numpy(sources.datum_N)[:, None]
        new = clean[datum_N1, torch.from_numpy(sources.position_NT)]
    own = weight_and_entries(model, subject)[1]

    def put(state_NTC: Tensor) -> Tensor:
        changed = state_NTC.clone()
        changed[..., own] = new[..., own]
        return changed

    return hooked(model, subject, token_NT, put)[0]


def hooked(
    model: Parted, subject: Subject, token_NT: np.ndarray, put: Callable[[Tensor], Tensor | None]
) -> tuple[np.ndarray, Tensor]:
    """Return logits and the state of the subject's module, which ``put`` may replace."""
    weight, _ = weight_and_entries(model, subject)
    module = model.network.get_submodule(weight.removesuffix(".weight"))
    seen: list[Tensor] = []
    N, T = token_NT.shape

    def change(state: Tensor) -> Tensor | None:
        turned = tuple(state.shape[:2]) == (T, N) != (N, T)
        state_NTC = state.transpose(0, 1) if turned else state.reshape(N, T, -1)
        seen.append(state_NTC.clone())
        new = put(state_NTC)
        if new is None:
            return None
        return new.transpose(0, 1) if turned else new.reshape(state.shape)

    def on_input(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        new = change(args[0])
        return None if new is None else (new,)

    def on_output(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        return change(out)

    if subject.level == "row":
        hook = module.register_forward_hook(on_output)
    else:
        hook = module.register_forward_pre_hook(on_input)
    try:
        return plain_logits(model.network, token_NT), seen[0]
    finally:
        hook.remove()


def log_probabilities(logits_NTV: np.ndarray, target_NT: np.ndarray) -> np.ndarray:
    """Return log p(target), nats, [N, T]."""
    shifted = logits_NTV - logits_NTV.max(2, keepdims=True)
    chosen_NT = np.take_along_axis(shifted, target_NT[..., None].astype(int), 2)[..., 0]
    return chosen_NT - np.log(np.exp(shifted).sum(2))


def some_subjects(model: Parted, units: dict[str, dict[str, int]]) -> list[Subject]:
    """Return the first and last neuron and row of every unit, and every head."""
    found = []
    for level in ("neuron", "row"):
        for unit, number in units[level].items():
            found += [Subject(unit, 0, level), Subject(unit, number - 1, level)]
    heads = units["head"].items()
    return found + [Subject(unit, n, "head") for unit, number in heads for n in range(number)]
