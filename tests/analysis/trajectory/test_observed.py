"""Parts of models: read alike from Ontogeny's transformer and from the library's families."""

import numpy as np
import pytest
import torch
from observed_models import KINDS, T, V, network
from torch import Tensor, nn

from analysis.trajectory.metrics.heads.ablations import head_ablation, neuron_ablation
from analysis.trajectory.metrics.lens import logit_lens
from analysis.trajectory.metrics.prediction import prediction
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, Windows

OUT = {
    "transformer": "layers.{}.self_attn.out_proj.weight",
    "gpt2": "transformer.h.{}.attn.c_proj.weight",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense.weight",
    "llama": "model.layers.{}.self_attn.o_proj.weight",
    "opt": "model.decoder.layers.{}.self_attn.out_proj.weight",
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> Observed:
    return Observed(0, network(kind))


def some_tokens(count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(1, V, (count, T)))


def some_text() -> Text:
    token_NM = np.random.default_rng(3).integers(1, V, (4, T + 1))
    return Text(V, T, Windows(token_NM[:, :-1], token_NM[:, 1:]), None, [])


def test_every_family_has_all_parts(model: Observed) -> None:
    every = {"logits at all positions", "layers", "attention", "head outputs", "logit lens"}
    assert model.parts == every | {"head matrices", "head paths", "neurons"}
    assert len(model.blocks) == model.num_heads == 2


def test_the_last_state_reads_as_the_logits(model: Observed) -> None:
    token_NT = some_tokens()
    states = model.states(token_NT)
    assert [tuple(each.shape) for each in states] == [(3, T, 8)] * 3
    torch.testing.assert_close(model.read(states[-1]), model.logits(token_NT))


def test_attention_is_causal_and_sums_to_one(model: Observed) -> None:
    for weight_NHTS in model.attention(some_tokens()):
        assert weight_NHTS.shape == (3, 2, T, T)
        torch.testing.assert_close(weight_NHTS.sum(3), torch.ones(3, 2, T))
        assert float(weight_NHTS.triu(1).abs().max()) == 0


def test_looking_changes_nothing(model: Observed) -> None:
    token_NT = some_tokens()
    before = model.logits(token_NT)
    model.states(token_NT)
    model.attention(token_NT)
    with model.without_head(1, 0):
        assert not torch.equal(model.logits(token_NT), before)
    assert torch.equal(model.logits(token_NT), before)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("head", [0, 1])
def test_a_head_is_ablated_as_by_zeros_in_the_weight_that_mixes_heads(
    kind: str, layer: int, head: int
) -> None:
    model, other, token_NT = Observed(0, network(kind)), network(kind), some_tokens()
    weight = dict(other.named_parameters())[OUT[kind].format(layer)]
    own = slice(4 * head, 4 * head + 4)
    with torch.no_grad():
        if kind == "gpt2":  # Conv1D stores [inputs, outputs]
            weight[own] = 0
        else:
            weight[:, own] = 0
    with model.without_head(layer, head):
        torch.testing.assert_close(model.logits(token_NT), Observed(0, other).logits(token_NT))


def test_a_neuron_is_ablated_as_by_zeros_in_the_weight_that_reads_it(kind: str) -> None:
    model, other = Observed(0, network(kind)), network(kind)
    rows = {row.component: row for row in neuron_ablation(model, some_text())}
    assert model.parted
    (weight,) = (own for own in model.parted.parts.mlp_out[:1] if own)
    use, own = model.parted.parts.uses[weight], dict(other.named_parameters())[weight]
    assert {f"{weight}:{number}" for number in (0, use.inputs - 1)} <= rows.keys()
    assert len(rows) == 2 * min(use.inputs, 32)
    with torch.no_grad():
        (own if use.transposed else own.T)[use.inputs - 1] = 0
    before, after = (
        next(row.value for row in prediction(each, some_text()) if row.metric == "loss")
        for each in (model, Observed(0, other))
    )
    found = rows[f"{weight}:{use.inputs - 1}"]
    assert found.value == pytest.approx(after - before, abs=1e-5)
    assert found.n == 4


def test_a_model_without_heads_or_layers_has_fewer_parts() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(V, V))

        def forward(self, token_NT: Tensor) -> Tensor:
            return self.table[token_NT]

    assert Observed(0, Plain()).parts == frozenset()  # pyright: ignore[reportArgumentType]


# --- metrics on them ------------------------------------------------------------------------------


def test_the_lens_after_the_last_layer_is_the_loss(model: Observed) -> None:
    rows = {(row.metric, row.component): row for row in logit_lens(model, some_text())}
    (loss,) = (row for row in prediction(model, some_text()) if row.metric == "loss")
    assert rows["logit_lens", "layer 1"].value == pytest.approx(loss.value, rel=1e-5)
    assert rows["logit_lens_kl", "layer 1"].value == pytest.approx(0, abs=1e-6)
    assert rows["logit_lens_kl", "embedding"].value > 1e-3


def test_only_scored_positions_count(kind: str) -> None:
    whole, last = network(kind), network(kind)
    vars(last)["scored"] = 1
    text, cut = some_text(), some_text()
    assert text.held_out
    model = Observed(0, last)
    assert "logits at all positions" not in model.parts
    assert "logit lens" in model.parts
    (loss,) = (row for row in prediction(model, cut) if row.metric == "loss")
    logits_NTV = Observed(0, whole).logits(torch.from_numpy(text.held_out.token_NT))[:, -1:]
    target_NT = torch.from_numpy(text.held_out.target_NT)[:, -1:]
    wanted = torch.nn.functional.cross_entropy(logits_NTV.transpose(1, 2), target_NT)
    assert loss.value == pytest.approx(float(wanted), rel=1e-5)
    rows = {(row.metric, row.component): row for row in logit_lens(model, cut)}
    assert rows["logit_lens", "layer 1"].value == pytest.approx(loss.value, rel=1e-5)


def test_a_head_whose_values_are_zero_has_no_effect() -> None:
    made = network("transformer")
    with torch.no_grad():
        attention = made.get_submodule("layers.0.self_attn")
        attention.in_proj_weight[2 * 8 : 2 * 8 + 4] = 0  # pyright: ignore
        attention.in_proj_bias[2 * 8 : 2 * 8 + 4] = 0  # pyright: ignore
    rows = {row.component: row for row in head_ablation(Observed(0, made), some_text())}
    assert rows["L0H0"].value == 0
    assert {name for name, row in rows.items() if row.value} == {"L0H1", "L1H0", "L1H1"}
