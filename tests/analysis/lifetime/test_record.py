"""The record of lifetime shifts equals dense gradients times coefficients, and obeys law 11."""

import functools
from unittest import mock

import numpy as np
import pytest
from recorded_loops import OPTIMIZERS, recorded
from reference_lifetime_record import dense_lifetime_shifts, largest
from tiny_run import copied, make_run

from analysis.lifetime import backward, contributions
from analysis.lifetime.backward import BackwardStep, backward_steps
from analysis.lifetime.norms import position_norms
from analysis.lifetime.record import record_lifetimes
from analysis.lifetime.run import LifetimeRun, law_of_units, lifetime_run, read_tally
from analysis.run.run import Run, open_run
from analysis.run.tallies import read_tally as read_recorded_tally
from capture.errors import AuditError, IncompleteRunWarning, StoreError
from capture.maintenance.verify import verify
from capture.shifts.outliers import OutlierConfig

UNITS = ["layers.0.linear1.weight", "layers.1.linear2.weight", "layers.1.norm2.weight"]
SETTINGS = (
    *("training.epochs=1", "capture.segment_steps=5", "capture.factors.enabled=true"),
    *(f"capture.units=[{','.join(UNITS)}]", "capture.outliers.k=20"),
    *("training.schedule.kind=cosine", "training.schedule.warmup_steps=3"),
)
ADAM = ("training.learning_rate=0.01", "training.optimizer.kind=adam")
VARIANTS = {
    "sgd": ("training.learning_rate=0.5",),
    "momentum": ("training.learning_rate=0.5", "training.optimizer.momentum=0.9"),
    "nesterov": (
        *("training.learning_rate=0.5", "training.optimizer.momentum=0.9"),
        *("training.optimizer.nesterov=true", "training.optimizer.weight_decay=0.3"),
    ),
    "adam": ADAM,
    "adamw": (*ADAM[:1], "training.optimizer.kind=adamw", "training.optimizer.weight_decay=0.3"),
}


ONLY_ADAMW = pytest.mark.parametrize("run", ["adamw"], indirect=True)


@functools.cache
def made(variant: str) -> Run:
    return open_run(make_run(f"memory://lifetime-record-{variant}", *SETTINGS, *VARIANTS[variant]))


@pytest.fixture(scope="module", params=VARIANTS)
def run(request) -> Run:
    return made(request.param)


@pytest.fixture(scope="module")
def found(run) -> LifetimeRun:
    return lifetime_run(run)


def test_rows_are_the_largest_of_dense_gradients_times_coefficients(run, found):
    rows, layout = found.shifts(), run.layout
    offsets = dict(zip(layout.names, layout.offsets, strict=False))
    place_M = rows["unit"].astype(object).map(offsets).to_numpy() + rows["index"].to_numpy()
    for (step, slot), shift_P in dense_lifetime_shifts(run).items():
        own_M = ((rows["step"] == step) & (rows["datum_ix"] == slot)).to_numpy()
        wanted_K = largest(shift_P, 20)
        order_K = np.argsort(place_M[own_M])
        np.testing.assert_array_equal(place_M[own_M][order_K], wanted_K)
        np.testing.assert_allclose(
            rows["diff"].to_numpy()[own_M][order_K], shift_P[wanted_K], rtol=2e-5
        )


def test_lifetime_shifts_and_decay_are_the_change_of_every_unit(run, found):
    units = law_of_units(run)
    assert units["unit"].tolist() == run.layout.names
    assert (units["missed"] < 1e-5).all()
    assert (units["change"] > 0).all()
    decays = run.config.training.optimizer.weight_decay > 0
    assert (units["decay"] > 0).all() == decays


def test_under_plain_sgd_the_record_is_that_of_the_run(run, found):
    own, lifetime = run.shifts(), found.shifts()
    same = own.equals(lifetime)
    assert same == run.config.training.optimizer.plain
    if same:
        for unit in UNITS[:2]:
            for by in ("target", "input"):
                one, other = read_recorded_tally(run, unit, by), read_tally(found, unit, by)
                np.testing.assert_array_equal(one.count_V, other.count_V)
                norms = one.update_norm_VI, other.update_norm_VI
                np.testing.assert_allclose(*norms, rtol=2**-6)  # two windows, 7 bits each


