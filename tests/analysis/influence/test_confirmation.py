"""Unrolled influence is put to the test: random datums are left out, and training is repeated."""

import functools
import pickle
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from tiny_run import copied, make_run

from analysis.influence.config import InfluenceConfig
from analysis.influence.confirmation import departure
from analysis.influence.influence import compute_influence
from analysis.influence.judge.designs import random_subsets
from analysis.influence.judge.retrainings import Retraining, values
from analysis.influence.queries.parsing import build_queries
from analysis.influence.tables import Influence
from analysis.run.run import Run, open_run
from capture.errors import InfluenceError

GENTLE = (
    *("training.epochs=1", "training.batch=8", "capture.segment_steps=2", "model.dropout=0.1"),
    *("training.learning_rate=0.02", "training.clip=10"),
)
ASKED = ({"prompt": "w1 w3", "completion": "w4"}, "datum:validation:0")


@functools.cache
def run() -> Run:
    return open_run(make_run("memory://confirmation", *GENTLE))


@functools.cache
def answer() -> Influence:
    return compute_influence(run(), build_queries(run(), ASKED), InfluenceConfig(), resumable=False)


def test_checks_are_retrainings_without_random_datums():
    """They are made here by hand as well."""
    found, queries = answer(), build_queries(run(), ASKED)
    subsets = random_subsets(run().num_datums, keep=0.9, count=2, seed=0)
    before = values(queries, dict(run().network().named_parameters()))
    work = Retraining(run().gradients.replayable)
    after = [values(queries, work(subset)[1]) for subset in subsets]
    influence = found.datums.pivot(index="query", columns="datum", values="influence")
    for q, query in enumerate(queries):
        checks = found.checks[found.checks["query"] == query.name]
        assert checks["retraining"].tolist() == [subset.name for subset in subsets]
        own_D = influence.loc[query.name].to_numpy()
        for check, subset, value_Q in zip(checks.to_dict("records"), subsets, after, strict=True):
            left_out = subset.weight_D == 0
            assert check["left_out"] == left_out.sum() == 5
            assert check["change"] == pytest.approx(value_Q[q] - before[q], abs=1e-9)
            assert check["predicted"] == pytest.approx(-own_D[left_out].sum())
        off = np.linalg.norm(checks["change"] - checks["predicted"])
        wanted = off / np.linalg.norm(checks["change"])
        assert found.queries["departure"][q] == pytest.approx(wanted)


def test_slow_training_does_as_predicted():
    assert (answer().queries["departure"] < 0.1).all()


def test_they_are_of_the_chosen_steps_and_kept_with_the_tables():
    place = copied(run().uri, "memory://confirmation-kept")
    opened = open_run(place.uri)
    queries, one = build_queries(opened, ASKED), InfluenceConfig(checks=1)
    compute_influence(opened, queries, one, resumable=False)
    assert not place.keys("analysis/retrain")
    whole = compute_influence(opened, queries, one).checks
    assert place.keys(f"analysis/retrain/{whole['retraining'][0]}")
    late = compute_influence(opened, queries, InfluenceConfig(checks=1, first_step=3))
    assert (late.checks["change"] != whole["change"]).all()
    assert (late.queries["departure"] < 0.1).all()
    for end_step in (2, 3):  # at a checkpoint, and between two
        early = InfluenceConfig(checks=1, end_step=end_step)
        assert (compute_influence(opened, queries, early).queries["departure"] < 0.1).all()


def test_without_checks_and_by_path_nothing_is_trained_again():
    queries = build_queries(run(), ASKED)
    for config in (InfluenceConfig(checks=0), InfluenceConfig(method="path")):
        with mock.patch("capture.retraining.retrain.retrain", side_effect=AssertionError):
            found = compute_influence(run(), queries, config, resumable=False)
        assert found.checks.empty
        assert found.queries["departure"].isna().all()


def test_other_processes_can_train_again():
    asked: list[list[str]] = []

    def by_copies(work, items):
        asked.append([item.name for item in items])
        return iter([pickle.loads(pickle.dumps(work))(item) for item in reversed(items)][::-1])

    place = copied(run().uri, "memory://confirmation-copies")
    opened = open_run(place.uri)
    queries = build_queries(opened, ASKED)
    for _ in range(2):  # the second time they are in the run
        found = compute_influence(opened, queries, InfluenceConfig(), retraining=by_copies)
        pd.testing.assert_frame_equal(found.checks, answer().checks)
    assert asked == [answer().checks["retraining"][:2].tolist()]


def test_every_retraining_is_reported():
    reports: list[tuple[int, int]] = []
    queries, config = build_queries(run(), ASKED), InfluenceConfig(checks=1)
    report = mock.Mock(side_effect=lambda *given: reports.append(given))
    compute_influence(run(), queries, config, report, resumable=False)
    assert reports == [(done, 7) for done in range(1, 8)]


def test_departure_compares_with_predicting_no_change():
    changed = np.array([0.3, -0.4])
    assert departure(changed, changed) == 0
    assert departure(np.zeros(2), changed) == 1
    assert departure(2 * changed, changed) == pytest.approx(1)
    assert departure(-changed, changed) == pytest.approx(2)
    assert departure(np.ones(2), np.zeros(2)) == np.inf
    assert departure(np.zeros(2), np.zeros(2)) == 0


def test_a_retraining_that_diverges_refutes():
    assert departure(np.zeros(2), np.array([0.1, np.nan])) == np.inf
    diverged = InfluenceError("step 3", "retraining with these weights has diverged")
    queries, config = build_queries(run(), ASKED), InfluenceConfig(checks=1)
    with mock.patch("capture.retraining.retrain.retrain", side_effect=diverged):
        found = compute_influence(run(), queries, config, resumable=False)
    assert (found.queries["departure"] == np.inf).all()
