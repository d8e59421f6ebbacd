"""Outputs of units and what heads do, against the layers' arithmetic; tables of them."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_run import copied, tiny_run
from torch.nn import functional as F

from analysis.activations.config import ActivationConfig
from analysis.activations.quantities import (
    QUANTITIES,
    Quantity,
    measure,
    require_entry,
    units_of,
)
from analysis.activations.tables import activations
from analysis.attribution.attribute import attribute, write_attribution
from analysis.attribution.config import AttributionConfig
from analysis.measures.selection import SelectionConfig
from analysis.run.run import open_run
from capture.errors import ConfigError, UnitError
from capture.models.dropout import Masks
from capture.models.transformer import Layer, ModelConfig, fresh_model
from cluster.cli import main
from cluster.local.threads import run_job

TINY = ModelConfig(layers=2, width=12, hidden=10, heads=3)
MODEL = fresh_model(TINY, vocabulary=17, window=6, seed=0).eval()
TOKEN_NT = np.random.default_rng(0).integers(17, size=(5, 6)).astype(np.int32)
HEADS, E = 3, 4
SIZES = {
    "inputs": {"linear1.weight": 12, "linear2.weight": 10},
    "outputs": {"linear1.weight": 10, "linear2.weight": 12},
    "head-entries": {"self_attn.out_proj.weight": 12},
} | {name: {"self_attn": HEADS} for name in QUANTITIES[3:]}


@torch.no_grad()
def slowly(quantity: Quantity) -> dict[str, np.ndarray]:
    """Return the quantity of every unit, datum by datum, with loops over positions and heads."""
    found: dict[str, list[np.ndarray]] = {unit: [] for unit in units_of(MODEL, quantity)}
    for token_T in TOKEN_NT:
        x_TD = MODEL.encoder(torch.from_numpy(token_T).long()) * math.sqrt(12)
        x_TD = x_TD + MODEL.positions_TD
        for number, layer in enumerate(MODEL.layers):
            assert isinstance(layer, Layer)
            mixed_TD, by_head = attention(layer, x_TD, quantity)
            x_TD = layer.norm1(x_TD + layer.self_attn.out_proj(mixed_TD))
            before_TF = F.linear(x_TD, layer.linear1.weight, layer.linear1.bias)
            after_TF = before_TF.clamp(min=0)
            out_TD = F.linear(after_TF, layer.linear2.weight, layer.linear2.bias)
            seen = {
                "inputs": {"linear1.weight": x_TD, "linear2.weight": after_TF},
                "outputs": {"linear1.weight": before_TF, "linear2.weight": out_TD},
                "head-entries": {"self_attn.out_proj.weight": mixed_TD},
            }.get(quantity, {"self_attn": by_head})
            for name, value in seen.items():
                found[f"layers.{number}.{name}"].append(value.numpy())
            x_TD = layer.norm2(x_TD + out_TD)
    return {unit: np.stack(datums) for unit, datums in found.items()}


def attention(
    layer: Layer, x_TD: torch.Tensor, quantity: Quantity
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mixed values of one datum, [T, D], and a quantity of each head, [T, H]."""
    own = layer.self_attn
    q_TD, k_TD, v_TD = F.linear(x_TD, own.in_proj_weight, own.in_proj_bias).chunk(3, 1)
    mixed_TD, by_head_TH = torch.zeros_like(x_TD), torch.zeros(len(x_TD), HEADS)
    for h in range(HEADS):
        part = slice(h * E, h * E + E)
        for t in range(len(x_TD)):
            score_S = k_TD[: t + 1, part] @ q_TD[t, part] / math.sqrt(E)
            weight_S = score_S.softmax(0)
            mixed_TD[t, part] = weight_S @ v_TD[: t + 1, part]
            added_D = own.out_proj.weight[:, part] @ mixed_TD[t, part]
            by_head_TH[t, h] = {
                "head-norm": float(added_D.square().sum().sqrt()),
                "attention-entropy": float(-(weight_S * weight_S.log()).sum()),
                "attention-largest": float(weight_S.max()),
                "attention-self": float(weight_S[t]),
                "attention-previous": float(weight_S[t - 1]) if t else 0.0,
                "attention-distance": sum(float(w) * (t - s) for s, w in enumerate(weight_S)),
            }.get(quantity, 0.0)
    return mixed_TD, by_head_TH


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_equals_the_layers_arithmetic(quantity: Quantity) -> None:
    units = units_of(MODEL, quantity)
    assert units == {
        f"layers.{layer}.{name}": size
        for layer in range(2)
        for name, size in SIZES[quantity].items()
    }
    found = measure(MODEL, TOKEN_NT, list(units), quantity)
    for unit, wanted_NTI in slowly(quantity).items():
        assert found[unit].dtype == np.float32
        assert found[unit].shape == (5, 6, units[unit])
        np.testing.assert_allclose(found[unit], wanted_NTI, rtol=1e-4, atol=1e-5)


def test_the_hidden_layer_is_the_positive_part_of_the_outputs_before_it() -> None:
    before = measure(MODEL, TOKEN_NT, ["layers.1.linear1.weight"], "outputs")
    after = measure(MODEL, TOKEN_NT, ["layers.1.linear2.weight"], "inputs")
    (before_NTF,), (after_NTF,) = before.values(), after.values()
    assert (before_NTF < 0).any()
    assert np.array_equal(np.maximum(before_NTF, 0), after_NTF)