def test_norms_are_those_of_dense_lifetime_shifts_of_positions(run, found):
    unit, row = UNITS[1], run.steps().iloc[4]
    step = next(each for each in backward_steps(run) if each.step == 4)
    coefficient = np.broadcast_to(np.asarray(step.coefficients[unit], float), (16, 12))
    (use,) = step.factors[unit]
    assert use.a_NTI is not None
    delta_NTO, a_NTI = use.delta_NTO.double().numpy(), use.a_NTI.double().numpy()
    part_NTOI = coefficient * delta_NTO[..., None] * a_NTI[..., None, :]
    norm_MI = position_norms(step, {unit: 12}).numpy()
    np.testing.assert_allclose(norm_MI, norm_of(part_NTOI).reshape(-1, 12), rtol=1e-5, atol=1e-12)
    # Summed over positions, the parts are the datum's lifetime shift.
    whole_NOI = part_NTOI.sum(1)
    for slot, datum in enumerate(row["datums"]):
        wanted = run.shift(4, datum, unit, lifetime=True)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(whole_NOI[slot], wanted, rtol=1e-4, atol=1e-6 * scale)


def norm_of(part_NTOI: np.ndarray) -> np.ndarray:
    return np.sqrt((part_NTOI**2).sum(2))


def test_stored_norms_are_sums_over_the_positions_of_a_window(run, found):
    unit = UNITS[0]
    total_VI = np.zeros((run.num_tokens, 16))
    for step in backward_steps(run):
        token_M = run.target_NT[step.datum_N].ravel()
        np.add.at(total_VI, token_M, position_norms(step, {unit: 16}).numpy())
    assert total_VI.any()
    np.testing.assert_allclose(read_tally(found, unit).update_norm_VI, total_VI, rtol=2**-7)


@ONLY_ADAMW
def test_memory_changes_nothing(run, found):
    """Steps are replayed one by one here, and a segment at a time in the other record."""
    other = open_run(run.uri, tables=f"{run.uri}-step-by-step")
    record_lifetimes(other, max_bytes=1)
    again = lifetime_run(other)
    assert again.record.files == found.record.files
    assert again.shards("outliers")[0].store is other.tables


# --- when it is computed --------------------------------------------------------------------------


@ONLY_ADAMW
def test_it_is_computed_once_for_the_run_as_it_is(run, found):
    done = []
    again = lifetime_run(open_run(run.uri), lambda *counts: done.append(counts))
    assert done == []
    assert again.record == found.record
    assert lifetime_run(again) is again


@ONLY_ADAMW
def test_a_damaged_or_foreign_record_is_computed_again(run, found):
    run.store.delete("analysis/lifetime/tables.json")
    done = []
    again = lifetime_run(open_run(run.uri), lambda *counts: done.append(counts))
    assert done[-1] == (12, 12)
    assert again.shifts().equals(found.shifts())
    assert not verify(run.store)


def test_a_run_that_has_grown_gets_a_new_record():
    whole = made("adamw")
    store = copied(whole.uri, "memory://lifetime-record-grown")
    last = "segments/segment-000002.json"
    marker = store.get(last)
    store.delete(last)
    with pytest.warns(IncompleteRunWarning):
        short = open_run(store.uri)
    rows = lifetime_run(short).shifts()
    assert rows["step"].max() == 9
    store.put(last, marker)
    grown = lifetime_run(open_run(store.uri)).shifts()
    assert grown.equals(lifetime_run(whole).shifts())
    # Two more steps of momentum have added to what the first ten contribute.
    before, after = (np.abs(each[each["step"] == 8]["diff"]).sum() for each in (rows, grown))
    assert after > 1.1 * before


