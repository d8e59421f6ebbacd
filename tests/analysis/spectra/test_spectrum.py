"""Spectra of small runs against numpy's SVD of the dense matrix, and what must not change them."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_run import make_run
from torch import Tensor

from analysis.jobs.tables import read_question, read_table
from analysis.run.run import Run, open_run
from analysis.spectra.config import SpectrumConfig, What
from analysis.spectra.pieces import pieces_of
from analysis.spectra.reading import StepSource, step_source
from analysis.spectra.spectrum import measure_spectrum, spectrum_question, write_spectrum
from analysis.spectra.tables import SCHEMAS, Spectrum
from analysis.spectra.unfinished import UnfinishedGram
from capture.engine.engine import Engine
from capture.engine.step import Step
from capture.errors import CaptureError, ShardError
from cluster.local.work_pool import in_processes

UNITS = ("layers.1.linear1.weight", "layers.1.linear2.*", "layers.1.norm2.weight")
FEW = SpectrumConfig(units=UNITS, draws=2, repeats=2)
ADAM = ["training.optimizer.kind=adam", "training.learning_rate=0.01", "training.clip=1"]


@functools.cache
def uri(kind: str) -> str:
    """A run of 12 steps: sgd, adam, or factors (sgd with stored factors)."""
    more = {"sgd": [], "adam": ADAM, "factors": ["capture.factors.enabled=true"]}[kind]
    settings = ["training.epochs=1", "training.learning_rate=0.5", *more]
    return make_run(f"memory://spectrum-{kind}", *settings)


def run(kind: str = "sgd") -> Run:
    return open_run(uri(kind))


@functools.cache
def found(kind: str = "sgd", what: What = "gradients") -> Spectrum:
    return measure_spectrum(run(kind), replace(FEW, what=what))


@functools.cache
def dense(kind: str, what: What) -> np.ndarray:
    """The matrix of the chosen units, steps as rows, from other queries of the run."""
    opened = run(kind)
    names = step_source(opened, replace(FEW, what=what)).layout.names
    if what == "gradients":
        batches = opened.steps()["datums"]
        return np.array(
            [
                np.concatenate(
                    [np.sum([opened.gradient(s, d, u) for d in batch], 0).flatten() for u in names]
                )
                for s, batch in enumerate(batches)
            ]
        )
    from capture.replay.steps import StepReplayer

    replayer = StepReplayer(opened.gradients.replayable, [opened.start, *opened.segments])
    after = [replayer.weights_after(s, names, lambda: None) for s in range(opened.steps_done + 1)]
    weight_SP = np.array([np.concatenate([w[u].flatten() for u in names]) for w in after])
    return weight_SP[1:] if what == "weights" else np.diff(weight_SP, axis=0)


@pytest.mark.parametrize(
    ("kind", "what"),
    [("sgd", "gradients"), ("factors", "gradients"), ("adam", "updates"), ("sgd", "weights")],
)
def test_values_are_those_of_the_dense_matrix(kind: str, what: What):
    row_SP = dense(kind, what).astype(np.float64)
    left_PK, value_K, right_KS = np.linalg.svd(row_SP.T, full_matrices=False)
    spectrum = found(kind, what)
    np.testing.assert_allclose(spectrum.values["value"], value_K, atol=1e-5 * value_K[0])
    weight_KS = spectrum.steps["weight"].to_numpy().reshape(5, -1)
    np.testing.assert_allclose(abs((weight_KS * right_KS[:5]).sum(1)), 1, atol=1e-4)
    (first, *_) = spectrum.spectra.to_dict("records")
    assert (first["treatment"], first["matrix"], first["draws"]) == ("as recorded", "run", 1)
    assert first["over_cutoff"] == (value_K > 0.1 * value_K[0]).sum()
    steps, entries = dense(kind, what).shape
    edge = np.sqrt((value_K**2).mean() / entries) * (np.sqrt(entries) + np.sqrt(steps))
    assert first["over_edge"] == (value_K > edge).sum()
    assert first["stable_rank"] == pytest.approx((value_K**2).sum() / value_K[0] ** 2, rel=1e-4)
    shares = np.square(left_PK[:, 0])
    (strongest, *_) = spectrum.neurons.to_dict("records")
    unit = strongest["unit"]
    source = step_source(run(kind), replace(FEW, what=what))
    place = source.layout.names.index(unit)
    own = shares[source.layout.offsets[place] : source.layout.offsets[place + 1]]
    if strongest["level"] == "unit":
        wanted = own.sum()
    else:  # neurons of MLP weights are inputs, which are columns here
        wanted = own.reshape(source.layout.shapes[unit])[:, strongest["group"]].sum()
    assert strongest["share"] == pytest.approx(wanted, rel=1e-3)


def test_stored_factors_and_replay_give_the_same():
    assert step_source(run("factors"), SpectrumConfig()).replayer is None
    assert step_source(run(), SpectrumConfig()).replayer is not None
    for name in ("values", "learned", "datums"):
        one, other = (getattr(found(kind), name) for kind in ("sgd", "factors"))
        numbers = one.select_dtypes("number")
        np.testing.assert_allclose(numbers, other[numbers.columns], rtol=1e-3, atol=1e-5)


def test_pieces_change_nothing_and_can_be_resumed():
    opened, config = run(), FEW
    layout = step_source(opened, config).layout
    pieces = pieces_of(layout, 12, 12 * 4 * 100)
    assert len(pieces) == -(-layout.size // 100)
    assert sum(part.size for piece in pieces for part in piece) == layout.size
    asked = UnfinishedGram.of(opened, spectrum_question(config), pieces, "")
    in_pieces = measure_spectrum(opened, config, resumable=True, max_bytes=12 * 4 * 100)
    for name in ("values", "directions", "neurons", "learned", "datums", "samples"):
        one, other = getattr(found(), name), getattr(in_pieces, name)
        numbers = one.select_dtypes("number").drop(columns="direction", errors="ignore")
        np.testing.assert_allclose(numbers, other[numbers.columns], rtol=1e-3, atol=1e-5)
    done, _ = asked.read(12)
    assert done == len(pieces) - 1
    counts = []
    measure_spectrum(
        opened,
        config,
        lambda done, wanted: counts.append(done),
        resumable=True,
        max_bytes=12 * 4 * 100,
    )
    assert counts[-1] == 12 + 12 * len(pieces) + 12  # one piece, left vectors, datums
    opened.tables.put(asked.key, b"damaged")
    with pytest.raises(ShardError, match="Delete it; it is computed again"):
        measure_spectrum(opened, config, resumable=True, max_bytes=12 * 4 * 100)
    write_spectrum(opened, found(), spectrum_question(config))
    assert not opened.tables.exists(asked.key)
    assert read_question(opened, "spectrum").options["what"] == "gradients"
    for name, schema in SCHEMAS.items():
        assert len(read_table(opened, "spectrum", name, schema)) == len(getattr(found(), name))


@pytest.mark.parametrize(("kind", "what"), [("sgd", "gradients"), ("factors", "gradients")])
def test_loads_of_the_datums_add_up_to_the_direction(kind: str, what: What):
    everything = replace(FEW, what=what, datums=10**6)
    spectrum = measure_spectrum(run(kind), everything)
    weights = spectrum.steps.groupby("direction")["weight"].sum()
    loads = spectrum.datums.groupby("direction")["load"].sum()
    np.testing.assert_allclose(loads, weights * spectrum.directions["value"], rtol=1e-3, atol=1e-4)


def test_loads_under_adam_are_those_of_the_dense_shifts():
    config = replace(FEW, what="updates", datums=100, directions=1)
    opened = run("adam")
    spectrum = measure_spectrum(opened, config)
    source = step_source(opened, config)
    row_SP = dense("adam", "updates")
    left_P = np.linalg.svd(row_SP.T, full_matrices=False)[0][:, 0]
    left_P *= np.sign(row_SP.T @ spectrum.steps["weight"].to_numpy() @ left_P)
    batches = opened.steps()["datums"]
    for row in spectrum.datums.head(3).to_dict("records"):
        wanted = sum(
            np.concatenate(
                [opened.shift(s, row["datum"], u).flatten() for u in source.layout.names]
            )
            @ left_P
            for s, batch in enumerate(batches)
            if row["datum"] in batch
        )
        assert row["load"] == pytest.approx(wanted, rel=1e-2)


def test_time_and_neurons_account_for_all_squares():
    row_SP = dense("sgd", "gradients").astype(np.float64)
    learned = found().learned
    assert learned["share"].sum() == pytest.approx(1)
    square_S = np.square(row_SP).sum(1)
    mean = (square_S @ np.arange(12)) / square_S.sum()
    assert (learned["share"] * learned["centre"]).sum() == pytest.approx(mean, rel=1e-4)
    assert learned["null_centre"].iloc[0] == pytest.approx(mean, rel=1e-4)
    values = found().values
    assert values["share"].sum() == pytest.approx(1)
    assert values["value"][0] > 1.2 * values["gaussian"][0]
    rows = found().spectra.to_dict("records")[:3]
    assert [row["matrix"] for row in rows] == ["run", "gaussian", "norms kept"]
    assert rows[0]["stable_rank"] < rows[2]["stable_rank"] < rows[1]["stable_rank"]


@pytest.mark.parametrize("kind", ["sgd", "factors"])
def test_training_in_all_directions_is_the_run_and_in_few_is_not(kind: str):
    config = replace(FEW, datums=0, low_rank=(1, 12))
    table = measure_spectrum(run(kind), config).low_rank
    assert table["draw"].tolist() == [0, 1, 2] * 2
    assert table["basis"].tolist() == ["leading", "random", "random"] * 2
    rows = {(row["directions"], row["draw"]): row for row in table.to_dict("records")}
    for draw in (0, 1, 2):
        whole = rows[12, draw]
        assert whole["projected"] == pytest.approx(whole["end"], abs=2e-4)
        assert whole["trained"] == pytest.approx(whole["end"], abs=2e-4)
        assert rows[1, draw]["trained"] != pytest.approx(whole["end"], abs=2e-3)
    assert rows[1, 1]["trained"] != rows[1, 2]["trained"]


def test_no_step_is_replayed_between_two_trainings(monkeypatch):
    steps, plain = [], Engine.step

    def counted(self: Engine, *batch: Tensor, step: int, epoch: int) -> Step:
        steps.append(step)
        return plain(self, *batch, step=step, epoch=epoch)

    def taken(*counts: int) -> list[int]:
        steps.clear()
        measure_spectrum(found, replace(config, low_rank=counts))
        return steps.copy()

    found = run("adam")  # trains
    monkeypatch.setattr(Engine, "step", counted)
    config = replace(FEW, datums=0, steps=(9, 12))
    one, two = taken(1), taken(1, 2)
    # More directions take three more trainings: of the leading and of two random ones.
    assert two == one + [9, 10, 11] * 3


@pytest.mark.parametrize(
    ("kind", "what"), [("sgd", "gradients"), ("factors", "gradients"), ("sgd", "weights")]
)
def test_every_other_step_is_a_part_of_the_matrix(kind: str, what: What):
    config = replace(FEW, what=what, datums=0, every=2, steps=(1, 10))
    part = measure_spectrum(run(kind), config)
    value_K = np.linalg.svd(dense(kind, what).astype(np.float64)[1:10:2], compute_uv=False)
    np.testing.assert_allclose(part.values["value"], value_K, atol=1e-5 * value_K[0])
    assert part.steps["step"].unique().tolist() == [1, 3, 5, 7, 9]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"what": "gradient"}, "got 'gradient', wanted gradients, updates, weights"),
        ({"cutoff": 1.0}, "got 1.0, must be between 0 and 1"),
        ({"draws": 10**24}, "must be at most 10000"),
        ({"every": 0}, "spectrum.every: got 0, must be at least 1"),
        ({"every": 6}, "has 2 steps for a spectrum, which needs 3"),
        ({"draws": 1}, "spectrum.draws: got 1, must be at least 2"),
        ({"low_rank": (3,), "what": "weights"}, "needs directions of gradients or updates"),
        ({"units": ("layer.9",)}, "layer.9: matches no captured unit. Did you mean"),
        ({"steps": (3, 99)}, "has no steps 3 to 98; it has 12"),
        ({"steps": (3, 6), "skip": 2}, "has 1 steps for a spectrum, which needs 3"),
        ({"low_rank": (13,)}, "spectrum.low_rank: got 13, the steps have 12 directions"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, Any], text: str):
    with pytest.raises(CaptureError) as caught:
        measure_spectrum(run(), replace(SpectrumConfig(draws=2, repeats=2), **settings))
    assert text in str(caught.value)


def test_low_rank_training_without_held_out_data_is_refused_before_anything_is_read():
    place = make_run("memory://spectrum-all", "training.epochs=1", "corpus.validation_share=0")
    with pytest.raises(CaptureError, match="needs held-out data, and the run has none"):
        measure_spectrum(
            open_run(place),
            SpectrumConfig(low_rank=(1,)),
            lambda done, wanted: pytest.fail("read a step"),
        )


@pytest.mark.parametrize(
    ("value", "text"),
    [(np.nan, "not finite in these steps. Choose steps before"), (0.0, "that are all 0 in these")],
)
def test_a_run_that_diverged_or_stood_still_is_refused(
    value: float, text: str, monkeypatch: pytest.MonkeyPatch
):
    row_SP = np.full((12, 300), value, np.float32)
    monkeypatch.setattr(StepSource, "rows", lambda self, piece, report: row_SP)
    with pytest.raises(CaptureError) as caught:
        measure_spectrum(run(), FEW)
    assert text in str(caught.value)


@pytest.mark.slow
def test_processes_change_nothing(tmp_path: Path):
    place = make_run(str(tmp_path / "run"), "training.epochs=1", "training.learning_rate=0.5")
    opened, size = open_run(place), 12 * 4 * 200
    alone = measure_spectrum(opened, FEW, max_bytes=size)
    beside = measure_spectrum(opened, FEW, sweep=in_processes(2, place), max_bytes=size)
    for name in SCHEMAS:
        pd.testing.assert_frame_equal(getattr(alone, name), getattr(beside, name))
