"""The study of MNIST's spectrum on a few random images: what fades, and a truth that is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.mnist_spectrum import images as digits
from benchmarks.mnist_spectrum.conditions import ENTRIES, SGD, Condition, conditions
from benchmarks.mnist_spectrum.measured import measure
from benchmarks.mnist_spectrum.tables import fading_table
from benchmarks.mnist_spectrum.training import Subspace, train

PLAIN = Condition(SGD, seed=3)
NOWHERE = Path("nowhere")


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found = rng.random((200, 28, 28), np.float32), np.arange(200) % 10
    monkeypatch.setattr(digits, "read_digits", lambda folder: found)


def images(condition: Condition) -> tuple[np.ndarray, np.ndarray]:
    image_NQ, label_N = digits.data_of(condition, NOWHERE)
    return image_NQ.numpy(), label_N.numpy()


def test_each_condition_changes_what_it_says_and_no_more():
    image_NQ, label_N = images(PLAIN)
    moved_NQ, same_N = images(replace(PLAIN, moved_pixels=0.5))
    np.testing.assert_allclose(np.sort(moved_NQ, 1), np.sort(image_NQ, 1))
    assert (moved_NQ != image_NQ).any(0).sum() == 392
    assert (same_N == label_N).all()
    kept_NQ, wrong_N = images(replace(PLAIN, shuffled_labels=0.5))
    assert (kept_NQ == image_NQ).all()
    assert sorted(wrong_N) == sorted(label_N)
    assert 60 < (wrong_N != label_N).sum() <= 100
    coarse_NQ, _ = images(replace(PLAIN, pixels=14))
    assert len(np.unique(coarse_NQ[0])) <= 196
    np.testing.assert_allclose(coarse_NQ.mean(1), image_NQ.mean(1), rtol=1e-5)
    _, two_N = images(replace(PLAIN, classes=2))
    assert set(two_N) == {0, 1}
    noise_NQ, _ = images(replace(PLAIN, noise=1.0))
    assert abs(np.corrcoef(noise_NQ.ravel(), image_NQ.ravel())[0, 1]) < 0.02


def test_a_network_of_zeros_moves_its_ten_biases_in_nine_directions():
    line = measure(replace(PLAIN, initial_scale=0.0), NOWHERE)
    assert line["gradients"]["as recorded"]["over_cutoff"] == 9
    condition = replace(PLAIN, initial_scale=0.0)
    assert "| 9 |" in fading_table([(condition, line)])[-1]


def test_rows_and_columns_move_whole_within_their_own_image():
    image_NHW = images(PLAIN)[0].reshape(-1, 28, 28)
    for field, axis in (("moved_rows", 1), ("moved_columns", 2)):
        moved_NHW = images(replace(PLAIN, **{field: 0.5}))[0].reshape(-1, 28, 28)
        changed = (moved_NHW != image_NHW).any((0, 3 - axis))
        assert changed.sum() == 14
        for image_HW, moved_HW in zip(image_NHW, moved_NHW, strict=True):
            there, found = (np.moveaxis(one, axis - 1, 0).tolist() for one in (image_HW, moved_HW))
            assert sorted(there) == sorted(found)
    assert len({tuple(np.argsort(one[:, 0])) for one in moved_NHW}) > 150  # each in its own way


def test_exchanged_places_keep_their_values_but_in_other_images():
    image_NHW = images(PLAIN)[0].reshape(-1, 28, 28)
    whole = {"exchanged_rows": (0, 2, 1), "exchanged_columns": (0, 1, 2)}
    for field, axes in whole.items():
        moved_NHW, label_N = images(replace(PLAIN, **{field: 1.0}))
        moved_NHW = moved_NHW.reshape(-1, 28, 28)
        assert (label_N == images(PLAIN)[1]).all()
        for there_NE, found_NE in zip(
            image_NHW.transpose(axes).transpose(2, 0, 1),
            moved_NHW.transpose(axes).transpose(2, 0, 1),
            strict=True,
        ):
            assert sorted(there_NE.tolist()) == sorted(found_NE.tolist())
        assert abs(np.corrcoef(moved_NHW.ravel(), image_NHW.ravel())[0, 1]) < 0.05
        image_NQ, moved_NQ = image_NHW.reshape(200, -1), moved_NHW.reshape(200, -1)
        np.testing.assert_array_equal(np.sort(moved_NQ, 0), np.sort(image_NQ, 0))


def test_a_subspace_is_orthonormal_up_to_its_length():
    subspace = Subspace.drawn(120, 7, np.random.default_rng(0))
    direction_KP = np.stack([subspace.combined(row_K) for row_K in np.eye(7, dtype=np.float32)])
    np.testing.assert_allclose(direction_KP @ direction_KP.T, 120 / 7 * np.eye(7), atol=1e-4)
    vector_P = np.random.default_rng(1).normal(size=120).astype(np.float32)
    np.testing.assert_allclose(subspace.along(vector_P), direction_KP @ vector_P, atol=1e-4)


def test_a_projected_model_of_all_dimensions_but_one_is_the_whole_model_turned():
    """The inner products of its gradients, and thus the spectrum, are the same."""
    slow = replace(PLAIN, rate_scale=1e-3)
    plain, turned = train(slow, NOWHERE), train(replace(slow, dimensions=ENTRIES - 1), NOWHERE)
    assert turned.gradient_SP.shape[1] == ENTRIES - 1
    for kind in ("gradient_SP", "update_SP"):
        plain_SP, turned_SP = getattr(plain, kind), getattr(turned, kind)
        plain_SS, turned_SS = plain_SP @ plain_SP.T, turned_SP @ turned_SP.T
        np.testing.assert_allclose(turned_SS, plain_SS, atol=1e-3 * plain_SS.max())


def test_a_factor_on_the_learning_rate_scales_the_first_update():
    plain, tenth = (train(replace(PLAIN, rate_scale=scale), NOWHERE) for scale in (1.0, 0.1))
    np.testing.assert_allclose(tenth.update_SP[0], 0.1 * plain.update_SP[0], atol=1e-7)


def test_all_conditions_differ():
    every = list(conditions())
    assert len(every) == len(set(every))
