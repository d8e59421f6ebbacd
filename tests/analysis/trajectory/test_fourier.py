"""Progress measures of modular addition: a network of known frequencies is read exactly."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.trajectory.metrics.fourier import NUM_KEYS, SumWaves, gini, modular_waves
from analysis.trajectory.metrics.row import Row
from analysis.trajectory.observed.text import Text, Windows

P = 23
KEYS = (2, 3, 5, 7, 11)


def known(token_N3: Tensor) -> Tensor:
    """Logits Σ cos(2πk(a + b − c)/p) over five frequencies, as in the paper's network."""
    total_N = token_N3[:, 0] + token_N3[:, 1]
    angle_NV = 2 * torch.pi * (total_N[:, None] - torch.arange(P)[None]) / P
    logits_NV = sum(4.0 * torch.cos(k * angle_NV) for k in KEYS)
    assert isinstance(logits_NV, Tensor)
    return torch.cat([logits_NV, torch.full((len(total_N), 1), -9.0)], dim=1)[:, None]


def measured(logits: Any, embedding: np.ndarray) -> dict[tuple[str, str], Row]:
    pairs = np.stack([*np.divmod(np.arange(0, P * P, 3), P), np.full(177, P)], axis=1)
    text = Text(P + 1, 3, None, Windows(pairs, pairs), [], modulus=P)
    weight = nn.Parameter(torch.from_numpy(embedding))
    model: Any = SimpleNamespace(
        logits=logits, network=SimpleNamespace(encoder=SimpleNamespace(weight=weight))
    )
    return {(row.metric, row.component): row for row in modular_waves(model, text)}


def waves(frequencies: tuple[int, ...]) -> np.ndarray:
    """An embedding of cosines and sines of these frequencies."""
    angle_AK = 2 * np.pi * np.outer(np.arange(P + 1), frequencies) / P
    return np.hstack([np.cos(angle_AK), np.sin(angle_AK)])


def test_a_network_of_known_frequencies() -> None:
    found = measured(known, waves((2, 5)))
    assert found["sum_waves", ""].value == pytest.approx(1)
    for k in range(1, 12):
        wanted = 0.2 if k in KEYS else 0
        assert found["sum_waves", f"frequency {k}"].value == pytest.approx(wanted, abs=1e-6)
    assert found["restricted_loss", ""].value < 0.01
    assert found["restricted_loss", ""].null == pytest.approx(np.log(P), abs=0.01)
    assert found["excluded_loss", ""].value == pytest.approx(np.log(P), abs=0.01)
    assert found["excluded_loss", ""].null < 0.01
    assert found["embedding_gini", ""].value == pytest.approx(1 - 2 / 11)
    assert found["embedding_gini", ""].null < 0.5


def test_random_logits_are_at_the_null() -> None:
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.normal(size=(P, P, P + 1)))

    def logits(token_N3: Tensor) -> Tensor:
        return table[token_N3[:, 0], token_N3[:, 1]][:, None]

    found = measured(logits, rng.normal(size=(P + 1, 40)))
    shares = [row.value for (name, part), row in found.items() if name == "sum_waves" and part]
    assert np.mean(shares) == pytest.approx(2 / (P * P - 1), rel=0.2)
    strongest = found["sum_waves", ""]
    assert strongest.value == pytest.approx(strongest.null, rel=0.05)
    assert strongest.null > 1.05 * NUM_KEYS * 2 / (P * P - 1)  # they are chosen as the largest
    gap = found["embedding_gini", ""].value - found["embedding_gini", ""].null
    assert abs(gap) < 0.1


def test_all_frequencies_together_are_the_mean_over_pairs_of_one_sum() -> None:
    logits_ABV = np.random.default_rng(1).normal(size=(P, P, 4))
    made = SumWaves.of(logits_ABV)
    whole = logits_ABV.mean((0, 1)) + made.part(np.arange((P - 1) // 2))
    for total in (0, 9):
        own = [logits_ABV[a, (total - a) % P] for a in range(P)]
        np.testing.assert_allclose(whole[4, (total - 4) % P], np.mean(own, axis=0), atol=1e-12)


def test_the_gini_coefficient_of_equal_and_of_single_powers() -> None:
    assert gini(np.full(8, 3.0)) == pytest.approx(0)
    assert gini(np.array([0.0, 0, 5, 0])) == pytest.approx(0.75)