def test_a_record_that_cannot_be_written_is_refused_before_the_pass(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    uri = make_run("memory://lifetime-read-only", *SETTINGS, *ADAM)
    with pytest.raises(StoreError, match=r"is not a folder\. Lifetime shifts are stored\. Keep"):
        lifetime_run(open_run(uri, tables=str(file / "tables")))


def test_of_the_loss_at_the_last_position():
    options = (*SETTINGS, *VARIANTS["adamw"], "capture.loss_positions=last")
    run = open_run(make_run("memory://lifetime-record-last", *options))
    rows = lifetime_run(run).shifts()
    for step, slot in ((0, 3), (5, 0)):
        own = rows[(rows["step"] == step) & (rows["datum_ix"] == slot)]
        shifts = [run.shift(step, own["datum_id"].iloc[0], unit, lifetime=True) for unit in UNITS]
        wanted = np.sort(np.abs(np.concatenate([shift.ravel() for shift in shifts])))[-20:]
        np.testing.assert_allclose(np.sort(own["abs_diff"]), wanted, rtol=2e-5)


@ONLY_ADAMW
def test_a_run_that_lost_gradients_fails_the_law(run):
    other = open_run(run.uri, tables=f"{run.uri}-wrong")
    steps = mock.patch.object(backward, "BackwardStep", halved)
    with steps, pytest.raises(AuditError, match=r"decay that miss \d.*No lifetime shifts"):
        record_lifetimes(other)
    assert not other.tables.exists("analysis/lifetime/tables.json")


def halved(step, datum_N, factors, coefficients) -> BackwardStep:
    return BackwardStep(step, datum_N, factors, {n: by / 2 for n, by in coefficients.items()})


# --- custom training loops ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_custom_loop_with_factors(tmp_path, optimizer):
    run = recorded(tmp_path, OPTIMIZERS[optimizer], outliers=OutlierConfig(k=66, scope="unit"))
    rows = lifetime_run(run).shifts(unit="layer.weight")
    total = np.zeros(run.layout.shapes["layer.weight"])
    np.add.at(total.reshape(-1), rows["index"], rows["diff"])
    change = run.checkpoint()["layer.weight"].double() - run.checkpoint(0)["layer.weight"]
    left = change.numpy() - total - run.initial_decay("layer.weight")
    assert np.linalg.norm(left) < 1e-5 * np.linalg.norm(change)


# --- contributions --------------------------------------------------------------------------------


def test_contributions_of_tokens_and_decay_are_the_change_of_each_neuron(run, found):
    neurons = found.neuron_changes().set_index(["unit", "neuron"])
    assert len(neurons) == 16 + 12
    for unit in UNITS[:2]:
        change = (run.checkpoint()[unit].double() - run.checkpoint(0)[unit].double()).numpy()
        own = neurons.loc[unit]
        np.testing.assert_allclose(own["change"], np.linalg.norm(change, axis=0), rtol=1e-12)
        for by in ("target", "input"):
            part_VI = found.contributions(unit, by)
            scale = own["change"].max()
            np.testing.assert_allclose(part_VI.sum(0), own["shifts"], atol=1e-5 * scale)
            whole_I = part_VI.sum(0) + own["decay"]
            np.testing.assert_allclose(whole_I, own["change"], atol=2e-5 * scale)


def test_contributions_are_dense_lifetime_shifts_along_the_change(run, found):
    """Summed over the tokens of a datum, positions contribute what the datum does."""
    unit = UNITS[0]
    change_OI = (run.checkpoint()[unit].double() - run.checkpoint(0)[unit].double()).numpy()
    along_OI = change_OI / np.linalg.norm(change_OI, axis=0)
    wanted_I = np.zeros(16)
    for step in run.lifetime_shifts(unit):
        wanted_I += (step.shift_N * along_OI).sum((0, 1), dtype=np.float64)
    scale = np.abs(wanted_I).max()
    found_I = found.contributions(unit, "target").sum(0)
    np.testing.assert_allclose(found_I, wanted_I, atol=1e-5 * scale)


@ONLY_ADAMW
def test_contributions_that_need_too_much_memory_are_left_out_and_logged(run, caplog):
    other = open_run(run.uri, tables=f"{run.uri}-bounded")
    with mock.patch.object(contributions, "MAX_BYTES", 4 * 2 * run.num_tokens * 16):
        record_lifetimes(other)
    assert "left out for 1 of 2 MLP units, from layers.1.linear2.weight on" in caplog.text
    found = lifetime_run(other)
    assert set(found.neuron_changes()["unit"]) == {UNITS[0]}
    assert found.contributions(UNITS[0], "target").any()
