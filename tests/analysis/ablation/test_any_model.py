"""Ablating any model with known parts equals naive forward passes, family by family."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from reference_parts import log_probabilities, naive_logits, plain_logits, some_subjects
from tiny_families import VOCABULARY, WINDOW, families, tiny_model

from analysis.ablation import log_probability, replacement
from analysis.ablation.ablatable import all_subjects, require_subjects, units_of
from analysis.ablation.any_model import passes
from analysis.ablation.forward import ablated_predictions
from analysis.ablation.log_probability import log_probability_changes
from analysis.ablation.replacement import VALUES, AblationPlan, ResamplingSources, Value
from analysis.ablation.subjects import LEVELS, Subject
from capture.errors import UnitError
from capture.parts import Parted, parted

NUM_DATUMS = 5


def some_text(seed: int = 0, num_datums: int = NUM_DATUMS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(VOCABULARY, size=(num_datums, WINDOW)).astype(np.int32)


@cache
def of_family(name: str) -> Parted:
    """Return a tiny model with large random weights, so that ablation changes much."""
    network = tiny_model(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 if parameter.dim() > 1 else 0.2
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return parted(network.requires_grad_(False), torch.from_numpy(some_text()).long())


def subjects_of(model: Parted) -> list[Subject]:
    return some_subjects(model, {level: units_of(model, level) for level in LEVELS})


def changes(model: Parted, subjects: list[Subject], value: Value, **more: Any) -> np.ndarray:
    return log_probability_changes(
        model, some_text(), some_text(1), subjects, value=value, num_tokens=VOCABULARY, **more
    ).change_SV


@pytest.mark.parametrize("name", families())
def test_silencing_equals_zero_weights(name: str) -> None:
    model, token_NT, target_NT = of_family(name), some_text(), some_text(1)
    subjects = subjects_of(model)
    change_SV = changes(model, subjects, "zero")
    assert (change_SV != 0).any(1).mean() > 0.8
    check(model, subjects, change_SV, "zero", token_NT, target_NT)


@pytest.mark.parametrize("value", ["mean", "resample"])
@pytest.mark.parametrize(
    "name",
    ["gpt2", pytest.param("llama", marks=pytest.mark.slow), "gemma2", "position first, by hand"],
)
def test_other_values_equal_a_hook_that_puts_them(name: str, value: Value) -> None:
    model = of_family(name)
    subjects = subjects_of(model)
    check(model, subjects, changes(model, subjects, value), value, some_text(), some_text(1))


def check(
    model: Parted,
    subjects: list[Subject],
    change_SV: np.ndarray,
    value: Value,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
) -> None:
    clean_NT = log_probabilities(plain_logits(model.network, token_NT), target_NT)
    sources = ResamplingSources.draw(token_NT.shape, 0)
    for s, subject in enumerate(subjects):
        after = naive_logits(model, subject, token_NT, value, sources)
        wanted_V = np.zeros(VOCABULARY)
        np.add.at(wanted_V, target_NT, log_probabilities(after, target_NT) - clean_NT)
        tolerance = {"atol": 2e-4, "rtol": 2e-4, "err_msg": str(subject)}
        np.testing.assert_allclose(change_SV[s], wanted_V, **tolerance)


@pytest.mark.parametrize("name", ["gpt2", "cohere"])
def test_predictions_equal_those_of_naive_passes(name: str) -> None:
    model, token_NT = of_family(name), some_text()
    subjects = all_subjects(model, "head")
    plan = AblationPlan.of(model, token_NT, subjects, "zero", token_NT)
    everything = np.arange(NUM_DATUMS)
    found = ablated_predictions(model, token_NT, plan, [everything] * len(subjects))
    sources = ResamplingSources.draw(token_NT.shape, 0)
    for number, subject in enumerate(subjects):
        after_NT = found.before(everything).copy()
        own = found.changes.subject_M == number
        where = found.changes.datum_M[own], found.changes.position_M[own]
        after_NT[where] = found.changes.after_M[own]
        wanted = naive_logits(model, subject, token_NT, "zero", sources).argmax(2)
        assert np.array_equal(after_NT, wanted), subject


@pytest.mark.parametrize("value", VALUES)
def test_neither_chunks_nor_whole_passes_change_anything(
    value: Value, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_family("llama")
    subjects = subjects_of(model)
    whole_SV = changes(model, subjects, value)
    monkeypatch.setattr(log_probability, "DATUMS_AT_ONCE", 2)
    monkeypatch.setattr(replacement, "DATUMS_AT_ONCE", 3)
    monkeypatch.setattr(passes, "POSITIONS_AT_ONCE", 15)
    np.testing.assert_allclose(changes(model, subjects, value), whole_SV, atol=1e-4, rtol=1e-4)


def test_layers_below_the_subject_run_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_family("gpt2")
    calls = [0, 0]
    layers = [model.network.get_submodule(name) for name in model.parts.layers]
    unit = "transformer.h.1.mlp.c_proj.weight"
    subjects = [Subject(unit, n) for n in range(6)]

    def count(number: int) -> Any:
        def hook(*_: Any) -> None:
            calls[number] += 1

        return hook

    monkeypatch.setattr(passes, "POSITIONS_AT_ONCE", NUM_DATUMS * WINDOW)
    norms = [layer.get_submodule("ln_1") for layer in layers]
    hooks = [norm.register_forward_hook(count(n)) for n, norm in enumerate(norms)]
    changes(model, subjects, "zero")
    for hook in hooks:
        hook.remove()
    assert calls[0] == 2  # the text, and a few tokens for the bias of the unembedding
    assert calls[1] >= 1 + len(subjects)


def test_neurons_and_heads_are_numbered_as_in_transformer_lens() -> None:
    model = of_family("llama")
    assert model.parts.mlp_out == tuple(f"model.layers.{n}.mlp.down_proj.weight" for n in (0, 1))
    assert units_of(model, "head") == {f"model.layers.{n}.self_attn": 4 for n in (0, 1)}
    assert units_of(model, "neuron")["model.layers.1.mlp.down_proj.weight"] == 24


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        (
            Subject("transformer.h.0.mlp.c_prj.weight", 0),
            "transformer.h.0.mlp.c_prj.weight: has no neurons. Did you mean transformer.h.0.mlp.",
        ),
        (
            Subject("transformer.h.1.attn", 4, "head"),
            "transformer.h.1.attn head 4: does not exist: the unit's heads are 0 to 3.",
        ),
    ],
)
def test_a_subject_that_the_model_lacks_is_one_line(subject: Subject, text: str) -> None:
    with pytest.raises(UnitError) as found:
        require_subjects(of_family("gpt2"), [subject])
    assert str(found.value).startswith(text)


def test_a_model_without_heads_says_what_was_looked_for() -> None:
    model = of_family("no layers, by hand")
    with pytest.raises(UnitError, match=r"has no heads. Looked for an attention module in each"):
        require_subjects(model, [Subject("attn", 0, "head")])
