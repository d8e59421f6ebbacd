"""Drift: sums against loops, the null on shuffled signs, and directions that no weight shows."""

import argparse
import functools
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from tiny_run import copied, make_run

from analysis.influence.drift.along import (
    Drift,
    DriftConfig,
    drift_along,
    drift_of_weights,
    measure_drift,
    own_basis,
)
from analysis.influence.drift.moments import (
    Moments,
    StepShifts,
    add_up,
    replayed_shifts,
    run_moments,
)
from analysis.run.run import Run, open_run
from capture.errors import CaptureError
from cluster.commands.influence import drift as command
from cluster.terminal.influence.drift import floor_sentence

UNIT = "layers.1.linear2.weight"


@functools.cache
def uri() -> str:
    return make_run("memory://drift", "training.learning_rate=0.5", "training.epochs=1")


def run() -> Run:
    return open_run(uri())


def moments_of(shift_NRC: np.ndarray, walks: int = 99) -> Moments:
    whole = torch.from_numpy(shift_NRC)
    steps = [StepShifts(part, None) for part in whole.split(7)]
    return add_up(steps, whole.shape[1:], walks, seed=0)  # pyright: ignore[reportArgumentType]


def test_drift_along_inputs_is_what_a_loop_finds():
    shift_NRC = np.random.default_rng(0).normal(0.1, 1, size=(50, 3, 4))
    found = drift_along(moments_of(shift_NRC), np.eye(4))
    for neuron in range(4):
        own = shift_NRC[:, :, neuron]
        wanted = np.linalg.norm(own.sum(0)) / np.sqrt((own**2).sum())
        assert found["drift"][neuron] == pytest.approx(wanted)


def test_the_drift_of_a_weight_is_what_a_loop_finds():
    shift_NRC = np.random.default_rng(0).normal(0.1, 1, size=(50, 3, 4))
    moments = moments_of(shift_NRC)
    found = drift_of_weights(moments)
    for index in range(12):
        own = shift_NRC.reshape(50, 12)[:, index]
        assert found["drift"][index] == pytest.approx(abs(own.sum()) / np.sqrt((own**2).sum()))
    np.testing.assert_allclose(
        found["moved"].to_numpy().reshape(3, 4) ** 2, moments.sum_RC.square().numpy()
    )
    turned = drift_of_weights(moments, transposed=True)
    wanted = found["drift"].to_numpy().reshape(3, 4).T.ravel()
    np.testing.assert_array_equal(turned["drift"], wanted)
    assert (drift_of_weights(moments_of(np.zeros((5, 2, 3))))["p"] == 1).all()


def test_weights_that_walk_at_random_exceed_the_null_as_often_as_they_should():
    found = drift_of_weights(moments_of(np.random.default_rng(4).normal(size=(40, 30, 40))))
    assert abs((found["p"] <= 0.05).mean() - 0.05) < 0.03  # 1,200 weights, one set of signs
    assert (found["q"] > 0.05).all()


def test_shifts_that_agree_drift_as_the_root_of_their_number():
    found = drift_along(moments_of(np.ones((64, 2, 3))), np.eye(3))
    np.testing.assert_allclose(found["drift"], 8)
    assert (found["p"] == 0.01).all()
    still = drift_along(moments_of(np.zeros((5, 2, 3))), np.eye(3))
    assert (still["drift"] == 0).all()
    assert (still["p"] == 1).all()


def test_random_walks_exceed_the_null_as_often_as_they_should():
    rng = np.random.default_rng(1)
    p_values = np.concatenate(
        [drift_along(moments_of(rng.normal(size=(40, 3, 8))), np.eye(8))["p"] for _ in range(25)]
    )
    assert abs((p_values <= 0.05).mean() - 0.05) < 0.035
    assert abs(p_values.mean() - 0.5) < 0.07


def test_law_random_walks_are_clear_in_at_most_5_percent_of_samples():
    rng = np.random.default_rng(3)
    clear = 0
    for _ in range(40):
        found = drift_along(moments_of(rng.normal(size=(40, 3, 5))), np.eye(5))
        assert found["p"].min() >= 0.01
        clear += Drift(found, 40).clear > 0
    assert clear <= 5


def test_the_floor_of_p_says_how_many_directions_must_reach_it():
    assert floor_sentence(99, 5) == "The least p of 99 walks is 0.01."
    assert floor_sentence(99, 12).endswith(
        "q ≤ 0.05 needs 3 rows with it, or more walks (--walks)."
    )


