"""Influence tables: both methods end to end, resuming, the horizon, baselines, errors."""

import functools
import json
from typing import Any
from unittest import mock

import numpy as np
import pytest
from path_steps import path_steps
from tiny_run import copied, make_run

from analysis.influence.config import METHODS, InfluenceConfig
from analysis.influence.finished_segments import FinishedSegments
from analysis.influence.influence import compute_influence, discard_unfinished, finished_segments
from analysis.influence.judge.scores import method_scores
from analysis.influence.queries.parsing import build_queries
from analysis.influence.sums import windows_of
from analysis.influence.tables import DATUMS, JOB, Influence, write_influence
from analysis.jobs.influence_wording import explanation
from analysis.jobs.tables import read_table, table_set
from analysis.run.run import Run, open_run
from capture.errors import CaptureError
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.reverse import unroll
from capture.unrolled.states import BackwardWalker

SETTINGS = (
    *("training.epochs=1", "training.batch=8", "capture.segment_steps=2", "model.dropout=0.1"),
    *("training.optimizer.kind=adamw", "training.learning_rate=0.01"),
    "training.optimizer.weight_decay=0.1",
)
ASKED = ({"prompt": "w1 w3", "completion": "w4"}, "datum:validation:0")


@functools.cache
def run() -> Run:
    return open_run(make_run("memory://influence", *SETTINGS))


@functools.cache
def answer(method: str, **settings: Any) -> Influence:
    config = InfluenceConfig(method=method, **settings)
    return compute_influence(run(), build_queries(run(), ASKED), config, resumable=False)


def influence_by_datum(found: Influence) -> np.ndarray:
    queries = found.queries["query"]
    own = found.datums.pivot(index="query", columns="datum", values="influence")
    return own.loc[queries].to_numpy()


# --- the numbers ----------------------------------------------------------------------------------


def test_path_tables_hold_the_sums_over_steps():
    found, queries = answer("path"), build_queries(run(), ASKED)
    wanted = np.zeros((2, run().num_datums))
    for step in path_steps(run(), queries, range(run().steps_done)):
        for slot, datum in enumerate(step.datum_N):
            wanted[:, datum] += step.influence_QNT[:, slot].sum(1)
    np.testing.assert_allclose(influence_by_datum(found), wanted, rtol=1e-9)
    rows = found.queries
    change = rows["datums"] + rows["decay"] + rows["inherited"]
    np.testing.assert_allclose(change, rows["after"] - rows["before"], atol=1e-4)
    assert (rows["incompleteness"] < 1e-4).all()
    assert (rows["quadrature"] < 1e-2).all()


def test_unrolled_tables_hold_the_sums_over_steps():
    found, queries = answer("unrolled"), build_queries(run(), ASKED)
    weights = {name: own.detach() for name, own in run().network().named_parameters()}
    gradients = [query.gradient(weights)[1] for query in queries]
    adjoint = Adjoint.at_end(gradients, run().config.training.optimizer)
    wanted = np.zeros((2, run().num_datums))
    past, markers = run().gradients.replayable, [run().start, *run().segments]
    for step in unroll(past, markers, adjoint, range(run().steps_done)):
        for slot, datum in enumerate(step.datum_N):
            wanted[:, datum] += step.influence_QNT[:, slot].sum(1)
    np.testing.assert_allclose(influence_by_datum(found), wanted, rtol=1e-9)
    assert (found.queries["reliable_from"] == 0).all()
    assert (found.queries["exponent_low"] <= found.queries["exponent"]).all()


@pytest.mark.parametrize("method", ["path", "unrolled"])
def test_parts_of_an_answer_agree(method: str):
    found = answer(method, units=method == "path")
    for number, query in enumerate(found.queries["query"]):
        tables = {n: own[own["query"] == query] for n, own in vars(found).items()}
        total = found.queries["datums"][number]
        assert tables["datums"]["influence"].sum() == pytest.approx(total)
        for name in ("windows", "steps"):
            own = tables[name]["raised"].sum() + tables[name]["lowered"].sum()
            assert own == pytest.approx(total)
        by_datum = tables["positions"].groupby("datum")["influence"].sum()
        datums = tables["datums"].set_index("datum")["influence"]
        np.testing.assert_allclose(by_datum, datums[by_datum.index], atol=1e-12)
        assert tables["datums"]["times"].sum() == run().steps_done * 8
        if method == "path":
            # All other parameters are outside the captured units.
            assert set(tables["units"]["unit"]) == set(run().layout.names)
            assert (tables["units"]["absolute"] > 0).any()


