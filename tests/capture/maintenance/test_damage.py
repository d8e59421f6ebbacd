"""``verify`` finds all damage in a run, and no reader returns an answer from damaged files."""

import itertools
import json
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from damage import NUMBERS, URI, Files, damaged, damages, intact, older
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from analysis.jobs.tables import read_table
from analysis.run.run import Run, open_run
from analysis.run.tallies import neuron_history, read_tally, token_history
from capture.errors import CaptureError, IncompleteRunWarning, ShardError
from capture.format.chain import read_segments
from capture.format.markers import START, checksum, encode, read_marker, segment_key, write_marker
from capture.maintenance.verify import Finding, verify
from capture.store import Store

WEIGHT = "layers.1.linear2.weight"
SHORT = settings(max_examples=100, suppress_health_check=[HealthCheck.filter_too_much])
READ = settings(SHORT, max_examples=20)
LONG = settings(SHORT, max_examples=5000, derandomize=False, phases=[Phase.generate])


def states(store: Store) -> dict[str, str]:
    return {finding.key: finding.state for finding in verify(store)}


# --- verify finds it ------------------------------------------------------------------------------


def is_found(damage: tuple[str, Files, set[str]]) -> None:
    """Check that ``verify`` names the damaged files.

    For swapped or stale files it is enough that it names a file that does not fit to them.
    """
    kind, changed, gone = damage
    with damaged(changed, gone) as store:
        bad = {key for key, state in states(store).items() if state != "unlisted"}
    really = {key for key in changed if changed[key] != intact()[key]} | gone
    if kind in ("swap", "stale"):  # of markers: the one after it may be the one that does not fit
        assert bad
    else:
        assert really <= bad


@given(damage=damages())
@SHORT
def test_any_damage_is_found(damage):
    is_found(damage)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@given(damage=damages())
@LONG
def test_any_of_many_damages_is_found(damage):
    is_found(damage)


def test_an_intact_run_has_no_findings():
    with damaged({}) as store:
        assert verify(store) == []


def test_every_missing_file_is_found():
    for key in intact():
        with damaged({}, {key}) as store:
            assert states(store)[key] == "missing", key


def test_every_stale_copy_is_found():
    """This includes the last marker, and markers that list the same bytes."""
    stale = [(k, run[k]) for run in older() for k in run if run[k] != intact()[k]]
    assert len(stale) > len(intact())
    for key, data in stale:
        with damaged({key: data}) as store:
            assert set(states(store).values()) & {"damaged", "missing"}, key


def test_removing_the_last_segment_with_its_marker_gives_an_earlier_state():
    """``verify`` finds no damage: it is the state of the run before its last segment. Readers are
    told that it is not complete."""
    last = read_marker(Store(URI), segment_key(3))
    gone = {segment_key(3), *(file.key for file in last.files), "analysis/attribute/tables.json"}
    with damaged({}, gone | {"analysis/attribute/numbers.parquet"}) as store:
        assert verify(store) == []
        with pytest.warns(IncompleteRunWarning, match="holds 21 of 24 steps"):
            assert open_run(URI).steps_done == 21


def test_tables_of_another_run_are_found():
    tables = {k: v for k, v in older()[0].items() if k.startswith("analysis/")}
    with damaged(tables) as store:
        detail = "was made from another run; make it again"
        assert verify(store) == [Finding("analysis/attribute/tables.json", "damaged", detail)]


def test_a_marker_with_a_very_large_number_gives_few_findings():
    with damaged({"segments/segment-999999999.json": b"{}"}) as store:
        assert len(verify(store)) < 210


def test_markers_of_earlier_versions_without_a_chain_are_intact():
    changed = {}
    for key in (key for key in intact() if key.startswith("segments/")):
        values = json.loads(intact()[key]) | {"previous": ""}
        del values["checksum"]
        changed[key] = encode(values | {"checksum": checksum(values)})
    tables = {key for key in intact() if key.startswith("analysis/")}
    with damaged(changed, tables) as store:
        assert verify(store) == []
        assert [marker.previous for marker in read_segments(store)] == [""] * 4


def test_each_marker_has_the_checksum_of_the_one_before_it():
    with damaged({}) as store:
        start, *segments = read_marker(store, START), *read_segments(store)
    assert start.previous == ""
    for before, after in itertools.pairwise([start, *segments]):
        assert after.previous == before.checksum


# --- readers do not answer from it ----------------------------------------------------------------

