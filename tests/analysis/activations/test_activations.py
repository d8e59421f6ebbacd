"""Activation statistics: any split merges to the whole, which equals a slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from merge_law import Split, check_merge_law, splits
from torch.nn import functional as F

from analysis.activations import quantities
from analysis.activations.quantities import measure, require_entry, units_of
from analysis.activations.scores import (
    By,
    MeasureActivations,
    Statistics,
    activation_scores,
    activation_statistics,
)
from capture.errors import UnitError
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel, Layer, ModelConfig, fresh_model

TINY = ModelConfig(layers=2, width=12, hidden=10, heads=3)
VOCABULARY, WINDOW, DATUMS = 17, 6, 30
UNITS = {f"layers.{i}.linear{j}.weight": 12 if j == 1 else 10 for i in (0, 1) for j in (1, 2)}
MODEL = fresh_model(TINY, vocabulary=VOCABULARY, window=WINDOW, seed=0).eval()
RNG = np.random.default_rng(0)
TOKEN_NT = RNG.integers(VOCABULARY - 2, size=(DATUMS, WINDOW)).astype(np.int32)
TARGET_NT = RNG.integers(VOCABULARY - 1, size=(DATUMS, WINDOW)).astype(np.int32)


@torch.no_grad()
def slow_inputs(model: LanguageModel, token_NT: np.ndarray) -> dict[str, np.ndarray]:
    """Return the inputs of every unit, by the layers' arithmetic written out datum by datum."""
    found: dict[str, list[np.ndarray]] = {unit: [] for unit in units_of(model)}
    for token_T in token_NT:
        token_1T = torch.from_numpy(token_T).long()[None]
        x_1TD = model.encoder(token_1T) * model.config.width**0.5 + model.positions_TD
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            x_1TD = layer.norm1(x_1TD + layer.self_attn(x_1TD, Masks.none()))
            hidden_1TF = F.relu(F.linear(x_1TD, layer.linear1.weight, layer.linear1.bias))
            found[f"layers.{number}.linear1.weight"].append(x_1TD[0].numpy())
            found[f"layers.{number}.linear2.weight"].append(hidden_1TF[0].numpy())
            x_1TD = layer.norm2(x_1TD + layer.linear2(hidden_1TF))
    return {unit: np.stack(datums) for unit, datums in found.items()}