def test_units_share_the_influence_of_a_query_that_uses_only_them():
    (query,) = build_queries(run(), ["parameter:layers.1.linear2.weight:7"])
    found = compute_influence(
        run(), [query], InfluenceConfig(method="path", units=True), resumable=False
    )
    own = found.units.set_index("unit")["influence"]
    assert own["layers.1.linear2.weight"] == pytest.approx(found.queries["datums"][0], rel=1e-5)
    assert (own.drop("layers.1.linear2.weight") == 0).all()


def test_steps_can_be_chosen():
    found = answer("path", first_step=3, windows=2)
    assert found.windows["first_step"].tolist() == [3, 4] * 2
    assert (found.queries["incompleteness"] < 1e-4).all()
    assert (found.queries["inherited"] != 0).all()
    whole = answer("unrolled").steps
    late = answer("unrolled", first_step=3).steps
    merged = late.merge(whole, on=["query", "step"])
    np.testing.assert_allclose(merged["raised_x"], merged["raised_y"], rtol=1e-9)


def test_unreliable_contributions_are_kept_apart():
    growth = answer("unrolled").steps.query("query == 'w1 → w4'")["growth"].max()
    with mock.patch("analysis.influence.sums.LIMIT", growth * 0.99):
        config = InfluenceConfig(method="unrolled")
        found = compute_influence(run(), build_queries(run(), ASKED), config, resumable=False)
    assert not found.steps["reliable"].all()
    whole = answer("unrolled").datums["influence"]
    np.testing.assert_allclose(found.datums["influence"] + found.datums["unreliable"], whole)
    assert found.datums["unreliable"].any()


def test_a_sweep_ends_where_nothing_is_left_of_a_contribution(monkeypatch: pytest.MonkeyPatch):
    whole = answer("unrolled", checks=0)
    last = whole.steps.query("step == 5").set_index("query")
    # The step is within the horizon, and its adjoint is given up.
    monkeypatch.setattr("analysis.influence.sweeps.BEARABLE", last["growth"].min() / 2)
    for module in ("analysis.influence.sums", "capture.unrolled.horizon"):
        monkeypatch.setattr(f"{module}.LIMIT", last["growth"].max())
    place = copied(run().uri, "memory://influence/ended")
    opened = open_run(place.uri)
    queries, reports = build_queries(opened, ASKED), []
    report = mock.Mock(side_effect=lambda *given: reports.append(given))
    config = InfluenceConfig(method="unrolled", windows=6)
    found = compute_influence(opened, queries, config, report)
    assert reports[-1] == (8, 8)
    assert (found.queries[["computed_from", "reliable_from"]] == 5).all().all()
    # Only there are datums left out again.
    assert (found.checks["first_step"] == 5).all()
    assert (found.queries["departure"] < 1).all()
    early, late = found.windows.query("first_step < 5"), found.windows.query("first_step == 5")
    assert early["raised"].isna().all()
    assert not early["reliable"].any()
    assert late["raised"].to_numpy() == pytest.approx(last["raised"][late["query"]].to_numpy())
    for row in found.queries.to_dict("records"):
        lines = explanation(row, found.checks[found.checks["query"] == row["query"]])
        assert "The sweep ended there" in lines[2]
        assert "Steps before 5 are beyond the horizon" in lines[3]
        assert "random datums from step 5 on changed it" in lines[4]
    again = compute_influence(opened, queries, config)  # from what is stored
    np.testing.assert_array_equal(influence_by_datum(again), influence_by_datum(found))


def test_chaotic_training_is_answered_for_its_last_steps():
    settings = ("training.batch=2", "model.dropout=0", "capture.segment_steps=6")
    settings += ("training.learning_rate=20", "training.clip=0.5", "capture.record=checkpoints")
    opened = open_run(make_run("memory://influence/chaotic", *settings))
    config = InfluenceConfig(checks=0)
    found = compute_influence(opened, build_queries(opened, ASKED[1:]), config, resumable=False)
    (row,) = found.queries.to_dict("records")
    assert 0 < row["computed_from"] < row["reliable_from"] < opened.steps_done == row["end_step"]
    assert np.isfinite(found.datums["unreliable"]).all()
    assert found.steps["step"].min() == row["computed_from"]
    scores = method_scores(opened, build_queries(opened, ASKED[1:]), "unrolled")
    np.testing.assert_allclose(scores.total_QD, influence_by_datum(found), rtol=1e-9)
    assert scores.of_slot(0, 0, 3).tolist() == [0]
    assert scores.first_step == row["reliable_from"]