def test_measuring_leaves_the_model_as_it_was() -> None:
    tokens = torch.from_numpy(TOKEN_NT).long()
    with torch.no_grad():
        before = MODEL.hidden(tokens, Masks.none())
        measure(MODEL, TOKEN_NT, ["layers.0.self_attn"], "attention-entropy")
        assert torch.equal(MODEL.hidden(tokens, Masks.none()), before)


@pytest.mark.parametrize(
    ("quantity", "entry", "text"),
    [
        ("outputs", ("layers.1.linear3.weight", 0), "has no rows. Did you mean layers.1.linear2."),
        ("outputs", ("layers.1.linear1.weight", 10), "row 10: does not exist: the unit's rows are"),
        ("head-norm", ("layers.0.self_attn", 3), "self_attn head 3: does not exist: the unit's he"),
        ("head-entries", ("layers.0.self_attn", 0), "layers.0.self_attn: has no entries. Did you"),
    ],
)
def test_an_unknown_entry_is_named(quantity: Quantity, entry: tuple[str, int], text: str) -> None:
    with pytest.raises(UnitError, match=text):
        require_entry(MODEL, *entry, quantity)


# --- tables ---------------------------------------------------------------------------------------


def records(frame: pd.DataFrame) -> list[Any]:
    """Return the rows with their values as attributes."""
    return list(frame.itertuples())


@pytest.mark.parametrize("quantity", ["outputs", "head-entries", "attention-distance"])
def test_tables_of_a_quantity_are_recounted(quantity: Quantity) -> None:
    run = open_run(tiny_run())
    found = activations(run, ActivationConfig(tokens=("w3", "w7"), quantity=quantity))
    assert found.about["quantity"].tolist() == [quantity]
    units = units_of(run.model(), quantity)
    assert len(found.statistics) == 2 * sum(units.values())
    measured = measure(run.model(), run.token_NT, list(units), quantity)
    for row in records(found.statistics):
        x_M = measured[str(row.unit)][:, :, row.neuron][run.target_NT == row.token_id]
        np.testing.assert_allclose(row.mean, x_M.astype(float).mean(), atol=1e-5)
    for end, rising in (("min", True), ("max", False)):
        own = found.statistics[found.statistics["token"] == "w3"]
        wanted = own.sort_values("mean", ascending=rising, kind="stable").head(10)
        ranks = found.ranks[found.ranks["token"] == "w3"]
        assert np.array_equal(ranks[[f"{end}_unit", f"{end}_neuron"]], wanted[["unit", "neuron"]])
    for row in records(found.comparisons):
        x_M = measured[str(row.unit)][:, :, row.neuron][run.target_NT == row.token_id]
        np.testing.assert_allclose((row.min, row.max), (x_M.min(), x_M.max()), atol=1e-5)


def test_heads_and_their_tokens_come_from_an_attribution_of_heads() -> None:
    run = open_run(copied(tiny_run(), "memory://activations-of-heads").uri)
    any_token = SelectionConfig(min_observations=0, max_q=1, most=4)
    heads = attribute(run, run_job, AttributionConfig(level="head", selection=any_token))
    write_attribution(run, heads, name="heads")
    config = ActivationConfig(quantity="attention-largest", attribution="heads")
    about = activations(run, config).about.iloc[0]
    first = heads.tokens.iloc[0]
    assert (about["unit"], about["neuron"]) == (first["unit"], first["group"])
    assert (about["neuron_from"], about["tokens_from"]) == ("attribution", "attribution")
    assert about["tokens"][0] == first["token"]


def test_tokens_come_from_neurons_where_rows_have_no_attribution() -> None:
    run = open_run(copied(tiny_run(), "memory://activations-of-rows").uri)
    any_token = SelectionConfig(min_observations=0, max_q=1, most=4)
    neurons = attribute(run, run_job, AttributionConfig(selection=any_token))
    write_attribution(run, neurons)
    about = activations(run, ActivationConfig(quantity="outputs")).about.iloc[0]
    assert (about["neuron_from"], about["tokens_from"]) == ("activation", "attribution")
    assert about["tokens"][0] == neurons.tokens["token"].iloc[0]


def test_an_unknown_quantity_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantity: got 'rows', must be one of inputs, outputs"):
        ActivationConfig(quantity="rows")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (
            ["--of", "outputs"],
            ["Mean output of the unit (before any nonlinearity)", "Rows on “w3”"],
        ),
        (
            ["--of", "attention-entropy", "--neuron", "layers.1.self_attn:1"],
            [
                "Mean entropy of the attention weights (nats)",
                "layers.1.self_attn, head 1 on “w3”",
            ],
        ),
        (["--of", "head-entries"], ["Entries on “w3”", "of the unit's 16 entries have a h"]),
    ],
)
def test_the_command_measures_what_is_asked(
    tmp_path, options: list[str], texts: list[str], capsys
) -> None:
    uri = copied(tiny_run(), str(tmp_path / "run")).uri
    assert main(["activations", uri, "--tokens", "w3", *options]) == 0
    printed = capsys.readouterr().out
    for text in texts:
        assert text in printed
    ranks = pd.read_parquet(tmp_path / "run/analysis/activations/ranks.parquet")
    assert set(ranks["token"]) == {"w3"}
