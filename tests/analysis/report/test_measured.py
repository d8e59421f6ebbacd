"""What the report measures: update norms equal the tallies, passages and logits a slow search."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_run import make_run, tiny_run

from analysis.jobs.question import Question
from analysis.report.measured.direct_logits import direct_logits
from analysis.report.measured.neurons import measure_neurons, named_tokens
from analysis.report.measured.passages import activating_passages
from analysis.report.measured.update_norms import (
    MAX_CHECKPOINTS,
    checkpoint_scales,
    named_datums,
    position_norms,
)
from analysis.run.run import Run, open_run
from analysis.run.tallies import read_tally

UNITS = ["layers.0.linear2.weight", "layers.1.linear1.weight"]
NEURONS = [(unit, number) for unit in UNITS for number in (1, 5, 7)]


@functools.cache
def step_run(loss_positions: str) -> Run:
    """Return a run with a checkpoint and a window of tallies for every step, without dropout."""
    settings = ["capture.segment_steps=1", "capture.tally.window_steps=1", "model.dropout=0"]
    settings += ["training.epochs=1", f"capture.loss_positions={loss_positions}"]
    return open_run(make_run(f"memory://measured-{loss_positions}", *settings))


@pytest.mark.parametrize("loss_positions", ["all", "last"])
def test_update_norms_of_a_step_add_up_to_its_tallies(loss_positions: str) -> None:
    run = step_run(loss_positions)
    steps = run.steps()
    for step in (0, 6):
        datum_N = np.array(steps["datums"][step])
        scale = steps["learning_rate"][step] * steps["clip"][step] / len(datum_N)
        text = run.token_NT[datum_N], run.target_NT[datum_N]
        last_only = loss_positions == "last"
        norms = position_norms(run.model(step), *text, UNITS, last_only)
        for unit, (delta_NT, input_NTI) in norms.items():
            norm_NTI = scale * delta_NT[:, :, None] * np.abs(input_NTI)
            sum_VI = np.zeros((run.num_tokens, norm_NTI.shape[2]))
            np.add.at(sum_VI, run.target_NT[datum_N], norm_NTI)
            tally_VI = read_tally(run, unit, "target", [step]).update_norm_VI
            np.testing.assert_allclose(sum_VI, tally_VI, rtol=0.01, atol=1e-9)


@pytest.mark.parametrize("by_input", [False, True])
def test_the_datums_of_named_tokens_equal_a_slow_search(by_input: bool) -> None:
    run = step_run("all")
    named = {neuron: [1 + at, 3, 8] for at, neuron in enumerate(NEURONS)}
    datum_N = np.arange(0, run.num_datums, 2)
    found = named_datums(run, named, datum_N, by_input=by_input, most=4)
    label_NT = (run.token_NT if by_input else run.target_NT)[datum_N]
    assert found.searched == len(datum_N)
    assert len(found.steps) == MAX_CHECKPOINTS
    by_step = {}
    for step, scale in checkpoint_scales(run).items():
        text = run.token_NT[datum_N], run.target_NT[datum_N]
        norms = position_norms(run.model(step), *text, UNITS)
        by_step[step] = {unit: (scale * d_NT, x_NTI) for unit, (d_NT, x_NTI) in norms.items()}
    for (unit, number), tokens in named.items():
        kept_NT = np.isin(label_NT, tokens)
        norm_SNT = np.stack(
            [
                own[unit][0] * np.abs(own[unit][1][:, :, number]) * kept_NT
                for own in by_step.values()
            ]
        )
        weight_N = norm_SNT.sum((0, 2))
        rows = found.table[(found.table["unit"] == unit) & (found.table["group"] == number)]
        wanted_K = [row for row in np.argsort(-weight_N, kind="stable")[:4] if weight_N[row] > 0]
        assert rows["datum"].tolist() == datum_N[wanted_K].tolist()
        np.testing.assert_allclose(rows["weight"], weight_N[wanted_K], rtol=1e-5)
        places = rows[["position", "step"]].to_numpy(np.int64).tolist()
        for (own_position, own_step), at in zip(places, wanted_K, strict=True):
            step_index, position = np.unravel_index(norm_SNT[:, at].argmax(), norm_SNT.shape[::2])
            assert (own_position, own_step) == (position, list(by_step)[step_index])
            assert label_NT[at, own_position] in tokens


def test_scales_of_checkpoints_cover_all_steps() -> None:
    run = open_run(tiny_run())
    scales = checkpoint_scales(run)
    assert list(scales) == [0, 14, 21]
    steps = run.steps()
    size = steps["learning_rate"] * steps["clip"]
    assert scales[21] == pytest.approx(size[21:].mean() / run.config.training.batch)


def test_passages_are_those_of_largest_activation() -> None:
    run = open_run(tiny_run())
    datum_N = np.arange(5, 40)
    table = activating_passages(run, NEURONS, datum_N, 3)
    text = run.token_NT[datum_N], run.target_NT[datum_N]
    norms = position_norms(run.model(), *text, UNITS)
    for unit, number in NEURONS:
        x_NT = norms[unit][1][:, :, number]
        largest_N = np.abs(x_NT).max(1)
        wanted = [row for row in np.argsort(-largest_N, kind="stable")[:3] if largest_N[row]]
        rows = table[(table["unit"] == unit) & (table["neuron"] == number)]
        assert rows["datum"].tolist() == datum_N[wanted].tolist()
        at = rows["position"].to_numpy()
        np.testing.assert_allclose(rows["activation"], x_NT[wanted, at], rtol=1e-5)
        np.testing.assert_allclose(np.abs(rows["activation"]), largest_N[wanted], rtol=1e-5)


def test_a_neuron_planted_on_a_token_writes_this_token() -> None:
    run = open_run(tiny_run())
    model, token = run.model(), 4
    with torch.no_grad():
        model.get_parameter("layers.0.norm2.weight").fill_(1.0)
        direction = model.decoder.weight[token] - model.decoder.weight.mean(0)
        model.get_parameter(UNITS[0])[:, 5] = 10 * (direction - direction.mean())
    table = direct_logits(model, NEURONS, 4)
    sides = table[(table["unit"] == UNITS[0]) & (table["neuron"] == 5)].groupby("side")
    up, down = (sides.get_group(side) for side in ("up", "down"))
    assert up["token_id"].iloc[0] == token
    assert (up["logit"] > 0).all()
    assert (down["logit"] < 0).all()
    assert up["logit"].is_monotonic_decreasing
    assert down["logit"].is_monotonic_increasing


def test_a_coordinate_of_the_residual_stream_writes_its_column_of_the_unembedding() -> None:
    run = open_run(tiny_run())
    model = run.model()
    with torch.no_grad():
        model.get_parameter("layers.1.norm2.weight").fill_(1.0)
        model.decoder.weight[7, 5] += 50
    table = direct_logits(model, [(UNITS[1], 5)], 2)
    assert table["side"].tolist() == ["up", "up", "down", "down"]
    assert table["token_id"].iloc[0] == 7


def test_datums_are_searched_only_where_tallies_chose_the_tokens() -> None:
    run = open_run(tiny_run())
    tokens = named_frame()
    asked = Question("attribute", {"evidence": "input-update-norm"}, {})
    found = measure_neurons(run, NEURONS, tokens, asked)
    assert found.by_input
    assert set(zip(found.datums["unit"], found.datums["group"], strict=True)) == set(NEURONS)
    found = measure_neurons(run, NEURONS, tokens, Question("attribute", {"evidence": "target"}, {}))
    assert len(found.datums) == 0
    assert len(found.logits) > 0


def named_frame() -> pd.DataFrame:
    return pd.DataFrame(
        [{"unit": unit, "group": number, "token_id": 3} for unit, number in NEURONS]
    )


def test_tokens_of_other_neurons_are_left_out() -> None:
    assert named_tokens(named_frame(), NEURONS[:1]) == {NEURONS[0]: [3]}
