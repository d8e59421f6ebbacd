"""The study of MNIST's spectrum on a few random images: what fades, and a truth that is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mnist_spectrum as study
from benchmarks.mnist_spectrum import SGD, Condition
from benchmarks.mnist_tables import fading_table

PLAIN = Condition(SGD, seed=3)
NOWHERE = Path("nowhere")


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    digits = rng.random((200, 28, 28), np.float32), np.arange(200) % 10
    monkeypatch.setattr(study, "read_digits", lambda folder: digits)


def images(condition: Condition) -> tuple[np.ndarray, np.ndarray]:
    image_NQ, label_N = study.data_of(condition, NOWHERE)
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
    line = study.measure(replace(PLAIN, initial_scale=0.0), NOWHERE)
    assert line["gradients"]["as recorded"]["over_cutoff"] == 9
    condition = replace(PLAIN, initial_scale=0.0)
    assert "| 9 |" in fading_table([(condition, line)])[-1]


def test_all_conditions_differ():
    every = list(study.conditions())
    assert len(every) == len(set(every)) == 108
