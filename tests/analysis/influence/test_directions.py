"""Influence along directions: parts of an orthonormal basis sum to the influence of the unit."""

import argparse
import functools
import io
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny_run import copied, make_run

from analysis.influence.config import InfluenceConfig
from analysis.influence.directions.along import DirectionsConfig, influence_along, unit_vectors
from analysis.influence.directions.bases import activations, directions
from analysis.influence.directions.tables import tabulate
from analysis.influence.influence import compute_influence
from analysis.influence.path import PathSweep, batch_derivatives
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.neurons.dictionary import sparse_dictionary
from analysis.run.run import Run, open_run
from capture.errors import CaptureError, InfluenceError
from capture.unrolled.states import backward_steps

UNIT, ROWS = "layers.1.linear2.weight", "layers.1.linear1.weight"
SHORT = ("training.epochs=1", "training.batch=8", "model.dropout=0.1", "training.accumulate=2")
ADAMW = ("training.optimizer.kind=adamw", "training.learning_rate=0.02", "training.clip=0.5")


@functools.cache
def uri() -> str:
    return make_run("memory://directions", *SHORT, *ADAMW)


def run() -> Run:
    return open_run(uri())


@functools.cache
def queries() -> list[Query]:
    return build_queries(run(), ["datum:validation:0", "loss"])


@functools.cache
def through_unit(method: str) -> np.ndarray:
    """Influence of each datum through the unit, [Q, D], from directional derivatives of losses."""
    found_QD = np.zeros((len(queries()), run().num_datums))
    for step, vector_QRC, _ in unit_vectors(
        run(), queries(), DirectionsConfig(unit=UNIT, method=method)
    ):
        own_QNT = batch_derivatives(step, {UNIT: vector_QRC})
        np.add.at(found_QD.T, step.planned.datum_N, own_QNT.sum(2).T)
    return found_QD


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["path", "unrolled"])
def test_parts_of_an_orthonormal_basis_sum_to_the_influence_through_the_unit(method: str):
    wanted_QD = through_unit(method)
    scale = np.abs(wanted_QD).max()
    for basis, side in (("neurons", "inputs"), ("pca", "inputs"), ("neurons", "outputs")):
        how = {"unit": UNIT, "method": method, "random": 19, "checks": 0}
        config = DirectionsConfig(basis=basis, side=side, **how)  # pyright: ignore[reportArgumentType]
        found = influence_along(run(), queries(), config)
        np.testing.assert_allclose(found.influence_QDK.sum(2), wanted_QD, atol=1e-4 * scale)


def test_unrolled_influence_is_checked_as_influence_is():
    config = DirectionsConfig(unit=UNIT, method="unrolled", random=19, checks=1)
    found = tabulate(influence_along(run(), queries(), config), queries(), config).checks
    wanted = compute_influence(run(), queries(), InfluenceConfig(checks=1)).checks
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)


def test_steps_beyond_the_horizon_are_left_out(monkeypatch: pytest.MonkeyPatch):
    asked = compute_influence(run(), queries(), InfluenceConfig(checks=0), resumable=False)
    growth_S = asked.steps.groupby("step")["growth"].max()
    limit = growth_S.max() * 0.999
    first = int(growth_S.index[growth_S > limit].max()) + 1
    monkeypatch.setattr("analysis.influence.directions.along.LIMIT", limit)
    config, reports = DirectionsConfig(unit=UNIT, method="unrolled", random=19, checks=1), []
    report = mock.Mock(side_effect=lambda *given: reports.append(given))
    found = influence_along(run(), queries(), config, report)
    assert 0 < found.first_step == first < run().steps_done
    assert reports[-1] == (run().steps_done + 1,) * 2
    assert (found.checks["first_step"] == first).all()
    datums = np.concatenate(list(run().steps()["datums"][first:]))
    assert set(np.flatnonzero(found.influence_QDK.any((0, 2)))) <= set(datums)
    tables = tabulate(found, queries(), config)
    assert (tables.directions["reliable_from"] == first).all()
    monkeypatch.setattr("analysis.influence.directions.along.LIMIT", 1e-9)
    with pytest.raises(InfluenceError, match=r"no step .* training is chaotic\. Use --method path"):
        influence_along(run(), queries(), config)


def test_unit_vectors_give_the_parts_of_single_neurons():
    found = influence_along(run(), queries()[:1], DirectionsConfig(unit=UNIT, random=19))
    wanted_DK = np.zeros(found.influence_QDK.shape[1:])
    past, markers = run().gradients.replayable, [run().start, *run().segments]
    sweep = PathSweep(queries()[:1], past.plan.config.training.optimizer)
    for step in backward_steps(past, markers, range(run().steps_done)):
        along = sweep.step(step).along_Q[0][UNIT]
        for neuron in range(along.shape[1]):
            only = torch.zeros_like(along)
            only[:, neuron] = along[:, neuron]
            own_NT = batch_derivatives(step, {UNIT: only[None]})[0]
            np.add.at(wanted_DK[:, neuron], step.planned.datum_N, own_NT.sum(1))
    scale = np.abs(wanted_DK).max()
    np.testing.assert_allclose(found.influence_QDK[0], wanted_DK, atol=1e-4 * scale)


