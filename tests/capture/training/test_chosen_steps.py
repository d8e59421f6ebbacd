"""Outliers and factors of chosen segments: equal to a full record, and completed by a replay."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import Small
from recorded_loops import OPTIMIZERS, recorded
from tiny import contents, make_run, tiny_config

from analysis.attribution.config import AttributionConfig
from analysis.attribution.row_passes import OutlierRows
from analysis.behaviour.behaviour import count_visits
from analysis.parameters.tokens import datums_of_steps
from analysis.run.description import describe
from analysis.run.run import Run, open_run
from capture.engine import observer
from capture.errors import RunError
from capture.maintenance.verify import verify
from capture.replay.segments import read_replayable_run, replay_segment
from capture.shifts.outliers import OutlierConfig
from capture.store import Store
from cluster.local.threads import run_job

CHOSEN = (
    "capture.factors.enabled=true",
    "capture.outliers.steps=[3,every:17]",  # steps 0, 3 and 17, in segments 0 and 2 of 4
    "capture.factors.steps=[26-40]",  # the last segment
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that recorded everything."""
    folder = tmp_path_factory.mktemp("whole")
    make_run(tiny_config(folder, CHOSEN[0]))
    return contents(str(folder / "run"))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> tuple[Path, int]:
    """A run with chosen segments, and how often it searched for outliers."""
    folder, calls, find = tmp_path_factory.mktemp("chosen"), [], observer.find_outliers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observer, "find_outliers", lambda *a: calls.append(1) or find(*a))
        make_run(tiny_config(folder, *CHOSEN))
    return folder / "run", len(calls)


def kept(key: str) -> bool:
    """Whether a file of the full record belongs to the chosen segments."""
    if key.startswith("outliers/"):
        return "segment-000000" in key or "segment-000002" in key
    return not key.startswith("factors/") or "segment-000003" in key


def test_chosen_segments_equal_those_of_a_full_record_byte_for_byte(whole, chosen):
    folder, searches = chosen
    assert contents(str(folder)) == {key: data for key, data in whole.items() if kept(key)}
    assert searches == 16  # no selection in the other segments
    assert verify(Store(str(folder))) == []
    assert open_run(folder).steps()["audit_error"].between(0, 1e-5).all()


def test_a_replay_adds_the_rest(whole, chosen, tmp_path):
    shutil.copytree(chosen[0], tmp_path / "run")
    replayable = read_replayable_run(Store(str(tmp_path / "run")))
    added = [replay_segment(replayable, n, ["outliers", "factors"]).added for n in range(4)]
    assert added == [("factors",), ("outliers", "factors"), ("factors",), ("outliers",)]
    assert contents(str(tmp_path / "run")) == whole
    run = open_run(tmp_path / "run")
    assert run.committed.partly_recorded("outliers") == ""
    assert set(run.shifts()["step"]) == set(range(28))


def test_readers_say_which_steps_are_recorded(chosen, caplog):
    run = open_run(chosen[0])
    assert "outliers of 16 of 28 steps: 0-7, 16-23" in describe(run)["records"]
    assert "factors of 4 of 28 steps: 24-27" in describe(run)["records"]
    assert set(run.shifts()["step"]) == {*range(8), *range(16, 24)}
    run.shifts()
    (warning,) = caplog.messages  # once
    assert "has outliers of 16 of 28 steps: 0-7, 16-23. Add the others: ontogeny replay" in warning


def test_visits_and_backgrounds_count_the_recorded_steps(chosen):
    run = open_run(chosen[0])
    steps = run.steps()
    datums = np.concatenate(steps["datums"][run.shifts()["step"].unique()].tolist())
    assert np.array_equal(count_visits(run), np.bincount(datums, minlength=run.num_datums))
    assert not datums_of_steps(run, range(8, 12)).any()
    rows = OutlierRows.of(run, run_job, AttributionConfig(first_step=4))
    recorded = np.concatenate(steps["datums"][[*range(4, 8), *range(16, 24)]].tolist())
    assert np.array_equal(rows.datums_with_rows(np.zeros(0)), np.unique(recorded))
    with pytest.raises(RunError, match="has no outliers of steps 8 to 15"):
        OutlierRows.of(run, run_job, AttributionConfig(first_step=8, end_step=16))


def test_steps_without_a_record_are_refused_not_empty(chosen):
    run = open_run(chosen[0])
    assert len(run.shifts(steps=range(16, 24)))
    with pytest.raises(RunError, match="has no outliers of steps 8 to 15") as error:
        run.shifts(steps=range(4, 12))
    assert "--record outliers --segments 1" in str(error.value)


def recorded_loop(folder: Path, outliers: OutlierConfig, factor_steps: Sequence[str]) -> Run:
    torch.manual_seed(0)
    model = Small()
    return recorded(
        folder, OPTIMIZERS["adam"], model=model, outliers=outliers, factor_steps=factor_steps
    )


def test_a_custom_loop_records_chosen_segments(tmp_path):
    """10 steps in segments of 4: outliers of the first and last, factors of the second."""
    whole = recorded_loop(tmp_path / "whole", OutlierConfig(k=20), [])
    run = recorded_loop(tmp_path / "part", OutlierConfig(k=20, steps=["0", "9"]), ["4-7"])
    rows = whole.shifts()
    assert run.shifts().equals(rows[~rows["step"].between(4, 7)].reset_index(drop=True))
    datum, unit = run.steps()["datums"][5][0], run.layout.names[0]
    assert np.array_equal(run.gradient(5, datum, unit), whole.gradient(5, datum, unit))
    assert run.steps().equals(whole.steps())
    with pytest.raises(RunError, match="cannot be replayed") as error:
        run.gradient(1, run.steps()["datums"][1][0], unit)
    assert "in the steps that have factors" in str(error.value)
    with pytest.raises(RunError, match="no outliers of steps 4 to 7") as error:
        run.shifts(steps=range(5, 6))
    assert "ontogeny replay" not in str(error.value)
