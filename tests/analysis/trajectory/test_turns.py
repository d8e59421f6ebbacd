"""Principal components of outputs and their turning points: planted paths, walks, and runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import copied, tiny_run

from analysis.run.run import open_run
from analysis.trajectory.components.measured import components_tables, turn_rows
from analysis.trajectory.components.nulls import null_paths, reordered_gram
from analysis.trajectory.components.outputs import Outputs, chosen_positions
from analysis.trajectory.components.paths import datum_grams, path_of
from analysis.trajectory.components.turns import angles, turns_of
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.page.turns import turn_sentences
from analysis.trajectory.tables import Trajectory
from analysis.trajectory.trajectory import trajectory_of_run
from capture.errors import ConfigError
from cluster.cli import main

DATUMS, ENTRIES = 8, 50


def planted(corners: list[int], rng: np.random.Generator, noise: float = 0.02) -> np.ndarray:
    """Outputs [C, N, E] whose path runs straight between these checkpoints, each at a right angle
    to the one before, in a turned space, with white noise."""
    ends = np.cumsum(np.eye(2)[[0, 1, 0, 1][: len(corners) - 1]], 0)
    place_C2 = np.stack(
        [np.interp(np.arange(corners[-1] + 1), corners, [0, *ends[:, axis]]) for axis in (0, 1)], 1
    )
    turned_2E = np.linalg.qr(rng.normal(size=(DATUMS * ENTRIES, 2)))[0].T
    white = noise * rng.normal(size=(len(place_C2), DATUMS * ENTRIES)) / (DATUMS * ENTRIES) ** 0.5
    return (place_C2 @ turned_2E + white).reshape(-1, DATUMS, ENTRIES)


def walk(
    rng: np.random.Generator, checkpoints: int = 24, width: int = 30, drift: float = 0.0
) -> np.ndarray:
    step_SE = rng.normal(size=(checkpoints - 1, 1, width))
    step_SE[:, :, 0] += drift
    return np.concatenate([np.zeros((1, 1, width)), np.cumsum(step_SE, 0)])


def turns(output_CNE: np.ndarray) -> list[dict]:
    gram_NCC = datum_grams(list(output_CNE))
    step_C = np.arange(len(output_CNE)) * 10
    nulls = null_paths(gram_NCC.sum(0), seed=0)
    return turn_rows("loss_components", step_C, gram_NCC, nulls, 0).to_dict("records")


def claimed(output_CNE: np.ndarray) -> list[int]:
    return sorted(turn["step"] for turn in turns(output_CNE) if turn["p"] <= 0.05)


def test_the_path_is_that_of_the_singular_value_decomposition():
    output_CNE = np.random.default_rng(0).normal(size=(6, 4, 5))
    path = path_of(datum_grams(list(output_CNE)).sum(0), 3)
    row_CE = output_CNE.reshape(6, -1) - output_CNE.reshape(6, -1).mean(0)
    left_CK, value_K, _ = np.linalg.svd(row_CE, full_matrices=False)
    np.testing.assert_allclose(np.abs(path.place_CK), np.abs(left_CK * value_K)[:, :3], atol=1e-9)
    np.testing.assert_allclose(path.share_K, value_K[:3] ** 2 / (value_K**2).sum())
    assert (path.place_CK[-1] >= path.place_CK[0]).all()


def test_planted_corners_are_found_where_they_are():
    rng = np.random.default_rng(1)
    (turn, *_) = turns(planted([0, 12, 30], rng))
    assert abs(turn["step"] - 120) <= 10
    assert turn["p"] <= 0.01
    assert 75 < turn["angle"] < 105
    assert turn["low"] <= turn["step"] <= turn["high"]
    assert claimed(planted([0, 15, 30, 45], rng)) == pytest.approx([150, 300], abs=10)


@pytest.mark.parametrize("checkpoints", [5, 80])
def test_a_turn_does_not_depend_on_speed(checkpoints: int):
    """After the corner the path runs faster or slower; place and angle of the turn stay."""
    first = np.linspace(0, 1, 17)
    there_C2 = np.concatenate(
        [
            np.stack([first, 0 * first], 1),
            [[1, height] for height in np.linspace(0, 1, checkpoints)[1:]],
        ]
    )
    (turn,) = turns_of(there_C2)[:1]
    assert (turn.at, round(turn.angle)) == (16, 90)


def test_a_path_that_goes_straight_back_turns_at_its_tip():
    there_C = np.concatenate([np.linspace(0, 1, 21), np.linspace(1, 0.3, 5)[1:]])
    place_C2 = np.stack([there_C, 0.01 * np.arange(25)], 1)
    (turn, *_) = turns_of(place_C2)
    assert turn.at == 20
    assert turn.angle > 160


def test_a_circle_and_a_straight_line_have_no_turning_point():
    angle_C = np.linspace(0, np.pi / 2, 30)
    circle = np.stack([np.cos(angle_C), np.sin(angle_C)], 1)[:, None]
    assert claimed(circle) == []
    assert claimed(planted([0, 29], np.random.default_rng(0))) == []


def test_white_noise_has_no_angles():
    for seed in range(3):
        output_CNE = np.random.default_rng(seed).normal(size=(24, 1, 30))
        assert claimed(output_CNE) == []


def test_a_random_walk_is_a_cosine_that_turns_and_is_not_claimed():
    """Its components are cosines: the path turns by more than 40 degrees in its middle."""
    rng = np.random.default_rng(0)
    path = path_of(datum_grams(list(walk(rng, 40, 5000))).sum(0), 2)
    cosine_C = np.cos(np.pi * (np.arange(40) + 0.5) / 40)
    assert abs(np.corrcoef(path.place_CK[:, 0], cosine_C)[0, 1]) > 0.98
    assert max(turn.angle for turn in angles(path.place_CK)) > 40
    assert claimed(walk(rng, 24, 2000)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "drift"), [(3, 0.0), (30, 0.0), (1000, 0.0), (30, 1.0)])
def test_walks_are_claimed_at_most_at_the_stated_rate(width: int, drift: float):
    rng = np.random.default_rng(width)
    found = [bool(claimed(walk(rng, 24, width, drift))) for _ in range(20)]
    assert sum(found) <= 4  # more than 4 of 20 at a rate of 5 %: 0.3 %


def test_reordered_steps_keep_their_lengths_and_their_directions():
    rng = np.random.default_rng(0)
    gram_CC = datum_grams(list(walk(rng, 9, 20) * 3)).sum(0)
    other_CC = reordered_gram(gram_CC, rng)
    steps = [np.diff(np.diff(each, axis=0), axis=1) for each in (gram_CC, other_CC)]
    np.testing.assert_allclose(np.diag(steps[0]), np.diag(steps[1]))
    own_SS, other_SS = (each / np.sqrt(np.outer(np.diag(each), np.diag(each))) for each in steps)
    np.testing.assert_allclose(np.linalg.eigvalsh(own_SS), np.linalg.eigvalsh(other_SS), atol=1e-9)
    assert not np.allclose(own_SS, other_SS)


@pytest.mark.parametrize("where", ["losses", "logits"])
def test_checkpoints_with_outputs_that_are_not_finite_are_left_out(where: str):
    rng = np.random.default_rng(0)
    outputs = [Outputs(rng.normal(size=(3, 4)), rng.normal(size=(3, 6))) for _ in range(10)]
    (outputs[9].loss_NT if where == "losses" else outputs[9].logit_NE)[1, 2] = np.inf
    rows, turns, _ = components_tables(list(range(10)), outputs, 2, seed=0)
    assert rows["step"].max() == 8
    assert np.isfinite(rows["value"]).all()
    assert set(turns["metric"]) <= set(rows["metric"])
    with pytest.raises(ConfigError, match="needs 8 checkpoints with finite outputs, got 7"):
        components_tables(list(range(8)), outputs[2:], 2, seed=0)


def test_sampled_positions_fit_and_differ_between_datums():
    assert chosen_positions(4, 6, 100, 0).shape == (4, 6)
    place_NP = chosen_positions(20, 50, 65, 0)
    assert place_NP.shape == (20, 3)
    assert len({tuple(row) for row in place_NP.tolist()}) > 15
    assert chosen_positions(20, 50, 7, 0).shape == (7, 1)


# --- of a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Trajectory:
    run = open_run(tiny_run())
    config = TrajectoryConfig(metrics="loss", steps="0:25:3", components=3)
    return trajectory_of_run(run, config)


def test_components_of_a_run_are_those_of_its_losses_and_logits(found: Trajectory):
    run = open_run(tiny_run())
    rows = run.datums("validation")
    token_NT = torch.tensor(np.stack(rows["tokens"].tolist()))
    losses, logits = [], []
    for step in range(0, 25, 3):
        logit_NTV = run.model(step).eval()(token_NT).double().detach()
        last_N = torch.tensor(rows["last_target"].to_numpy())
        target_NT = torch.cat([token_NT[:, 1:], last_N[:, None]], 1)
        chance_NTV = logit_NTV.log_softmax(2)
        losses.append(-chance_NTV.gather(2, target_NT[:, :, None]).flatten().numpy())
        logits.append((logit_NTV - logit_NTV.mean(2, keepdim=True)).flatten().numpy())
    for metric, each in (("loss_components", losses), ("logit_components", logits)):
        row_CE = np.stack(each)
        left_CK, value_K, _ = np.linalg.svd(row_CE - row_CE.mean(0), full_matrices=False)
        for number in range(3):
            series = found.series(metric, f"PC{number + 1}")
            wanted_C = np.abs(left_CK[:, number] * value_K[number])
            np.testing.assert_allclose(np.abs(series["value"]), wanted_C, rtol=1e-3, atol=1e-4)


def test_the_text_says_of_each_path_whether_it_turns(found: Trajectory):
    said = turn_sentences(found)
    assert len(said) >= 2
    assert said[0].startswith("loss_components: ")
    assert turn_sentences(Trajectory(found.trajectory, found.metrics[:1], found.checkpoints)) == []


def test_the_command_writes_components_turns_and_the_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = copied(tiny_run(), str(tmp_path)).uri
    words = ["trajectory", place, "--metrics", "loss", "--components", "2", "--steps", "0:25:3"]
    assert main(words) == 0
    assert "loss_components: " in capsys.readouterr().out
    page = (Path(place) / "analysis" / "trajectory" / "index.html").read_text()
    assert "Path of logit_components" in page
    assert "Turning points" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 1}, r"--components: got 1, must be 0 \(none\) or at least 2"),
        ({"components": 2, "checkpoints": 3}, "--components: needs 8 checkpoints"),
    ],
)
def test_what_has_no_path_is_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        trajectory_of_run(open_run(tiny_run()), TrajectoryConfig(metrics="loss", **settings))
