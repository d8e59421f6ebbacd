"""Sizes, changes, similarity and noise: closed forms, invariances and slow references."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from analysis.trajectory.metrics.noise import (
    gradient_noise,
    noise_scale,
    square_of,
    squares_and_mean,
)
from analysis.trajectory.metrics.similarity import Centred, representation_similarity
from analysis.trajectory.metrics.weights import weight_changes, weight_sizes
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, Windows
from capture.models.transformer import ModelConfig, fresh_model

V, T = 20, 6
NO_TEXT = Text(V, T, None, None, [])


def with_weights(**values: list[float]) -> Observed:
    weights = {name: torch.tensor(value) for name, value in values.items()}
    return SimpleNamespace(weights=weights, before=None)  # pyright: ignore[reportReturnType]


def test_sizes_of_weights() -> None:
    rows = weight_sizes(with_weights(a=[3.0, -4.0], b=[12.0]), NO_TEXT)
    found = {(row.metric, row.component): (row.value, row.n) for row in rows}
    assert found["weight_norm", "a"] == (5, 2)
    assert found["weight_mean", "a"] == (-0.5, 2)
    assert found["weight_variance", "a"] == (12.25, 2)
    assert found["weight_norm", ""] == (13, 3)


def test_changes_of_weights_and_their_direction() -> None:
    first, second = with_weights(a=[0.0, 0.0], b=[1.0]), with_weights(a=[3.0, 4.0], b=[1.0])
    third = with_weights(a=[3.0, 9.0], b=[1.0])
    assert list(weight_changes(first, NO_TEXT)) == []
    second.before = first
    rows = list(weight_changes(second, NO_TEXT))
    norms = {(row.component, row.value) for row in rows if row.metric == "update_norm"}
    assert norms == {("a", 5), ("b", 0), ("", 5)}
    others = {(row.metric, row.component): row.value for row in rows}
    assert others["update_mean", "a"] == 3.5
    assert others["update_variance", "a"] == 0.25
    third.before = second
    rows = weight_changes(third, NO_TEXT)
    found = {(row.metric, row.component): row.value for row in rows}
    assert found["update_cosine", "a"] == found["update_cosine", ""] == pytest.approx(0.8)
    assert np.isnan(found["update_cosine", "b"])


# --- similarity -----------------------------------------------------------------------------------


def linear_cka(one_MD: np.ndarray, other_MD: np.ndarray) -> float:
    return Centred.of(one_MD).similarity(Centred.of(other_MD))


@given(seed=st.integers(0, 50), scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_cka_ignores_rotation_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x, scale * x @ rotation + shift) == pytest.approx(1)
    y = rng.normal(size=(40, 4))
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
    assert 0 <= linear_cka(x, y) < 1


def test_cka_is_the_normalised_hsic_of_linear_kernels() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 3))
    centre = np.eye(30) - 1 / 30

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(k @ centre @ m @ centre))

    k, m = x @ x.T, y @ y.T
    assert linear_cka(x, y) == pytest.approx(hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5)


def test_a_model_is_like_itself_and_its_null_is_low() -> None:
    config = ModelConfig(layers=1, width=8, hidden=8, heads=2)
    network = fresh_model(config, vocabulary=V, window=T, seed=0).eval()
    token_NM = np.random.default_rng(0).integers(0, V, (60, T + 1))
    text = Text(V, T, Windows(token_NM[:, :-1], token_NM[:, 1:]), None, [])
    model = Observed(1, network, Observed(0, network))
    rows = {(row.metric, row.component): row for row in representation_similarity(model, text)}
    assert rows["cka_before", "layer 0"].value == pytest.approx(1)
    assert rows["cka_before", "layer 0"].null < 0.1
    assert 0.1 < rows["cka_layers", "embedding ~ layer 0"].value < 1


# --- noise ----------------------------------------------------------------------------------------


def test_the_noise_scale_of_gaussian_gradients_is_found() -> None:
    rng = np.random.default_rng(0)
    truth, found = 40 * 0.25 / 9, []  # tr Σ / ‖G‖² of 40 entries of variance ¼ around norm 3
    mean = np.zeros(40)
    mean[0] = 3
    for _ in range(50):
        each = mean + 0.5 * rng.normal(size=(64, 40))
        found.append(noise_scale((each**2).sum(1), float((each.mean(0) ** 2).sum())))
    assert np.mean(found) == pytest.approx(truth, rel=0.03)


def test_identical_datums_have_no_noise_and_pure_noise_has_no_scale() -> None:
    assert noise_scale(np.array([4.0, 4.0]), 4.0) == 0
    assert np.isnan(noise_scale(np.array([4.0, 4.0]), 0.0))


def test_gradients_of_datums_are_those_of_a_plain_backward_pass() -> None:
    config = ModelConfig(layers=1, width=8, hidden=8, heads=2)
    network = fresh_model(config, vocabulary=V, window=T, seed=0).eval().requires_grad_(False)
    token_NM = np.random.default_rng(0).integers(0, V, (5, T + 1))
    windows = Windows(token_NM[:, :-1], token_NM[:, 1:])
    square_N, mean = squares_and_mean(network, windows, torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network.requires_grad_(True)
    logits_NTV = network(torch.from_numpy(windows.token_NT))
    F.cross_entropy(
        logits_NTV.flatten(0, 1), torch.from_numpy(windows.target_NT).flatten()
    ).backward()
    whole = sum(float(parameter.grad.square().sum()) for parameter in network.parameters())  # pyright: ignore
    assert square_of(mean) == pytest.approx(whole, rel=1e-5)
    assert len(square_N) == 5
    rows = list(gradient_noise(Observed(0, network), Text(V, T, None, windows, [])))
    assert rows[0].value == pytest.approx(np.sqrt(square_N).mean())
    own = {(row.metric, row.component): row.value for row in rows}
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        wanted = {"size": gradient.norm(), "mean": gradient.mean()}
        wanted["variance"] = gradient.var(correction=0)
        for kind, value in wanted.items():
            found = own[f"gradient_{kind}", name]
            assert found == pytest.approx(float(value), rel=1e-3, abs=1e-7)
