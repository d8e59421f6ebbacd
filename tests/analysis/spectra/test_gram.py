"""The pure core of spectra: Gram matrices against numpy's SVD, treatments, nulls, samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.spectra.concentration import numbers_of
from analysis.spectra.gram import (
    Treatment,
    coefficients,
    decompose,
    gram_of,
    singular_values,
    treated,
    treatment_matrix,
)
from analysis.spectra.nulls import NULLS, null_gram, random_edge, wishart
from analysis.spectra.samples import sampled_spectra

TREATMENTS = [
    Treatment(),
    Treatment(skip=5),
    Treatment(subtract_mean=True),
    Treatment(unit_length=True),
    Treatment(skip=3, subtract_mean=True, unit_length=True),
]


def matrix(seed: int = 0, steps: int = 20, entries: int = 60) -> np.ndarray:
    """Steps as rows, [S, P], with a mean and lengths that fall."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0.3, 1, (steps, entries)).T * np.linspace(2, 0.5, steps)).T


def slowly_treated(row_SP: np.ndarray, treatment: Treatment) -> np.ndarray:
    """The treatment of the dense matrix, step by step."""
    rows = [row.copy() for row in row_SP[treatment.skip :]]
    if treatment.subtract_mean:
        mean = sum(rows) / len(rows)
        rows = [row - mean for row in rows]
    if treatment.unit_length:
        rows = [row / np.linalg.norm(row) for row in rows]
    return np.array(rows)


@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda one: one.name)
def test_values_and_vectors_are_those_of_the_dense_matrix(treatment: Treatment):
    row_SP = matrix()
    dense_PR = slowly_treated(row_SP, treatment).T
    left_PK, value_K, right_KR = np.linalg.svd(dense_PR, full_matrices=False)
    gram_SS = gram_of(row_SP)
    found = decompose(treated(gram_SS, treatment))
    np.testing.assert_allclose(found.value_K, value_K, atol=1e-6 * value_K[0])
    alone_K = singular_values(treated(gram_SS, treatment))
    np.testing.assert_allclose(alone_K, value_K, atol=1e-6 * value_K[0])
    matrix_SR = treatment_matrix(gram_SS, treatment)
    np.testing.assert_allclose(row_SP.T @ matrix_SR, dense_PR, atol=1e-12)
    own_PK = row_SP.T @ coefficients(matrix_SR, found, 4)
    np.testing.assert_allclose(own_PK.T @ own_PK, np.eye(4), atol=1e-9)
    for k in range(4):
        assert abs(own_PK[:, k] @ left_PK[:, k]) == pytest.approx(1)
        assert abs(found.right_RK[:, k] @ right_KR[k]) == pytest.approx(1)


@given(cuts=st.sets(st.integers(1, 59)), seed=st.integers(0, 9))
def test_pieces_of_parameters_in_any_order_add_up_to_the_whole(cuts: set[int], seed: int):
    row_SP = matrix(seed)
    parts = [gram_of(part) for part in np.split(row_SP, sorted(cuts), axis=1)]
    np.random.default_rng(seed).shuffle(parts)
    np.testing.assert_allclose(sum(parts), gram_of(row_SP), rtol=1e-10, atol=1e-10)


def test_a_planted_rank_is_counted():
    rng = np.random.default_rng(1)
    row_SP = rng.normal(size=(50, 4)) @ np.linalg.qr(rng.normal(size=(300, 4)))[0].T
    found = decompose(gram_of(row_SP))
    assert found.rank == 4
    assert numbers_of(found.value_K).over_cutoff == 4
    equal = numbers_of(np.array([3.0] * 7 + [0.01] * 20))
    assert (equal.over_cutoff, equal.largest) == (7, 3)
    assert equal.stable_rank == pytest.approx(7, rel=1e-3)
    assert equal.participation_ratio == pytest.approx(7, rel=1e-3)
    assert numbers_of(np.zeros(3)).stable_rank == 0


