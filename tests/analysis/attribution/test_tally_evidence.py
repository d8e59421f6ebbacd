"""Attribution from tallies."""

import functools

import numpy as np
import pytest
from attributed import attributed
from reference_analysis import records
from tiny_run import make_run, tiny_run

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.run.run import open_run
from analysis.run.tallies import read_tally, tally_windows
from capture.errors import RunError
from cluster.local.threads import run_job


@pytest.mark.parametrize(
    "evidence", ["update-norm", "ablation-estimate", "input-update-norm", "input-ablation-estimate"]
)
def test_weights_and_expectations_follow_from_the_tallies(evidence: str) -> None:
    run, found = open_run(tiny_run()), attributed(evidence=evidence)
    by = "input" if evidence.startswith("input") else "target"
    signed = evidence.endswith("ablation-estimate")
    windows = tally_windows(run)["window"]
    assert len(found.tokens) > 20
    read = functools.cache(lambda unit, *windows: read_tally(run, unit, by, *windows))
    for row in records(found.tokens.iloc[::5]):
        tally = read(row.unit)
        value_VI = tally.ablation_estimate_VI if signed else tally.update_norm_VI
        weight_VI = np.maximum(value_VI, 0).astype(float)
        others = weight_VI.sum(1) - weight_VI[:, row.group]
        expected = others[row.token_id] / others.sum() * weight_VI[:, row.group].sum()
        assert row.weight == pytest.approx(weight_VI[row.token_id, row.group])
        if expected > 0:  # else the background is given a floor
            assert row.expected == pytest.approx(expected, rel=1e-5)
        assert row.count == tally.count_V[row.token_id]
        assert np.isnan(row.up)
        each = [read(row.unit, (w,)) for w in windows]
        own = found.windows.query("unit == @row.unit and group == @row.group")
        own = own[own["token_id"] == row.token_id]
        if signed:
            values = np.array([t.ablation_estimate_VI[row.token_id, row.group] for t in each])
            assert own["weight"].tolist() == pytest.approx(np.maximum(values, 0).tolist())
            assert row.strengthened == pytest.approx(np.maximum(values, 0).sum())
            assert row.weakened == pytest.approx(np.maximum(-values, 0).sum())
        else:
            assert own["weight"].sum() == pytest.approx(row.weight, rel=1e-5)
            assert np.isnan(row.strengthened)


def test_with_tallies_datums_come_from_rows() -> None:
    tallied, rows = (attributed(evidence=evidence).datums for evidence in ("update-norm", "target"))
    keys = ["unit", "group", "datum"]
    assert tallied.set_index(keys).sort_index().equals(rows.set_index(keys).sort_index())


def test_tallies_of_an_epoch_are_those_of_its_steps() -> None:
    run, half = open_run(tiny_run()), attributed(evidence="update-norm", end_step=12)
    assert half.windows["end_step"].unique().tolist() == [12]
    row = half.tokens.iloc[0]
    update_norm_VI = read_tally(run, row["unit"], windows=[0]).update_norm_VI
    assert row["weight"] == pytest.approx(update_norm_VI[int(row["token_id"]), int(row["group"])])
    problem = "has tallies of steps 0:12, 12:24; none of these windows lies within 3:20"
    with pytest.raises(RunError, match=problem):
        attributed(evidence="ablation-estimate", first_step=3, end_step=20)


def test_a_run_without_tallies_says_how_to_get_them() -> None:
    run = open_run(make_run("memory://attribution-bare", "capture.tally.enabled=false"))
    with pytest.raises(RunError, match=r"Capture with capture\.tally\.enabled=true"):
        attribute(run, run_job, AttributionConfig(evidence="update-norm"))
