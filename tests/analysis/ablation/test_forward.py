"""Predictions under ablation equal those of a naive forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_ablation import (
    UNITS,
    VOCABULARY,
    WINDOW,
    ablated_logits,
    predictions,
    random_model,
    some_subjects,
    without,
)
from tiny_run import tiny_run
from torch import nn

from analysis.ablation import prediction, propagation, unembedding
from analysis.ablation.forward import AblatedPredictions, ablated_predictions
from analysis.ablation.prediction import Prediction
from analysis.ablation.replacement import (
    DATUMS_AT_ONCE,
    VALUES,
    AblationPlan,
    ResamplingSources,
    Value,
)
from analysis.ablation.subjects import Subject
from analysis.ablation.unembedding import Unembedding
from analysis.run.run import open_run
from capture.models.transformer import LanguageModel


def ablated(
    model: LanguageModel,
    token_NT: np.ndarray,
    subjects: list[Subject],
    datums: list[np.ndarray],
    value: Value = "zero",
) -> AblatedPredictions:
    plan = AblationPlan.of(model, token_NT, subjects, value, token_NT)
    return ablated_predictions(model, token_NT, plan, datums)


def after(found: AblatedPredictions, number: int, datum_K: np.ndarray) -> np.ndarray:
    """Return the predictions of a subject's datums with the subject ablated, [K, T]."""
    after_KT, changes = found.before(datum_K).copy(), found.changes
    for m in np.flatnonzero(changes.subject_M == number):
        row = datum_K.tolist().index(changes.datum_M[m])
        after_KT[row, changes.position_M[m]] = changes.after_M[m]
    return after_KT


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("seed", "scale"), [(0, 0.5), (1, 1.5), (2, 5.0)])
def test_ablation_equals_a_naive_forward_pass(
    value: Value, seed: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "NUM_CANDIDATES", 3)
    rng = np.random.default_rng(seed)
    model, subjects = random_model(seed, scale), some_subjects()
    token_NT = rng.integers(VOCABULARY, size=(20, WINDOW)).astype(np.int32)
    sources = ResamplingSources.draw(token_NT.shape, 0)
    datums = [rng.choice(20, rng.integers(1, 20), replace=False) for _ in subjects]
    found = ablated(model, token_NT, subjects, datums, value)
    assert len(found.changes.subject_M) > 0
    for number, (subject, datum_K) in enumerate(zip(subjects, datums, strict=True)):
        assert np.array_equal(found.before(datum_K), predictions(model, token_NT[datum_K]))
        wanted = ablated_logits(
            model, subject, token_NT, value=value, text_NT=token_NT, sources=sources
        ).argmax(2)
        assert np.array_equal(after(found, number, datum_K), wanted[datum_K]), subject


def test_ablating_a_trained_model_equals_a_naive_forward_pass() -> None:
    run = open_run(tiny_run())
    model, token_NT = run.model(), run.token_NT
    subjects = [Subject(unit, column) for unit in UNITS for column in range(0, 12, 4)]
    everything = np.arange(run.num_datums)
    found = ablated(model, token_NT, subjects, [everything] * len(subjects))
    assert found.certified == 1.0  # its vocabulary is smaller than the number of candidates
    for number, subject in enumerate(subjects):
        wanted = predictions(without(model, subject), token_NT)
        assert np.array_equal(after(found, number, everything), wanted)


def test_the_division_into_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more datums than a chunk holds, and each neuron has datums in each chunk."""
    monkeypatch.setattr(unembedding, "LOGIT_BYTES", 4 * VOCABULARY * 50)
    monkeypatch.setattr(propagation, "POSITIONS_AT_ONCE", 100)
    rng, num_datums = np.random.default_rng(0), 2 * DATUMS_AT_ONCE + 9
    model = random_model(0, 3.0)
    token_NT = rng.integers(VOCABULARY, size=(num_datums, WINDOW)).astype(np.int32)
    subjects, datum_K = [Subject(UNITS[3], 2), Subject(UNITS[0], 5)], rng.permutation(num_datums)
    reports: list[tuple[int, int]] = []
    plan = AblationPlan.of(model, token_NT, subjects, "zero", token_NT)
    datums = [datum_K, datum_K[:200]]
    found = ablated_predictions(model, token_NT, plan, datums, lambda *done: reports.append(done))
    assert reports[-1] == (num_datums + 200, num_datums + 200)
    assert len(reports) == 3
    wanted = predictions(without(model, subjects[0]), token_NT[datum_K])
    assert np.array_equal(after(found, 0, datum_K), wanted)
    changes = found.changes
    order = np.lexsort((changes.position_M, changes.datum_M, changes.subject_M))
    assert np.array_equal(order, np.arange(len(order)))


@given(
    seed=st.integers(0, 10**6),
    weight=st.sampled_from([0.1, 1.0, 30.0]),
    move=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0]),
    candidates=st.sampled_from([2, 5, 19, 40]),
)
@settings(max_examples=60)
def test_predictions_at_changed_hidden_states_are_exact(
    seed: int, weight: float, move: float, candidates: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    decoder = nn.Linear(8, 19)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(prediction, "NUM_CANDIDATES", candidates)
        decoder.weight.normal_(generator=generator).mul_(weight)
        decoder.bias.normal_(generator=generator)
        hidden_MD = torch.randn(50, 8, generator=generator)
        index_L = torch.randint(50, (70,), generator=generator)
        moved_LD = hidden_MD[index_L] + move * torch.randn(70, 8, generator=generator)
        unembedding = Unembedding(decoder.weight, decoder.bias)
        before = Prediction.of(unembedding, hidden_MD)
        after_L, num_full = before.after(unembedding, index_L, moved_LD)
        wanted_L = decoder(moved_LD).argmax(1)
    assert torch.equal(before.token_M, decoder(hidden_MD).argmax(1))
    assert torch.equal(after_L, wanted_L)
    if move <= 1e-6 or candidates >= 19:
        assert num_full <= 7


def test_top_tokens_have_the_highest_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unembedding, "LOGIT_BYTES", 4 * 19 * 7)  # seven rows at once
    torch.manual_seed(0)
    decoder, hidden_MD = nn.Linear(8, 19).requires_grad_(False), torch.randn(50, 8)
    top = decoder(hidden_MD).topk(4, dim=1)
    token_MK, behind_MK = Unembedding(decoder.weight, decoder.bias).top_tokens(hidden_MD, 4)
    assert torch.equal(token_MK, top.indices)
    torch.testing.assert_close(behind_MK, top.values[:, :1] - top.values)
    among_MK = top.indices[:, 1:].sort(1).values
    assert torch.equal(
        Unembedding(decoder.weight, decoder.bias).predict_one_of(among_MK, hidden_MD),
        top.indices[:, 1],
    )