def test_a_matrix_of_fewer_directions_than_asked_for_has_empty_ones():
    gram_SS = gram_of(np.ones((5, 9)))
    own_SK = coefficients(np.eye(5), decompose(gram_SS), 3)
    assert own_SK[:, 0].any()
    assert not own_SK[:, 1:].any()
    flat = treated(gram_SS, Treatment(subtract_mean=True, unit_length=True))
    assert np.abs(flat).max() < 1e-12


def test_centres_say_when_a_direction_was_followed():
    early_SP = np.zeros((10, 8))
    early_SP[:3, 0], early_SP[7:, 1] = 2.0, 1.0
    centre_K, spread_K = decompose(gram_of(early_SP)).centres(np.arange(10))
    assert centre_K[:2].tolist() == pytest.approx([1, 8])
    assert spread_K[:2].tolist() == pytest.approx([(2 / 3) ** 0.5] * 2)


# --- nulls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [30, 500])
def test_the_gaussian_null_has_the_distribution_of_a_gaussian_matrix(entries: int):
    rng = np.random.default_rng(2)
    drawn = np.array([singular_values(wishart(entries, 40, rng)) for _ in range(30)])
    dense = np.array(
        [np.linalg.svd(rng.normal(size=(entries, 40)), compute_uv=False) for _ in range(30)]
    )
    np.testing.assert_allclose(drawn.mean(0)[: dense.shape[1]], dense.mean(0), rtol=0.03, atol=0.3)
    # Edges of a large matrix: √P ± √S (Marchenko and Pastur 1967).
    wide, narrow = max(entries, 40) ** 0.5, min(entries, 40) ** 0.5
    assert dense[:, 0].mean() == pytest.approx(wide + narrow, rel=0.06)
    assert dense[:, -1].mean() == pytest.approx(wide - narrow, rel=0.06, abs=0.6)


def test_above_the_random_edge_lie_planted_directions_and_no_noise():
    rng = np.random.default_rng(6)
    noise_SP = rng.normal(size=(60, 900))
    planted_SP = noise_SP + 20 * rng.normal(size=(60, 3)) @ np.eye(3, 900)
    counts = []
    for row_SP in (noise_SP, planted_SP):
        value_K = singular_values(gram_of(row_SP))
        edge = random_edge(float((value_K**2).sum()), 900, 60)
        counts.append(int((value_K > 1.01 * edge).sum()))
    assert counts == [0, 3]


def test_nulls_keep_what_they_say():
    gram_SS = gram_of(matrix())
    rng = np.random.default_rng(3)
    drawn = {null: [null_gram(null, gram_SS, 60, rng) for _ in range(40)] for null in NULLS}
    for kept_SS in drawn["norms kept"]:
        np.testing.assert_allclose(np.diag(kept_SS), np.diag(gram_SS))
    total = np.mean([np.trace(one_SS) for one_SS in drawn["gaussian"]])
    assert total == pytest.approx(np.trace(gram_SS), rel=0.03)


# --- samples --------------------------------------------------------------------------------------


def test_sampled_numbers_and_residuals_are_those_of_the_dense_matrix():
    row_SP = matrix(4)
    found = sampled_spectra(gram_of(row_SP), 8, 3, np.random.default_rng(5), 0.4)
    rng = np.random.default_rng(5)
    for row in found.to_dict("records"):
        chosen = np.sort(rng.choice(20, 8, replace=False))
        left_PK, value_K, _ = np.linalg.svd(row_SP[chosen].T, full_matrices=False)
        kept_PK = left_PK[:, value_K > 0.4 * value_K[0]]
        assert row["over_cutoff"] == kept_PK.shape[1]
        others = np.delete(row_SP, chosen, 0)
        outside = np.linalg.norm(others - others @ kept_PK @ kept_PK.T, axis=1)
        assert row["residual_norm"] == pytest.approx(outside.mean())
        assert row["residual"] == pytest.approx((outside / np.linalg.norm(others, axis=1)).mean())


def test_samples_of_few_directions_explain_the_other_steps():
    rng = np.random.default_rng(6)
    row_SP = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 200))
    found = sampled_spectra(gram_of(row_SP), 20, 4, rng, 0.01)
    assert (found["residual"] < 1e-6).all()
    whole = sampled_spectra(gram_of(row_SP), 60, 2, rng, 0.1)
    assert whole["residual"].isna().all()