ELSEWHERE = {"path", "unrolled", "tallies", "ekfac", "adamw-influence"}
"""Methods with tests of their own; the last two need other packages."""


@pytest.mark.parametrize("method", sorted(set(METHODS) - ELSEWHERE))
def test_baselines_answer_in_the_same_form(method: str):
    found = answer(method)
    assert len(found.datums) == 2 * run().num_datums
    assert (found.queries["preview"] == (method == "outliers")).all()
    assert found.steps.empty


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["path", "unrolled"])
def test_a_killed_sweep_resumes_with_the_same_numbers(method: str):
    place = copied(run().uri, f"memory://influence/{method}")
    opened = open_run(place.uri)
    queries = build_queries(opened, ASKED)
    config = InfluenceConfig(method=method)
    keep = FinishedSegments.keep
    with mock.patch.object(FinishedSegments, "keep", killed_after(keep)), pytest.raises(Killed):
        compute_influence(opened, queries, config)
    replayed: list[int] = []
    take = BackwardWalker.take_one

    def watched(walker: BackwardWalker, planned: Any, *given: Any) -> Any:
        replayed.append(planned.step)
        return take(walker, planned, *given)

    with mock.patch.object(BackwardWalker, "take_one", watched):
        found = compute_influence(opened, queries, config)
    assert set(replayed) == {0, 1, 2, 3}  # not those of the last segment, which was finished
    for name, table in vars(answer(method)).items():
        again = getattr(found, name)
        assert again.select_dtypes("number").columns.equals(table.select_dtypes("number").columns)
        for column in table.select_dtypes("number"):
            np.testing.assert_allclose(again[column], table[column], rtol=1e-6, atol=1e-12)
    assert place.keys("analysis/influence/unfinished")
    discard_unfinished(opened)
    assert not place.keys("analysis/influence")


class Killed(Exception):
    pass


def killed_after(keep: Any) -> Any:
    def kept(*given: Any) -> None:
        keep(*given)
        raise Killed

    return kept


def test_another_question_does_not_resume():
    queries = build_queries(run(), ASKED)
    path, unrolled = (
        finished_segments(run(), queries, InfluenceConfig(method=method), "").digest
        for method in ("path", "unrolled")
    )
    fewer = finished_segments(run(), queries[:1], InfluenceConfig(method="path"), "").digest
    windows = InfluenceConfig(method="path", windows=2)
    assert len({path, unrolled, fewer}) == 3
    assert finished_segments(run(), queries, windows, "").digest == path


def test_a_damaged_state_is_named():
    place = copied(run().uri, "memory://influence/damaged")
    opened = open_run(place.uri)
    queries, config = build_queries(opened, ASKED), InfluenceConfig(method="path")
    kept = finished_segments(opened, queries, config, "")
    place.put(kept.key("state"), b"nothing")
    with pytest.raises(CaptureError, match=r"-state.safetensors: is not readable.*Delete it"):
        compute_influence(opened, queries, config)


def test_tables_are_written_and_read():
    place = copied(run().uri, "memory://influence/written")
    opened = open_run(place.uri)
    write_influence(opened, answer("path"), name="facts")
    found = read_table(opened, table_set(JOB, "facts"), "datums", DATUMS)
    assert found["influence"].tolist() == answer("path").datums["influence"].tolist()
    described = json.loads(answer("path").queries["description"][0])
    assert build_queries(opened, [described])[0].name == "w1 → w4" or described["prompt"] == "w1 w3"


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"method": "dream"}, "influence.method: got 'dream'"),
        ({"windows": 0}, "influence.windows"),
        ({"checks": -1}, "influence.checks"),
        ({"first_step": 4, "end_step": 4}, "influence.end_step"),
        ({"method": "unrolled", "units": True}, "is for method path"),
        ({"method": "bm25", "first_step": 3}, "Leave out the steps"),
        ({"method": "path", "first_step": 99}, "Its steps are 0 to 5"),
        ({"method": "path", "max_bytes": 1}, "max_bytes: got 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], wanted: str):
    with pytest.raises(CaptureError, match=wanted):
        answer(**{"method": "path", **settings})


def test_windows_cover_all_steps_once():
    assert windows_of(range(3, 10), 3) == (range(3, 5), range(5, 7), range(7, 10))
    assert windows_of(range(2), 5) == (range(1), range(1, 2))
