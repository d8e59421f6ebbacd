"""Reading factors gives a datum's gradient as capture computed it, from few bytes, or raises."""

import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from tiny import make_run, tiny_config

from analysis.run.gradients import read_datum
from analysis.run.run import Run, open_run
from capture.engine.build import build_engine
from capture.engine.observer import Observer
from capture.engine.step_plan import StepPlan
from capture.errors import RunError, ShardError, UnitError
from capture.gradients import dense as gradients
from capture.gradients.factors import Factors
from capture.replay.segments import read_replayable_run, replay_step
from capture.store import Store
from capture.training.loop import load_corpus

UNITS = "capture.units=[layers.*,encoder.weight,decoder.bias]"
HALF = "capture.factors.precision=float16"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return recorded(tmp_path_factory.mktemp("factors"))


def recorded(folder, *overrides: str) -> Run:
    config = tiny_config(folder, "capture.factors.enabled=true", UNITS, *overrides)
    make_run(config)
    return open_run(config.run.uri)


@pytest.fixture(scope="module")
def seen(run) -> list[tuple[list[int], Factors, float]]:
    """Return datums by slot, factors and scale of the first ten steps, as capture computed them."""
    corpus = load_corpus(run.config.corpus, batch=4)
    plan = StepPlan(run.config, corpus)
    observer = Observer(plan, build_engine(plan, run.config.capture.kinds), frozenset(["factors"]))
    found = []
    for turn, _ in zip(plan.planned_steps(0), range(10), strict=False):
        step, factors = observer.update(turn)
        found.append((turn.datum_N.tolist(), factors, step.scale))
    return found


def batch_gradients(uses, shape, scale=1.0) -> np.ndarray:
    out_NS = torch.empty(4, int(np.prod(shape)))
    gradients.write_shifts(uses, scale, out_NS)
    return out_NS.reshape(4, *shape).numpy()


# --- to the last bit ------------------------------------------------------------------------------


def test_gradients_and_shifts_are_bit_identical_to_those_of_capture(run, seen):
    for step, slots in ((0, [2]), (9, [0, 3])):
        datums, factors, scale = seen[step]
        for unit, shape in run.layout.shapes.items():
            gradient_N = batch_gradients(factors[unit], shape)
            shift_N = batch_gradients(factors[unit], shape, scale)
            for slot in slots:
                datum = datums[slot]
                assert_array_equal(run.gradient(step, datum, unit), gradient_N[slot])
                assert_array_equal(run.shift(step, datum, unit), shift_N[slot])


def assert_shifts_are_the_outliers(run, rows):
    for (step, datum, unit), some in rows.groupby(["step", "datum_id", "unit"], observed=True):
        shift = run.shift(step, datum, unit).reshape(-1)
        assert_array_equal(shift[some["index"]], some["diff"])


def test_shifts_are_bit_identical_to_the_outliers(run):
    assert_shifts_are_the_outliers(run, run.shifts(steps=range(3, 12, 4)))


ADAMW = ["training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.epochs=1"]
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_shifts_of_adam_are_bit_identical_to_the_outliers(tmp_path, caplog, device):
    """The preconditioner is computed by replaying the step."""
    run = recorded(tmp_path, *ADAMW, f"training.device={device}")
    assert_shifts_are_the_outliers(run, run.shifts(steps=range(9, 11)))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{run.uri}: step {step} has no preconditioner recorded; replaying it" for step in (9, 10)
    ]


def test_a_replayed_step_returns_numpy_arrays_on_every_device(tmp_path):
    """Arrays that are read from a store are multiplied by them, so they must not be on a device."""
    run = recorded(tmp_path, *ADAMW)
    again = replay_step(read_replayable_run(run.store), 9)
    assert again.preconditioner
    arrays = [*again.preconditioner.values(), *again.rows.array_NS.values()]
    assert {type(values) for values in arrays} == {np.ndarray}


def test_shifts_of_a_step_add_up_to_the_change_of_the_weights(tmp_path):
    run = recorded(tmp_path, "capture.segment_steps=1", "training.epochs=1")
    step = run.steps().iloc[5]
    for unit in run.layout.names:
        before, after = (run.model(s).state_dict()[unit].numpy() for s in (5, 6))
        total = sum(run.shift(5, datum, unit) for datum in step["datums"])
        assert_allclose(total, after - before, atol=1e-6)


