"""Ablation: the fast way says what a naive forward pass says; its tables count what happened."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analysis import ablation
from analysis.ablation import Ablation, AblationConfig, ablate, choose_neurons, write_ablation
from analysis.attribution import AttributionConfig, attribute, write_attribution
from analysis.flips import context, layer_table, place_in_run
from analysis.run import Run, open_run
from analysis.silencing import DATUMS_AT_ONCE, Neuron, Silencing, silence
from analysis.tables import read_table
from analysis.unembedding import Unembedding
from capture.errors import ConfigError, RunError, UnitError
from capture.model import LanguageModel, ModelConfig, fresh_model
from cluster.local import run_job
from reference_analysis import flips_by_token, predictions, predictions_without, records
from tiny_run import copied, tiny_run

TINY = ModelConfig(layers=2, width=12, hidden=10, heads=3)
UNITS = [f"layers.{layer}.linear{i}.weight" for layer in range(2) for i in (1, 2)]
VOCABULARY, WINDOW = 31, 6


def random_model(seed: int, scale: float) -> LanguageModel:
    """Fresh weights, the layers' multiplied by ``scale``: the larger, the more predictions flip."""
    model = fresh_model(TINY, vocabulary=VOCABULARY, window=WINDOW, seed=seed).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "linear" in name or "decoder" in name:
                parameter.mul_(scale)
    return model.requires_grad_(False)


def after(found: Silencing, place: int, datum_K: np.ndarray) -> np.ndarray:
    """Predictions of a neuron's datums once it is silenced, [K, T]."""
    after_KT, changes = found.before(datum_K).copy(), found.changes
    for m in np.flatnonzero(changes.neuron_M == place):
        row = datum_K.tolist().index(changes.datum_M[m])
        after_KT[row, changes.position_M[m]] = changes.after_M[m]
    return after_KT


# --- the fast way is the naive way ----------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_silencing_equals_a_naive_forward_pass(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(seed, scale)
    token_NT = rng.integers(VOCABULARY, size=(40, WINDOW)).astype(np.int32)
    neurons = [Neuron(unit, column) for unit in UNITS for column in (0, 3, 7, 9)]
    datums = [rng.choice(40, rng.integers(1, 40), replace=False) for _ in neurons]
    found = silence(model, token_NT, neurons, datums)
    assert len(found.changes.neuron_M) > 0
    for place, (neuron, datum_K) in enumerate(zip(neurons, datums, strict=True)):
        assert np.array_equal(found.before(datum_K), predictions(model, token_NT[datum_K]))
        wanted = predictions_without(model, neuron, token_NT[datum_K])
        assert np.array_equal(after(found, place, datum_K), wanted)


def test_silencing_a_trained_model_equals_a_naive_forward_pass() -> None:
    run = open_run(tiny_run())
    model, token_NT = run.model(), run.token_NT
    neurons = [Neuron(unit, column) for unit in UNITS for column in range(0, 12, 4)]
    everything = np.arange(run.num_datums)
    found = silence(model, token_NT, neurons, [everything] * len(neurons))
    assert found.certified > 0.2
    for place, neuron in enumerate(neurons):
        wanted = predictions_without(model, neuron, token_NT)
        assert np.array_equal(after(found, place, everything), wanted)


def test_how_datums_fall_into_chunks_does_not_matter() -> None:
    """More datums than are held at once, and every neuron has some in each chunk."""
    rng, num_datums = np.random.default_rng(0), 2 * DATUMS_AT_ONCE + 9
    model = random_model(0, 3.0)
    token_NT = rng.integers(VOCABULARY, size=(num_datums, WINDOW)).astype(np.int32)
    neurons, datum_K = [Neuron(UNITS[3], 2), Neuron(UNITS[0], 5)], rng.permutation(num_datums)
    told: list[tuple[int, int]] = []
    found = silence(
        model, token_NT, neurons, [datum_K, datum_K[:200]], lambda *done: told.append(done)
    )
    assert told[-1] == (num_datums + 200, num_datums + 200)
    assert len(told) == 3
    assert np.array_equal(
        after(found, 0, datum_K), predictions_without(model, neurons[0], token_NT[datum_K])
    )
    changes = found.changes
    order = np.lexsort((changes.position_M, changes.datum_M, changes.neuron_M))
    assert np.array_equal(order, np.arange(len(order)))


