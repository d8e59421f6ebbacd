"""Directions of stacked weights: those of the decomposition, and nulls of their removal."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.studies import maze
from benchmarks.studies.snapshots import (
    DRAWS,
    MOST,
    directions_of,
    kept,
    moved_as_far,
    random_directions,
    random_removals,
)


def test_directions_of_stacked_weights_are_those_of_the_singular_value_decomposition() -> None:
    weight_SP = np.random.default_rng(0).normal(size=(5, 40))
    value_K, right_KP = directions_of(weight_SP)
    wanted_K, wanted_KP = np.linalg.svd(weight_SP, full_matrices=False)[1:]
    np.testing.assert_allclose(value_K, wanted_K)
    np.testing.assert_allclose(np.abs((right_KP * wanted_KP).sum(1)), 1)


def test_random_directions_have_length_one_and_lie_in_the_space_of_the_weights() -> None:
    weight_SP = np.random.default_rng(0).normal(size=(5, 40)) * np.geomspace(1, 1e-3, 5)[:, None]
    random_DP = random_directions(weight_SP, 2000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(random_DP, axis=1), 1)
    right_KP = directions_of(weight_SP)[1]
    load_DK = random_DP @ right_KP.T
    np.testing.assert_allclose(np.linalg.norm(load_DK, axis=1), 1)
    np.testing.assert_allclose((load_DK**2).mean(0), 1 / 5, rtol=0.1)
    np.testing.assert_array_equal(random_directions(weight_SP, 2000, seed=1), random_DP)


def test_the_null_of_a_removal_moves_the_weights_as_far() -> None:
    weight_SP = np.random.default_rng(0).normal(size=(5, 40))
    right_P, random_P = directions_of(weight_SP)[1][0], random_directions(weight_SP, 1, seed=0)[0]
    for row_P in weight_SP:
        left_P = kept(row_P, right_P)
        assert abs(left_P @ right_P) < 1e-12
        moved_P = moved_as_far(row_P, right_P, random_P) - row_P
        np.testing.assert_allclose(np.linalg.norm(moved_P), np.linalg.norm(left_P - row_P))
        np.testing.assert_allclose(abs(moved_P @ random_P), np.linalg.norm(moved_P))


def test_random_removals_are_those_of_the_weights_at_the_steps_that_are_judged() -> None:
    model = torch.nn.Linear(5, 6, bias=False)
    weight_SP = np.random.default_rng(0).normal(size=(8, 30)).astype(np.float32).astype(float)
    run: Any = SimpleNamespace(
        blank_model=lambda: model,
        checkpoint=lambda step: {"weight": torch.tensor(weight_SP[step]).view(6, 5)},
        config=SimpleNamespace(run=SimpleNamespace(seed=3)),
    )

    def square(weights: Any) -> tuple[float, float]:
        return 0.0, float((weights["weight"].double() ** 2).sum())

    found: Any = random_removals(run, list(range(8)), square, [2, 5])
    assert found["seed"] == 3
    right_KP, random_DP = directions_of(weight_SP)[1], random_directions(weight_SP, DRAWS, 3)
    for at in (2, 5):
        row_P = weight_SP[at]
        whole, part_K = row_P @ row_P, (right_KP @ row_P)[:MOST]
        along_D = random_DP @ row_P
        np.testing.assert_allclose(found["share"][str(at)], part_K**2 / whole)
        np.testing.assert_allclose(found["removed"][str(at)], whole - along_D**2, rtol=1e-5)
        far_KD = whole - 2 * np.abs(part_K)[:, None] * along_D + part_K[:, None] ** 2
        np.testing.assert_allclose(found["as_far"][str(at)], far_KD, rtol=1e-4)


def test_weights_without_all_directions_of_training_are_those_of_the_start() -> None:
    rng = np.random.default_rng(0)
    weight_SP = rng.normal(size=(7, 30))
    early_SP, late_SP = maze.phases(weight_SP, list(range(7)), 2)
    assert (len(early_SP), len(late_SP)) == (2, 4)
    both_SP = np.concatenate([early_SP, late_SP])
    every_KP = maze.random_mixtures(both_SP, 6, rng)
    np.testing.assert_allclose(every_KP @ every_KP.T, np.eye(6), atol=1e-12)
    left_P = maze.without(every_KP, weight_SP[0], weight_SP[-1])
    np.testing.assert_allclose(left_P, weight_SP[0], atol=1e-12)
    one_KP = maze.leading(late_SP, 1)
    kept_P = maze.without(one_KP, weight_SP[0], weight_SP[-1]) - weight_SP[0]
    assert abs(kept_P @ one_KP[0]) < 1e-12