def test_a_diffuse_direction_is_found_that_no_single_input_shows():
    rng, size = np.random.default_rng(2), 100
    diffuse = np.ones(size) / np.sqrt(size)
    output = np.array([0.6, -0.8])
    shift_NRC = rng.normal(size=(200, 2, size)) + 0.8 * output[:, None] * diffuse
    moments = moments_of(shift_NRC)
    (along,) = drift_along(moments, diffuse[None]).to_dict("records")
    alone = drift_along(moments, np.eye(size))
    assert along["p"] == 0.01
    assert along["drift"] > 5
    assert alone["drift"].max() < along["drift"] / 2
    longer = drift_along(moments, 7 * diffuse[None])
    assert longer["drift"][0] == pytest.approx(along["drift"])


@functools.cache
def squares() -> torch.Tensor:
    """Return Σ s_i² over the run's shifts of the unit, entry by entry, [R, C]."""
    steps = replayed_shifts(run(), UNIT, lambda done, wanted: None)
    return torch.stack([step.shift_NRC.double().square().sum(0) for step in steps]).sum(0)


def test_the_shifts_of_sgd_sum_to_the_change_of_the_weights():
    found = run_moments(run(), UNIT, walks=19)
    change = run().checkpoint()[UNIT].double() - run().checkpoint(0)[UNIT].double()
    np.testing.assert_allclose(found.sum_RC, change, atol=1e-4 * float(change.abs().max()))
    assert found.count == run().steps_done * 4
    np.testing.assert_allclose(found.gram_CC.diagonal(), squares().sum(0))
    components = own_basis(found, "pca")
    variance = np.einsum("kc,cd,kd->k", components, found.input_CC, components)
    assert (np.diff(variance) <= 1e-12).all()
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-10)


def test_the_drift_of_outputs_is_that_of_the_transposed_shifts():
    along = run_moments(run(), UNIT, walks=19)
    across = run_moments(run(), UNIT, side="outputs", walks=19)
    torch.testing.assert_close(across.sum_RC, along.sum_RC.T)
    torch.testing.assert_close(across.gram_CC.diagonal(), squares().sum(1))
    by_row = drift_along(across, np.eye(len(across.gram_CC)))
    wanted = along.sum_RC.norm(dim=1) / squares().sum(1).sqrt()
    np.testing.assert_allclose(by_row["drift"], wanted)


def test_directions_come_furthest_first_and_those_beyond_chance_are_counted():
    found = measure_drift(run(), DriftConfig(unit=UNIT))
    rows = found.drift.to_dict("records")
    np.testing.assert_allclose(found.drift["q"], stats.false_discovery_control(found.drift["p"]))
    assert found.clear == sum(row["q"] <= 0.05 for row in rows)
    assert (np.diff(found.drift["drift"]) <= 0).all()


# --- the command ----------------------------------------------------------------------------------


def parsed(*arguments: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers())
    return top.parse_args(["drift", *arguments])


def test_the_command_prints_directions_beside_their_null(tmp_path: Path):
    place = copied(uri(), "memory://drift-command").uri
    file = tmp_path / "directions.npy"
    np.save(file, np.ones((1, 12)))
    sides = {"neurons": "outputs", "pca": "inputs", "weights": "inputs", str(file): "inputs"}
    for basis, side in sides.items():
        console = Console(width=120, file=io.StringIO(), highlight=False)
        asked = parsed(place, UNIT, "--basis", basis, "--side", side, "--rows", "3", "--replace")
        assert command.run(asked, console) == 0
        assert isinstance(console.file, io.StringIO)
        text = " ".join(console.file.getvalue().split())
        assert "agree more than a random walk (q ≤ 0.05 over" in text
        assert "The least p of 99 walks is 0.01" in text


def test_bad_input_is_one_line(tmp_path: Path):
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.ones((2, 5)))
    for arguments, text in (
        (("layers.1.linear2.wait",), "layers.1.linear2.wait: was not captured"),
        (("layers.1.linear2.bias",), "has 1 axes; drift needs a weight with two"),
        ((UNIT, "--basis", "nowhere.npy"), "got 'nowhere.npy', which cannot be read"),
        ((UNIT, "--basis", str(wrong)), "holds float64 of 2 × 5, wanted numbers, K × 12"),
        ((UNIT, "--side", "top"), "drift.side: got 'top', wanted inputs or outputs"),
        ((UNIT, "--side", "outputs", "--basis", "weights"), "drift.side: got 'outputs', but a"),
        ((UNIT, "--walks", "3"), "drift.walks: got 3, must be at least 19"),
        ((UNIT, "--rows", "0"), "--rows: got 0"),
    ):
        with pytest.raises(CaptureError) as caught:
            command.run(parsed(uri(), *arguments), Console(file=io.StringIO()))
        assert text in str(caught.value)