@given(
    seed=st.integers(0, 10**6),
    weight=st.sampled_from([0.1, 1.0, 30.0]),
    move=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0]),
)
@settings(max_examples=60)
def test_what_is_certain_is_so(seed: int, weight: float, move: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    decoder = nn.Linear(8, 19)
    with torch.no_grad():
        decoder.weight.normal_(generator=generator).mul_(weight)
        decoder.bias.normal_(generator=generator)
        hidden_MD = torch.randn(50, 8, generator=generator)
        moved_MD = hidden_MD + move * torch.randn(50, 8, generator=generator)
        unembedding = Unembedding(decoder)
        token_M, margin_M = unembedding.predict_with_margin(hidden_MD)
        distance_M = (moved_MD - hidden_MD).norm(dim=1)
        certain_M = unembedding.certain(token_M, margin_M, hidden_MD, distance_M)
        stands_M = decoder(moved_MD).argmax(1) == token_M
    assert torch.equal(token_M, decoder(hidden_MD).argmax(1))
    assert stands_M[certain_M].all()
    if move <= 1e-6:
        assert certain_M.float().mean() > 0.9


def test_margins_are_those_between_the_two_highest_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.unembedding.LOGIT_BYTES", 4 * 19 * 7)  # seven rows at once
    torch.manual_seed(0)
    decoder, hidden_MD = nn.Linear(8, 19).requires_grad_(False), torch.randn(50, 8)
    top = decoder(hidden_MD).topk(2, dim=1)
    token_M, margin_M = Unembedding(decoder).predict_with_margin(hidden_MD)
    assert torch.equal(token_M, top.indices[:, 0])
    torch.testing.assert_close(margin_M, top.values[:, 0] - top.values[:, 1])


@pytest.mark.parametrize(
    ("neuron", "text"),
    [
        (
            Neuron("layers.0.norm1.weight", 0),
            f"layers.0.norm1.weight: has no neurons. Units that have: {', '.join(UNITS)}.",
        ),
        (
            Neuron(UNITS[1], 10),
            "layers.0.linear2.weight neuron 10: does not exist: the unit's neurons are 0 to 9.",
        ),
    ],
)
def test_a_neuron_that_is_not_there_is_refused(neuron: Neuron, text: str) -> None:
    token_NT = np.zeros((1, WINDOW), np.int32)
    with pytest.raises(UnitError) as caught:
        silence(random_model(0, 1.0), token_NT, [neuron], [np.arange(1)])
    assert str(caught.value) == text


# --- tables ---------------------------------------------------------------------------------------


ATTRIBUTION = AttributionConfig(min_count=8, max_parameters=300)
CONFIG = AblationConfig(max_neurons=9, max_datums=20, contexts_per_token=2)


@functools.cache
def ablated() -> tuple[Run, Ablation]:
    run = open_run(copied(tiny_run(), "memory://ablation").uri)
    write_attribution(run, attribute(run, run_job, ATTRIBUTION))
    return run, ablate(run, CONFIG)


def evaluated_datums(run: Run, unit: str, neuron: int) -> list[int]:
    datums = attribute(run, run_job, ATTRIBUTION).datums
    own = datums[(datums["unit"] == unit) & (datums["neuron"] == neuron)]
    return own["datum"].tolist()[: CONFIG.max_datums]


def test_the_strongest_neurons_with_notable_tokens_are_silenced() -> None:
    run, found = ablated()
    summary = attribute(run, run_job, ATTRIBUTION).summary
    wanted = summary[summary["tokens"].map(len) > 0].head(CONFIG.max_neurons)
    for column in ("unit", "neuron"):
        assert found.neurons[column].tolist() == wanted[column].tolist()
    assert found.neurons["datums"].max() == CONFIG.max_datums


def test_flip_tables_equal_counting_position_by_position() -> None:
    run, found = ablated()
    assert found.flips["flips"].sum() > 0
    for neuron in records(found.neurons):
        token_NT = run.token_NT[evaluated_datums(run, neuron.unit, neuron.neuron)]
        before_KT = predictions(run.model(), token_NT)
        after_KT = predictions_without(run.model(), Neuron(neuron.unit, neuron.neuron), token_NT)
        wanted = flips_by_token(before_KT, after_KT, run.tokens)
        own = found.flips.query("unit == @neuron.unit and neuron == @neuron.neuron")
        counts = zip(own["count"], own["flips"], strict=True)
        assert dict(zip(own["token"], counts, strict=True)) == wanted
        assert own["proportion"].tolist() == (own["flips"] / own["count"]).tolist()
        order = own.sort_values(["proportion", "count", "token_id"], ascending=[False, False, True])
        assert order.index.tolist() == own.index.tolist()
        assert neuron.flips == (before_KT != after_KT).sum()
        assert (neuron.positions, neuron.flipped_tokens) == (before_KT.size, len(own))


def test_notable_tokens_and_their_share_of_flips() -> None:
    run, found = ablated()
    for neuron, tokens in choose_neurons(run, CONFIG.max_neurons).items():
        own = found.flips.query("unit == @neuron.unit and neuron == @neuron.column")
        assert own["notable"].tolist() == own["token_id"].isin(tokens).tolist()
        summary = found.neurons.query("unit == @neuron.unit and neuron == @neuron.column").iloc[0]
        assert summary["notable_tokens"] == len(tokens)
        assert summary["notable_flipped"] == own["notable"].sum()
        token_NT = run.token_NT[evaluated_datums(run, neuron.unit, neuron.column)]
        before_KT = predictions(run.model(), token_NT)
        flips_KT = predictions_without(run.model(), neuron, token_NT) != before_KT
        notable_KT = np.isin(before_KT, tokens)
        for name, mask_KT in (("notable_share", notable_KT), ("other_share", ~notable_KT)):
            if mask_KT.any():
                assert summary[name] == pytest.approx(flips_KT[mask_KT].mean())


def test_layers_are_means_over_their_neurons() -> None:
    run, found = ablated()
    layers = layer_table(found.neurons, run.layout.names)
    assert layers["unit"].tolist() == found.layers["unit"].tolist()
    for layer in records(found.layers):
        own = found.neurons[found.neurons["unit"] == layer.unit]
        assert (layer.neurons, layer.flipped_tokens) == (len(own), own["flipped_tokens"].mean())
        shares = [n.notable_flipped / n.flipped_tokens for n in records(own) if n.flips]
        assert not shares or layer.notable_share == pytest.approx(np.mean(shares))


def test_contexts_show_the_flip_where_it_happens() -> None:
    run, found = ablated()
    assert len(found.contexts) > 0
    texts = run.datums().set_index("datum")["text"]
    for row in records(found.contexts):
        words = [*texts[row.datum].split(), run.tokens[run.target_NT[row.datum, -1]]]
        flip = f"({row.before} {row.after})"
        assert row.token in (row.before, row.after)
        assert row.before != row.after
        assert row.target == words[row.position + 1]
        head, tail = words[: row.position + 1], words[row.position + 1 :]
        assert row.context == " ".join(["…", *head, flip, *tail, "…"])
    per_token = found.contexts.groupby(["unit", "neuron", "token"]).size()
    flips = found.flips.set_index(["unit", "neuron", "token"])["flips"]
    assert per_token.to_dict() == flips.clip(upper=CONFIG.contexts_per_token).to_dict()


def test_contexts_are_of_the_most_attributed_datums() -> None:
    run, found = ablated()
    for neuron in records(found.neurons):
        datums = evaluated_datums(run, neuron.unit, neuron.neuron)
        own = found.contexts.query("unit == @neuron.unit and neuron == @neuron.neuron")
        token_NT = run.token_NT[datums]
        before_KT = predictions(run.model(), token_NT)
        after_KT = predictions_without(run.model(), Neuron(neuron.unit, neuron.neuron), token_NT)
        for token, contexts in own.groupby("token"):
            here_KT = (before_KT != after_KT) & (
                (before_KT == run.tokens.index(str(token)))
                | (after_KT == run.tokens.index(str(token)))
            )
            wanted = [(datums[k], t) for k, t in np.argwhere(here_KT)][: CONFIG.contexts_per_token]
            assert list(zip(contexts["datum"], contexts["position"], strict=True)) == wanted


def test_long_contexts_are_cut_on_both_sides() -> None:
    words = [f"w{i}" for i in range(60)]
    found = context(words, 30, "was", "were").split()
    assert found[:2] == ["…", "w11"]
    assert found[20:24] == ["w30", "(was", "were)", "w31"]
    assert found[-2:] == ["w50", "…"]


def test_places_in_runs() -> None:
    assert place_in_run(np.array([4, 4, 7, 9, 9, 9])).tolist() == [0, 1, 0, 0, 1, 2]
    assert place_in_run(np.zeros(0, int)).tolist() == []


def test_tables_are_read_as_they_were_written() -> None:
    run, found = ablated()
    write_ablation(run, found)
    for name, schema in ablation.TABLES.items():
        frame = read_table(run, "ablate", name, schema)
        assert frame.equals(getattr(found, name))
        assert frame.columns.tolist() == schema.names


# --- what cannot be ablated -----------------------------------------------------------------------


@pytest.mark.parametrize("name", AblationConfig.__dataclass_fields__)
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^ablation.{name}: got -1, must be at least 1.$"):
        AblationConfig(**{name: -1})


def nothing(run: Run) -> None:
    """No attribution at all."""


def nameless(run: Run) -> None:
    """An attribution in which no token is notable."""
    write_attribution(run, attribute(run, run_job, AttributionConfig(min_count=10**6)))


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (nothing, "has no tables of attribute. Run: ontogeny attribute memory://ablation-none."),
        (nameless, "has an attribution that names no neuron's tokens."),
    ],
)
def test_ablation_needs_an_attribution(prepare: Callable[[Run], None], problem: str) -> None:
    run = open_run(copied(tiny_run(), "memory://ablation-none").uri)
    prepare(run)
    with pytest.raises(RunError) as caught:
        ablate(run, CONFIG)
    assert str(caught.value).startswith(f"memory://ablation-none: {problem}")