def assert_alike(
    found: Statistics, wanted: Statistics, rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    for name, value in vars(wanted).items():
        np.testing.assert_allclose(vars(found)[name], value, rtol, atol, err_msg=name)


# --- laws -----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(split=splits(DATUMS, min_rows=DATUMS, first_cut=1))
def test_merging_any_split_in_any_order_equals_the_whole(split: Split) -> None:
    job = MeasureActivations(MODEL, tuple(UNITS), VOCABULARY)

    def assert_same(merged: dict[str, Statistics], whole: dict[str, Statistics]) -> None:
        for unit in UNITS:
            # A forward pass of another number of datums differs in the last bits of float32.
            assert_alike(merged[unit], whole[unit], rtol=1e-4, atol=1e-5)

    def map_part(part: slice) -> object:
        return job.map_block(TOKEN_NT[part], TARGET_NT[part])

    check_merge_law(job, split, map_part, assert_same)


def test_merging_leaves_both_partials_unchanged() -> None:
    job = MeasureActivations(MODEL, tuple(UNITS), VOCABULARY)
    a, b = (job.map_block(TOKEN_NT[half], TARGET_NT[half]) for half in (slice(9), slice(9, 20)))
    before = job.finish(a)
    job.merge(a, b)
    for unit, stats in job.finish(a).items():
        assert_alike(stats, before[unit])


def test_the_number_of_datums_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = activation_statistics(MODEL, TOKEN_NT, TARGET_NT, VOCABULARY)
    monkeypatch.setattr(quantities, "DATUMS_AT_ONCE", 7)
    for unit, stats in activation_statistics(MODEL, TOKEN_NT, TARGET_NT, VOCABULARY).items():
        assert_alike(stats, whole[unit], rtol=1e-4, atol=1e-5)


# --- against a slow reference ---------------------------------------------------------------------


def test_activations_equal_the_layers_arithmetic() -> None:
    found = measure(MODEL, TOKEN_NT, list(UNITS))
    for unit, wanted_NTI in slow_inputs(MODEL, TOKEN_NT).items():
        assert found[unit].dtype == np.float32
        np.testing.assert_allclose(found[unit], wanted_NTI, atol=1e-5)


@pytest.mark.parametrize("by", ["target", "input"])
def test_statistics_equal_those_of_each_tokens_positions(by: By) -> None:
    found = activation_statistics(MODEL, TOKEN_NT, TARGET_NT, VOCABULARY, by)
    label_NT = TARGET_NT if by == "target" else TOKEN_NT
    assert list(found) == list(UNITS)
    for unit, x_NTI in measure(MODEL, TOKEN_NT, list(UNITS)).items():
        stats, size = found[unit], UNITS[unit]
        assert stats.count_V.dtype == np.int64
        assert stats.count_V.sum() == label_NT.size
        for token in range(VOCABULARY):
            x_MI = x_NTI[label_NT == token].astype(np.float64)
            assert stats.count_V[token] == len(x_MI)
            none = np.full(size, np.nan)
            functions = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
            for name, function in functions.items():
                wanted_I = function(x_MI, axis=0) if len(x_MI) else none
                found_I = vars(stats)[f"{name}_VI"][token]
                np.testing.assert_allclose(found_I, wanted_I, rtol=1e-5, atol=1e-6)


def test_positions_without_a_label_are_left_out() -> None:
    job = MeasureActivations(MODEL, tuple(UNITS), 1)
    only = job.finish(job.map_block(TOKEN_NT, np.where(TARGET_NT == 3, 0, -1)))
    nothing = job.finish(job.map_block(TOKEN_NT, np.full_like(TARGET_NT, -1)))
    for unit, stats in activation_statistics(MODEL, TOKEN_NT, TARGET_NT, VOCABULARY).items():
        own = {name: value[[3]] for name, value in vars(stats).items()}
        assert_alike(only[unit], Statistics(**own))
        assert nothing[unit].count_V == 0
        assert np.isnan(nothing[unit].max_VI).all()


def test_one_unit_can_be_measured_alone() -> None:
    unit = "layers.1.linear2.weight"
    every = activation_statistics(MODEL, TOKEN_NT, TARGET_NT, VOCABULARY)
    alone = activation_statistics(MODEL, TOKEN_NT, TARGET_NT, VOCABULARY, units=[unit])
    assert list(alone) == [unit]
    assert_alike(alone[unit], every[unit])


def test_a_constant_neuron_has_a_deviation_of_exactly_zero() -> None:
    model = fresh_model(TINY, vocabulary=VOCABULARY, window=WINDOW, seed=0).eval()
    layer = model.layers[1]
    assert isinstance(layer, Layer)
    with torch.no_grad():
        layer.linear1.weight[4] = 0
        layer.linear1.bias[4] = 1 / 3
    stats = activation_statistics(model, TOKEN_NT, TARGET_NT, VOCABULARY)[list(UNITS)[-1]]
    assert (stats.std_VI[stats.count_V > 0, 4] == 0).all()
    assert (activation_scores(stats)[:, 4] == 0).all()


def test_scores_are_distances_from_the_overall_mean_in_overall_deviations() -> None:
    found = activation_statistics(MODEL, TOKEN_NT, TARGET_NT, VOCABULARY)
    for unit, x_NTI in measure(MODEL, TOKEN_NT, list(UNITS)).items():
        x_MI = x_NTI.reshape(-1, UNITS[unit]).astype(np.float64)
        score_VI = activation_scores(found[unit])
        assert score_VI.shape == (VOCABULARY, UNITS[unit])
        for token in range(VOCABULARY):
            own_MI = x_MI[TARGET_NT.ravel() == token]
            away_I = np.abs(own_MI.mean(0) - x_MI.mean(0)) if len(own_MI) else 0 * x_MI[0]
            wanted_I = away_I / np.where(x_MI.std(0) > 0, x_MI.std(0), 1)
            np.testing.assert_allclose(score_VI[token], wanted_I, rtol=1e-4, atol=1e-5)


def test_progress_is_reported_in_datums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantities, "DATUMS_AT_ONCE", 12)
    reports: list[tuple[int, int]] = []
    activation_statistics(
        MODEL, TOKEN_NT, TARGET_NT, VOCABULARY, report=lambda *seen: reports.append(seen)
    )
    assert reports == [(12, 30), (24, 30), (30, 30)]


# --- neurons --------------------------------------------------------------------------------------


def test_the_units_are_those_of_the_model() -> None:
    assert units_of(MODEL) == UNITS
    for unit, size in UNITS.items():
        assert MODEL.get_parameter(unit).shape[1] == size


@pytest.mark.parametrize(
    ("unit", "neuron", "text"),
    [
        (
            "decoder.weight",
            0,
            "decoder.weight: has no neurons. Did you mean layers.1.linear2.weight.",
        ),
        (
            "layers.1.linear2.weight",
            10,
            "layers.1.linear2.weight neuron 10: does not exist: the unit's neurons are 0 to 9.",
        ),
    ],
)
def test_an_unknown_neuron_is_named(unit: str, neuron: int, text: str) -> None:
    with pytest.raises(UnitError) as caught:
        require_entry(MODEL, unit, neuron)
    assert str(caught.value) == text
