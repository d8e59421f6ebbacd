"""Reference ablation: changed weights or hooks, and one ordinary forward pass."""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.ablation.replacement import ResamplingSources
from analysis.ablation.subjects import Subject
from analysis.attribution.tables import JOB, TABLES
from analysis.jobs.tables import write_tables
from analysis.run.run import Run
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel, Layer, ModelConfig, fresh_model

TINY = ModelConfig(layers=2, width=12, hidden=10, heads=3)
VOCABULARY, WINDOW = 31, 6
UNITS = [f"layers.{layer}.linear{i}.weight" for layer in range(2) for i in (1, 2)]
ATTENTION_UNITS = [
    f"layers.{layer}.self_attn.{name}"
    for layer in range(2)
    for name in ("in_proj_weight", "out_proj.weight")
]


def random_model(seed: int, scale: float, config: ModelConfig = TINY) -> LanguageModel:
    """Return a fresh model, layer weights times ``scale``: a larger scale flips more."""
    model = fresh_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "linear" in name or "decoder" in name or "attn" in name:
                parameter.mul_(scale)
            if "bias" in name and "decoder" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def some_subjects() -> list[Subject]:
    """Return some columns and rows of every unit, and all heads."""
    columns = [Subject(unit, n) for unit in UNITS + ATTENTION_UNITS for n in (0, 3, 9)]
    rows = [Subject(unit, n, "row") for unit in UNITS + ATTENTION_UNITS for n in (1, 4, 8)]
    rows += [Subject(unit, n, "row") for unit in ATTENTION_UNITS[::2] for n in (13, 17, 26, 35)]
    heads = [Subject(f"layers.{layer}.self_attn", n, "head") for layer in (0, 1) for n in range(3)]
    return columns + rows + heads


def without(model: LanguageModel, subject: Subject) -> LanguageModel:
    """Return a copy of the model in which the subject's weights are zero."""
    ablated = copy.deepcopy(model)
    with torch.no_grad():
        if subject.level == "head":
            size = model.config.width // model.config.heads
            own = slice(subject.group * size, (subject.group + 1) * size)
            ablated.get_parameter(f"{subject.unit}.out_proj.weight")[:, own] = 0
        elif subject.level == "row":
            ablated.get_parameter(subject.unit)[subject.group] = 0
        else:
            ablated.get_parameter(subject.unit)[:, subject.group] = 0
    return ablated


@torch.no_grad()
def logits(model: LanguageModel, token_NT: np.ndarray) -> np.ndarray:
    """Return the logits of an ordinary forward pass, [N, T, V]."""
    return model(torch.from_numpy(token_NT).long()).numpy()


def ablated_logits(
    model: LanguageModel,
    subject: Subject,
    token_NT: np.ndarray,
    *,
    value: str = "zero",
    text_NT: np.ndarray | None = None,
    sources: ResamplingSources | None = None,
) -> np.ndarray:
    """Return the logits with the subject ablated, [N, T, V]."""
    if value == "zero":
        return logits(without(model, subject), token_NT)
    if value == "mean":
        assert text_NT is not None
        clean = state(model, subject, text_NT)
        new = clean.double().mean((0, 1)).float()
    else:
        assert sources is not None
        clean = state(model, subject, token_NT)
        datum_N1 = torch.from_numpy(sources.datum_N)[:, None]
        new = clean[datum_N1, torch.from_numpy(sources.position_NT)]
    with replaced(model, subject, lambda state_NTC: new.expand_as(state_NTC)):
        return logits(model, token_NT)


def state(model: LanguageModel, subject: Subject, token_NT: np.ndarray) -> Tensor:
    """Return the whole state that holds the subject's entries, [N, T, C]."""
    seen: list[Tensor] = []

    def keep(state_NTC: Tensor) -> Tensor:
        seen.append(state_NTC.clone())
        return state_NTC

    with replaced(model, subject, keep):
        logits(model, token_NT)
    return seen[0]


