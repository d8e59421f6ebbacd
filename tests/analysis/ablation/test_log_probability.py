"""Changes of log-probabilities equal those of ordinary forward passes."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from reference_ablation import (
    TINY,
    UNITS,
    VOCABULARY,
    WINDOW,
    ablated_logits,
    hidden,
    log_probabilities,
    logits,
    random_model,
    some_subjects,
)
from torch import nn

from analysis.ablation import log_probability, propagation, replacement, unembedding
from analysis.ablation.log_probability import log_probability_changes
from analysis.ablation.propagation import trace
from analysis.ablation.replacement import VALUES, ResamplingSources, Value
from analysis.ablation.subjects import LEVELS, Subject, units_of
from analysis.ablation.unembedding import Unembedding
from capture.errors import UnitError
from capture.models.transformer import LanguageModel


def some_text(num_datums: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(VOCABULARY, size=(num_datums, WINDOW)).astype(np.int32)


def naive_changes(
    model: LanguageModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    subject: Subject,
    value: Value,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of changes and of their squares by target, both [V]."""
    sources = ResamplingSources.draw(token_NT.shape, 0)
    after = ablated_logits(model, subject, token_NT, value=value, text_NT=token_NT, sources=sources)
    change_NT = log_probabilities(after, target_NT) - log_probabilities(
        logits(model, token_NT), target_NT
    )
    change_V, square_V = np.zeros((2, VOCABULARY))
    np.add.at(change_V, target_NT.ravel(), change_NT.ravel())
    np.add.at(square_V, target_NT.ravel(), change_NT.ravel() ** 2)
    return change_V, square_V


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "changed", [{"norm": "none"}, {"hidden": 0}, {"hidden": 0, "norm": "none"}]
)
def test_the_same_holds_without_layernorm_and_without_mlps(value: Value, changed: dict) -> None:
    model = random_model(1, 1.0, replace(TINY, **changed))
    token_NT, target_NT = some_text(9), some_text(9, seed=1)
    known = {level: units_of(model, level) for level in LEVELS}
    assert ("layers.0.linear1.weight" in known["neuron"]) == ("hidden" not in changed)
    subjects = [one for one in some_subjects() if one.unit in known[one.level]]
    change_SV, _, _ = log_probability_changes(
        model, token_NT, target_NT, subjects, value=value, num_tokens=VOCABULARY
    )
    for s, subject in enumerate(subjects):
        wanted_V, _ = naive_changes(model, token_NT, target_NT, subject, value)
        np.testing.assert_allclose(
            change_SV[s], wanted_V, atol=1e-4, rtol=1e-4, err_msg=str(subject)
        )


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_changes_equal_those_of_naive_forward_passes(value: Value, scale: float) -> None:
    model, token_NT, target_NT = random_model(1, scale), some_text(17), some_text(17, seed=1)
    subjects = some_subjects()
    change_SV, square_SV, count_V = log_probability_changes(
        model, token_NT, target_NT, subjects, value=value, num_tokens=VOCABULARY
    )
    assert count_V.tolist() == np.bincount(target_NT.ravel(), minlength=VOCABULARY).tolist()
    assert (change_SV != 0).any(1).mean() > 0.9
    for s, subject in enumerate(subjects):
        wanted_V, squares_V = naive_changes(model, token_NT, target_NT, subject, value)
        close = partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4, err_msg=str(subject))
        close(change_SV[s], wanted_V)
        close(square_SV[s], squares_V)


def changes(subjects: list[Subject], value: Value, seed: int = 0) -> np.ndarray:
    model, token_NT, target_NT = random_model(1, 2.0), some_text(40), some_text(40, seed=1)
    return log_probability_changes(
        model, token_NT, target_NT, subjects, value=value, num_tokens=VOCABULARY, seed=seed
    )[0]


@pytest.mark.parametrize("value", VALUES)
def test_neither_chunks_nor_other_subjects_change_anything(
    value: Value, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = some_subjects()
    whole_SV = changes(subjects, value)
    monkeypatch.setattr(log_probability, "DATUMS_AT_ONCE", 7)
    monkeypatch.setattr(replacement, "DATUMS_AT_ONCE", 9)
    monkeypatch.setattr(propagation, "POSITIONS_AT_ONCE", 15)
    monkeypatch.setattr(unembedding, "LOGIT_BYTES", 4 * VOCABULARY * 5)
    some = subjects[::-5]
    some_SV = changes(some, value)
    wanted_SV = whole_SV[[subjects.index(subject) for subject in some]]
    np.testing.assert_allclose(some_SV, wanted_SV, atol=1e-4, rtol=1e-4)


def test_another_seed_resamples_other_values() -> None:
    subjects = [Subject(UNITS[1], 3)]
    assert not np.allclose(changes(subjects, "resample"), changes(subjects, "resample", seed=1))


def test_sources_are_other_datums_each_used_once() -> None:
    sources = ResamplingSources.draw((50, 6), 0)
    assert sorted(sources.datum_N) == list(range(50))
    assert (sources.datum_N != np.arange(50)).all()
    assert set(sources.position_NT.ravel()) == set(range(6))
    assert ResamplingSources.draw((1, 6), 0).datum_N.tolist() == [0]


def test_ablating_a_neuron_that_is_never_active_changes_nothing() -> None:
    model = random_model(0, 1.0)
    model.get_parameter("layers.1.linear1.bias")[4] = -1e3
    token_NT = some_text(9)
    subjects = [Subject("layers.1.linear2.weight", 4)]
    change_SV, *_ = log_probability_changes(
        model, token_NT, token_NT, subjects, num_tokens=VOCABULARY
    )
    assert (change_SV == 0).all()


def test_progress_is_reported() -> None:
    reports: list[tuple[int, int]] = []
    token_NT = some_text(300)
    log_probability_changes(
        random_model(0, 1.0),
        token_NT,
        token_NT,
        [Subject(UNITS[0], 0)],
        num_tokens=VOCABULARY,
        report=lambda *done: reports.append(done),
    )
    assert reports == [(done, 300) for done in range(10, 301, 10)]


def test_a_trace_ends_with_the_models_hidden_states() -> None:
    model, token_NT = random_model(0, 2.0), some_text(9)
    found = trace(model, token_NT)
    torch.testing.assert_close(found.hidden_NTD, hidden(model, token_NT))
    assert found.after(0) is found.layers[1]["attention_in"]
    assert found.after(1) is found.hidden_NTD


@pytest.mark.parametrize("off", [0.0, 3.0, 200.0, -200.0])
def test_a_wrong_guess_changes_no_probability(off: float) -> None:
    torch.manual_seed(0)
    decoder, hidden_MD = nn.Linear(8, 19).requires_grad_(False), torch.randn(50, 8)
    target_M = torch.randint(19, (50,))
    wanted_MV = decoder(hidden_MD).double().log_softmax(1)
    normaliser_M = decoder(hidden_MD).logsumexp(1)
    found = Unembedding(decoder.weight, decoder.bias).log_probability(
        hidden_MD, target_M, normaliser_M + off
    )
    wanted_M = wanted_MV.gather(1, target_M[:, None])[:, 0].float()
    torch.testing.assert_close(found[0], wanted_M, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], normaliser_M, atol=2e-5, rtol=1e-5)


def test_an_unknown_subject_is_refused() -> None:
    token_NT = some_text(1)
    with pytest.raises(UnitError, match=f"^{UNITS[1]} neuron 10: does not exist: the unit's"):
        log_probability_changes(
            random_model(0, 1.0), token_NT, token_NT, [Subject(UNITS[1], 10)], num_tokens=VOCABULARY
        )