@pytest.mark.parametrize("unit", ["layers.0.linear1.weight", "encoder.weight"])
def test_a_column_equals_that_of_the_dense_gradient(run, unit):
    datum = run.steps()["datums"][6][1]
    dense = run.gradient(6, datum, unit)
    for n in (0, dense.shape[1] - 1):
        assert_allclose(run.column(6, datum, unit, n), dense[:, n], rtol=1e-5, atol=1e-9)
        assert_array_equal(run.neuron_gradient(6, datum, unit, n), run.column(6, datum, unit, n))


def test_inner_products_equal_those_of_the_dense_gradients(run):
    steps = run.steps()["datums"]
    one, other = [(2, steps[2][0]), (9, steps[9][3])], [(9, steps[9][3]), (3, steps[3][1])]
    units = ["layers.0.linear1.weight", "layers.1.norm2.bias", "encoder.weight"]
    wanted = [
        [sum(np.vdot(run.gradient(*a, u), run.gradient(*b, u)) for u in units) for b in other]
        for a in one
    ]
    assert_allclose(run.inner_products(units, one, other), wanted, rtol=1e-4, atol=1e-10)


# --- float16 --------------------------------------------------------------------------------------


def test_float16_errors_are_within_the_recorded_bound(run, tmp_path):
    rough = recorded(tmp_path, HALF)
    datum, worst = run.steps()["datums"][8][2], 0.0
    for unit in run.layout.names:
        exact = run.gradient(8, datum, unit).astype(float)
        off = np.abs(rough.gradient(8, datum, unit) - exact)
        bound = rough.gradients.error(8, datum, unit)
        assert (off <= bound + 1e-6 * np.abs(exact).max()).all()
        assert (bound <= 0.01 * np.abs(exact).max() + 1e-12).all(), "and says something"
        assert not run.gradients.error(8, datum, unit).any()
        worst = max(worst, off.max())
    assert worst > 0


# --- errors ---------------------------------------------------------------------------------------


def test_impossible_queries_raise_with_the_reason(run):
    steps = run.steps()["datums"]
    datum, absent = steps[3][0], steps[2][0]
    with pytest.raises(UnitError, match=r"decoder\.weight: was not captured.*mean encoder\.weight"):
        run.gradient(3, datum, "decoder.weight")
    with pytest.raises(RunError, match="has no step 28: its steps are 0 to 27"):
        run.gradient(28, datum, "decoder.bias")
    again = [step for step, there in enumerate(steps) if absent in there]
    text = f"had no datum {absent} in step 3. It was in steps {', '.join(map(str, again))}."
    with pytest.raises(RunError, match=re.escape(text)):
        run.gradient(3, absent, "decoder.bias")
    with pytest.raises(RunError, match=r"had no datum 99999 in step 3\.$"):
        run.gradient(3, 99999, "decoder.bias")
    with pytest.raises(UnitError, match=r"linear1\.weight\[:, 12\]: does not exist.*10 × 12"):
        run.column(3, datum, "layers.0.linear1.weight", 12)


def test_a_table_of_another_step_s_datums_is_refused(run, tmp_path):
    """Rows are found by step and slot, and must have the datum that the steps table has there."""
    datum = run.steps()["datums"][3][1]
    gradients, unit, place = run.gradients, "decoder.bias", (3, 1, datum + 1)
    with pytest.raises(ShardError, match="another datum than steps/ at step 3, slot 1"):
        read_datum(
            gradients.factors[0], gradients.stored_layout, run.layout.shapes[unit], unit, place
        )


# --- few bytes ------------------------------------------------------------------------------------


def test_reading_one_unit_of_one_datum_reads_a_small_part_of_a_table(run, monkeypatch):
    read = 0
    original = Store.open

    def counting(self, key):
        source = original(self, key)
        if key.startswith("factors/"):
            fetch = source.read

            def read_counted(size=-1):
                nonlocal read
                data = fetch(size)
                read += len(data)
                return data

            monkeypatch.setattr(source, "read", read_counted, raising=False)
        return source

    monkeypatch.setattr(Store, "open", counting)
    fresh = open_run(run.uri)
    fresh.gradient(3, fresh.steps()["datums"][3][0], "layers.1.linear2.weight")
    whole = sum(shard.file.num_bytes for shard in fresh.shards("factors"))
    assert 0 < read < whole