@contextlib.contextmanager
def replaced(
    model: LanguageModel, subject: Subject, new: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace the subject's entries of its unit's input (columns, heads) or output (rows)."""
    _, number, name = subject.unit.split(".", 2)
    layer = model.layers[int(number)]
    assert isinstance(layer, Layer)
    size = model.config.width // model.config.heads if subject.level == "head" else 1
    own = slice(subject.group * size, (subject.group + 1) * size)

    def change(state_NTC: Tensor) -> Tensor:
        changed = state_NTC.clone()
        changed[..., own] = new(state_NTC)[..., own]
        return changed

    def on_input(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (change(args[0]),)

    def on_output(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return change(out)

    if name == "self_attn.in_proj_weight":
        row = subject.level == "row"
        weight = layer.self_attn.in_proj_weight
        with mock.patch.object(F, "linear", linear_with(weight, change, row=row)):
            yield
        return
    of_mlp = name.startswith("linear")
    linear = getattr(layer, name.removesuffix(".weight")) if of_mlp else layer.self_attn.out_proj
    if subject.level == "row":
        hook = linear.register_forward_hook(on_output)
    else:
        hook = linear.register_forward_pre_hook(on_input)
    try:
        yield
    finally:
        hook.remove()


def linear_with(
    own: Tensor, change: Callable[[Tensor], Tensor], *, row: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return ``F.linear`` with the input, or the output, of one weight changed."""
    plain = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if weight is not own:
            return plain(x, weight, bias)
        return change(plain(x, weight, bias)) if row else plain(change(x), weight, bias)

    return linear


def log_probabilities(logits_NTV: np.ndarray, target_NT: np.ndarray) -> np.ndarray:
    """Return log p(target) in float64, nats, [N, T]."""
    logits_NTV = logits_NTV.astype(np.float64)
    chosen_NT1 = np.take_along_axis(logits_NTV, target_NT[..., None].astype(int), 2)
    return chosen_NT1[..., 0] - np.log(np.exp(logits_NTV).sum(2))


def hidden(model: LanguageModel, token_NT: np.ndarray) -> Tensor:
    with torch.no_grad():
        return model.hidden(torch.from_numpy(token_NT).long(), Masks.none())


# --- flips ----------------------------------------------------------------------------------------


def predictions(model: LanguageModel, token_NT: np.ndarray) -> np.ndarray:
    """Return the predicted token at every position, by an ordinary forward pass, [N, T]."""
    return logits(model, token_NT).argmax(2)


def flips_by_token(
    before_KT: np.ndarray, after_KT: np.ndarray, tokens: list[str]
) -> dict[str, tuple[int, int]]:
    """Count positions and flips of each token with a flip, position by position."""
    count, flips = Counter(), Counter()
    for before, after in zip(before_KT.ravel(), after_KT.ravel(), strict=True):
        for token in {before, after}:
            count[tokens[token]] += 1
            flips[tokens[token]] += before != after
    return {token: (count[token], flips[token]) for token in count if flips[token]}


# --- an attribution -------------------------------------------------------------------------------


def write_attribution(run: Run, *, seed: int = 0) -> dict[Subject, tuple[list[int], list[int]]]:
    """Write attribution tables into a run: some neurons, a row and a head, with random contents.

    Returns token ids and datums of each subject that has tokens, in the tables' order.
    """
    rng = np.random.default_rng(seed)
    subjects = [Subject(unit, number) for number in (1, 5, 8) for unit in UNITS[::-1]]
    subjects += [Subject(UNITS[0], 3, "row"), Subject("layers.1.self_attn", 1, "head")]
    no_tokens = Subject(UNITS[2], 2)
    found, rows = {}, {"groups": [], "tokens": [], "datums": []}
    for rank, subject in enumerate([no_tokens, *subjects]):
        key = {"level": subject.level, "unit": subject.unit, "group": subject.group}
        names = rng.permutation(run.num_tokens)[:4].tolist() if subject != no_tokens else []
        datums = rng.permutation(run.num_datums)[: 10 + 2 * rank].tolist()
        rows["groups"].append({**key, "weight": 100.0 - rank})
        rows["tokens"] += [{**key, "rank": n, "token_id": t} for n, t in enumerate(names)]
        rows["datums"] += [{**key, "datum": d, "weight": -float(k)} for k, d in enumerate(datums)]
        if names:
            found[subject] = (names, datums)
    write_tables(run, JOB, {name: full(rows.get(name, []), name) for name in TABLES}, TABLES)
    return found


def full(rows: list[dict[str, object]], name: str) -> pd.DataFrame:
    """Return these rows with every column of the table."""
    schema = TABLES[name]
    return pa.Table.from_pylist(rows, schema).to_pandas()


def records(frame: pd.DataFrame) -> list[Any]:
    """Return the rows with their values as attributes."""
    return list(frame.itertuples())