QUESTIONS: dict[str, Callable[[Run], object]] = {
    "all shifts": lambda run: run.shifts(),
    "one parameter": lambda run: run.shifts(WEIGHT, [3, 77]),
    "some steps": lambda run: run.shifts(steps=range(8, 10)),
    "steps": lambda run: run.steps(),
    "evaluations": lambda run: run.evaluations(),
    "vocabulary": lambda run: run.vocabulary(),
    "tokens": lambda run: run.target_NT,
    "weights": lambda run: run.model(14).decoder.weight.numpy(),
    "one unit's tallies": lambda run: read_tally(run, WEIGHT).update_norm_VI,
    "one neuron's tallies": lambda run: neuron_history(run, WEIGHT, 2, "input"),
    "one token's tallies": lambda run: token_history(run, "w1"),
    "a gradient": lambda run: run.gradient(9, run.steps()["datums"][9][2], WEIGHT),
    "tables": lambda run: read_table(run, "attribute", "numbers", NUMBERS),
}
ANSWERS: dict[str, object] = {}


def answer(question: str) -> object:
    if question not in ANSWERS:
        with damaged({}):
            ANSWERS[question] = QUESTIONS[question](open_run(URI))
    return ANSWERS[question]


def is_refused_or_right(damage: tuple[str, Files, set[str]], question: str) -> None:
    wanted = answer(question)
    with damaged(damage[1], damage[2]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IncompleteRunWarning)
                found = QUESTIONS[question](open_run(URI))
        except CaptureError:
            return
    if damage[0] == "delete" and "segments/segment-000003.json" in damage[2]:
        return  # an earlier state of the run, with right answers of its own
    if isinstance(wanted, np.ndarray):
        assert np.array_equal(found, wanted)  # pyright: ignore[reportArgumentType]
    else:
        assert_frame_equal(found, wanted)  # pyright: ignore[reportArgumentType]


@given(damage=damages(), question=st.sampled_from(sorted(QUESTIONS)))
@READ
def test_readers_refuse_damage_or_return_the_right_answer(damage, question):
    is_refused_or_right(damage, question)


@given(damage=damages("outliers/"), question=st.sampled_from(["all shifts", "one parameter"]))
@READ
def test_readers_of_shifts_refuse_damaged_shards(damage, question):
    is_refused_or_right(damage, question)


@given(damage=damages("factors/segment-000001"))
@READ
def test_readers_of_gradients_refuse_damaged_factors(damage):
    is_refused_or_right(damage, "a gradient")


@pytest.mark.torture
@pytest.mark.timeout(3600)
@given(damage=damages("outliers/"), question=st.sampled_from(["all shifts", "one parameter"]))
@settings(LONG, max_examples=2000)
def test_readers_of_shifts_refuse_many_damaged_shards(damage, question):
    is_refused_or_right(damage, question)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_the_message_names_shard_and_column(place):
    key = "outliers/segment-000001-w00.parquet"
    data = bytearray(intact()[key])
    data[int(place * len(data))] ^= 4
    with (
        damaged({key: bytes(data)}),
        pytest.raises(ShardError, match=rf"^{URI}/{key}: is not readable: .*checksum.*"),
    ):
        open_run(URI).shifts()


# --- or answer without it -------------------------------------------------------------------------


def test_damaged_shards_can_be_skipped_and_are_listed():
    key = "outliers/segment-000001-w00.parquet"
    whole = answer("all shifts")
    with damaged({key: intact()[key][:-1]}):
        run = open_run(URI, skip_damaged=True)
        found = run.shifts()
    kept = whole[~whole["step"].between(7, 13)].reset_index(drop=True)  # type: ignore[index]
    assert_frame_equal(found.astype({"datum": str}), kept.astype({"datum": str}))
    assert [(f.key, f.state) for f in run.skipped] == [(key, "damaged")]


def test_shifts_of_steps_with_a_missing_table_are_skipped_too():
    with damaged({}, {"steps/segment-000002.parquet"}):
        run = open_run(URI, skip_damaged=True)
        assert not run.shifts()["step"].between(14, 20).any()
        assert len(run.steps()) == 24 - 7
    assert [(f.key, f.state) for f in run.skipped] == [("steps/segment-000002.parquet", "missing")]


def test_nothing_is_skipped_of_an_intact_run():
    with damaged({}):
        run = open_run(URI, skip_damaged=True)
        assert_frame_equal(run.shifts(), answer("all shifts"))  # pyright: ignore[reportArgumentType]
    assert run.skipped == []


def test_a_run_without_an_intact_shard_raises():
    keys = [key for key in intact() if key.startswith("outliers/")]
    with damaged(dict.fromkeys(keys, b"")), pytest.raises(CaptureError, match="has no intact outl"):
        open_run(URI, skip_damaged=True).shifts()


def test_a_marker_cannot_be_written_before_the_one_that_it_follows():
    store = Store("memory://no-start")
    marker = read_marker(Store(URI), segment_key(0))
    with pytest.raises(ShardError, match=r"start\.json: is missing"):
        write_marker(store, segment_key(0), marker)