def test_path_influence_through_the_unit_is_what_influence_reports():
    wanted_QD = np.zeros((2, run().num_datums))
    past, markers = run().gradients.replayable, [run().start, *run().segments]
    sweep = PathSweep(queries(), past.plan.config.training.optimizer, (UNIT,))
    for step in backward_steps(past, markers, range(run().steps_done)):
        found = sweep.step(step)
        np.add.at(wanted_QD.T, found.datum_N, found.unit_QNU[:, :, 0].T)
    np.testing.assert_allclose(through_unit("path"), wanted_QD, atol=1e-5 * np.abs(wanted_QD).max())


def test_a_diffuse_direction_is_found_that_no_single_row_shows_as_well(tmp_path: Path):
    """With plain SGD, a query u W v moves W along u alone."""
    place = open_run(make_run("memory://diffuse", *SHORT, "training.learning_rate=0.1"))
    rows, columns = place.layout.shapes[ROWS]
    diffuse_R = np.ones(rows) / np.sqrt(rows)
    file = tmp_path / "diffuse.npy"
    np.save(file, diffuse_R)
    planted_RC = torch.from_numpy(
        np.outer(diffuse_R, np.random.default_rng(0).normal(size=columns))
    )
    query = Query("u W v", {}, [lambda weights: (weights[ROWS] * planted_RC).sum()])
    found = {}
    for basis in (str(file), "neurons"):
        config = DirectionsConfig(unit=ROWS, basis=basis, side="outputs")
        found[basis] = tabulate(influence_along(place, [query], config), [query], config).directions
    assert found[str(file)]["p"][0] <= 0.05
    assert found["neurons"]["absolute"].max() < 0.8 * found[str(file)]["absolute"][0]


# --- bases ----------------------------------------------------------------------------------------


def test_a_sparse_dictionary_finds_planted_atoms():
    rng = np.random.default_rng(0)
    atom_KC = np.linalg.qr(rng.normal(size=(12, 12)))[0][:6]
    code_MK = rng.random((2000, 6)) * (rng.random((2000, 6)) < 0.15)
    found_KC = sparse_dictionary(code_MK @ atom_KC + 0.005 * rng.normal(size=(2000, 12)), 12, 0)
    np.testing.assert_allclose(np.linalg.norm(found_KC, axis=1), 1)
    assert (np.abs(found_KC @ atom_KC.T).max(0) > 0.9).all()


def test_bases_have_length_one_and_components_come_largest_variance_first():
    for basis in ("pca", "dictionary"):
        found_KC = directions(run(), UNIT, "inputs", basis, 12, 0)
        np.testing.assert_allclose(np.linalg.norm(found_KC, axis=1), 1)
    state_MC = activations(run(), UNIT, "inputs")
    assert state_MC.shape == (run().num_datums * run().token_NT.shape[1], 12)
    variance_K = (state_MC @ directions(run(), UNIT, "inputs", "pca", 12, 0).T).var(0)
    assert (np.diff(variance_K) <= 1e-12).all()


# --- the command ----------------------------------------------------------------------------------


def parsed(*arguments: str) -> argparse.Namespace:
    from cluster.commands.influence import directions as command

    top = argparse.ArgumentParser()
    command.add(top.add_subparsers())
    return top.parse_args(["directions", *arguments])


def test_the_command_prints_directions_beside_random_ones(tmp_path: Path):
    from cluster.commands.influence import directions as command

    place = copied(uri(), "memory://directions-command").uri
    file = tmp_path / "diffuse.npy"
    np.save(file, np.ones((1, 12)))
    for more in (("--basis", str(file)), ("--side", "outputs", "--method", "unrolled")):
        console = Console(width=140, file=io.StringIO(), highlight=False)
        asked = parsed(place, UNIT, "loss", *more, "--random", "19", "--replace")
        assert command.run(asked, console) == 0
        assert isinstance(console.file, io.StringIO)
        out = console.file.getvalue()
        assert "19 random directions" in out
        assert ("Check: retraining without" in out) == ("unrolled" in more)


def test_bad_input_is_one_line(tmp_path: Path):
    from cluster.commands.influence import directions as command

    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.ones((2, 5)))
    none = tmp_path / "none.npy"
    np.save(none, np.zeros((2, 12)))
    for arguments, text in (
        (("layers.1.linear2.wait", "loss"), "layers.1.linear2.wait: was not captured"),
        (("layers.1.linear2.bias", "loss"), "has 1 axes"),
        (("layers.1.self_attn.in_proj_weight", "loss"), "is no weight of a linear module"),
        ((UNIT, "loss", "--basis", str(wrong)), "holds float64 of 2 × 5, wanted numbers, K × 12"),
        ((UNIT, "loss", "--basis", str(none)), "holds a direction of length 0"),
        ((UNIT, "loss", "--side", "tops"), "directions.side: got 'tops'"),
        ((UNIT, "loss", "--method", "magic"), "directions.method: got 'magic'"),
        ((UNIT, "loss", "--random", "3"), "directions.random: got 3, must be at least 19"),
    ):
        with pytest.raises(CaptureError) as caught:
            command.run(parsed(uri(), *arguments), Console(file=io.StringIO()))
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
