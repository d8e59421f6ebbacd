"""Comparison of runs: planted outliers and two kinds are found, Gaussian runs have neither."""

import functools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tiny_run import make_run, tiny_run

from analysis.run.run import Run, open_run
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.metrics.similarity import Centred
from analysis.trajectory.observed.text import text_of_run
from analysis.transitions.config import TransitionsConfig
from analysis.transitions.runs.compare import CompareConfig, compare_runs
from analysis.transitions.runs.sentences import part_sentence, same_order, summarise
from analysis.transitions.runs.settings import require_same_settings
from analysis.transitions.runs.similarity import compared, find_similarity, layers_of
from analysis.transitions.runs.stability import find_outcomes, find_outliers, find_stability
from analysis.transitions.runs.student import student_interval
from analysis.transitions.runs.tables import FINAL, SCHEMAS
from analysis.transitions.transitions import find_transitions
from capture.errors import ConfigError
from cluster.cli import main
from cluster.local.threads import run_job


def values(value_R: np.ndarray, metric: str = "loss") -> pd.DataFrame:
    runs = [f"run{k}" for k in range(len(value_R))]
    own = {"group": "", "metric": metric, "component": "", "quantity": FINAL}
    return pd.DataFrame(own | {"run": runs, "value": value_R})


def test_mean_and_deviation_are_numpys_and_the_interval_holds_the_mean():
    found = find_stability(values(np.array([1.0, 2, 3, 4]))).iloc[0]
    assert (found["mean"], found["runs"]) == (2.5, 4)
    assert found["deviation"] == pytest.approx(np.std([1, 2, 3, 4], ddof=1))
    assert found["low"] < 2.5 < found["high"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_law_intervals_hold_the_mean_of_gaussian_runs_in_95_percent_of_samples(count: int):
    sample_NR = np.random.default_rng(count).standard_normal((2000, count))
    ends_N2 = np.array([student_interval(value_R) for value_R in sample_NR])
    assert 0.93 <= np.mean((ends_N2[:, 0] <= 0) & (ends_N2[:, 1] >= 0)) <= 0.97
    low, high = stats.t.interval(0.95, count - 1, sample_NR[0].mean(), stats.sem(sample_NR[0]))
    np.testing.assert_allclose(ends_N2[0], (low, high))
    assert np.isnan(student_interval([3.0])).all()


def test_a_planted_outlier_is_named_alone():
    rng = np.random.default_rng(0)
    value = rng.normal(3, 0.01, 10)
    value[4] += 0.2
    found = find_outliers(values(value), seed=0)
    assert found[found["outlier"]]["run"].tolist() == ["run4"]


def test_law_14_gaussian_runs_have_an_outlier_in_about_5_percent_of_samples():
    named = 0
    for seed in range(100):
        found = find_outliers(values(np.random.default_rng(seed).standard_normal(8)), seed=seed)
        named += int(found["outlier"].any())
    assert named <= 10


def test_two_kinds_are_found_with_their_means_and_one_kind_is_not():
    rng = np.random.default_rng(0)
    mixed = np.concatenate([rng.normal(0.1, 0.02, 12), rng.normal(0.9, 0.02, 8)])
    found = find_outcomes(values(mixed)).iloc[0]
    assert found["two_kinds"]
    assert (found["low_mean"], found["high_mean"]) == pytest.approx((0.1, 0.9), abs=0.03)
    assert found["high_share"] == pytest.approx(0.4, abs=0.02)
    single = [find_outcomes(values(rng.standard_normal(20)))["two_kinds"].item() for _ in range(20)]
    assert np.mean(single) <= 0.05
    assert not len(find_outcomes(values(np.ones(20))))


# --- runs -----------------------------------------------------------------------------------------


@functools.cache
def others() -> tuple[str, str, str]:
    """Runs like ``tiny_run`` with other weights, another order, and another learning rate."""
    return (
        make_run("memory://compare-weights", "model.seed=1"),
        make_run("memory://compare-order", "training.order_seed=1"),
        make_run("memory://compare-rate", "training.learning_rate=4"),
    )


def opened(*uris: str) -> list[Run]:
    return [open_run(uri) for uri in (tiny_run(), *uris)]


def test_runs_part_at_the_weights_the_order_or_the_update():
    runs = opened(*others())
    found = compare_runs(runs, CompareConfig(draws=99))
    for name, schema in SCHEMAS.items():
        assert getattr(found, name).columns.tolist() == schema.names, name
    weights, order, rate = found.parting.to_dict("records")
    assert (weights["same_weights"], weights["order_step"], weights["step"]) == (False, -1, 0)
    assert weights["datums"] == weights["other_datums"]
    assert (order["same_weights"], order["order_step"], order["step"]) == (True, 0, 0)
    assert order["other_datums"] == list(runs[2].steps()["datums"][0])
    # The first update differs, so the loss of the next step does.
    assert (rate["same_weights"], rate["order_step"], rate["loss_step"]) == (True, -1, 1)
    groups = found.runs["group"].tolist()
    assert groups == ["training.learning_rate=5.0"] * 3 + ["training.learning_rate=4.0"]
    text = "\n".join(summarise(found))
    assert "part in step 1, where the loss differs though the datums of both are" in text
    assert "Outlier runs are named among 5 runs or more." in text
    assert f"Linear CKA of the layers of {tiny_run()} and {others()[0]} at their ends" in text
    same = found.similarity[found.similarity["layer"] == found.similarity["other_layer"]]
    assert (same["cka"] < 0.9999).all()
    assert len(found.similarity) == 3 * 3 * 3


def test_batches_that_differ_after_their_first_datums_are_not_called_the_same():
    own = {"run": "a", "other": "b", "step": 0, "same_shapes": True, "same_weights": False}
    row = own | {"datums": [*range(8), 98, 99], "other_datums": [*range(8), 97, 99]}
    named = "0, 1, 2, 3, 4, 5, 6, 7 (and 2 more)"
    assert part_sentence(row) == (
        "a and b start from different weights. In step 0 the datums are "
        f"{named} in one and {named} in the other."
    )
    same = row | {"other_datums": row["datums"]}
    assert part_sentence(same).endswith(f"the datums of both are {named}.")


def test_orders_are_counted_within_groups():
    runs = opened(*others())
    found = compare_runs(runs, CompareConfig(draws=99))
    uris = found.runs["run"].tolist()
    place = {uri: (1, 2) if k < 3 else (2, 1) for k, uri in enumerate(uris)}
    miles = pd.DataFrame(
        [
            {"run": uri, "metric": metric, "component": "", "place": place[uri][k]}
            for uri in uris
            for k, metric in enumerate(("early", "late"))
        ]
    )
    group = found.runs["group"][0]
    assert same_order(replace(found, milestones=miles)) == [
        f"Halves are passed in 1 order over 3 runs ({group}); the most frequent, in 3: "
        "early → late."
    ]
    apart = replace(found, milestones=miles, runs=found.runs.assign(group=list("abcd")))
    assert same_order(apart) == []


def test_other_architectures_are_said_as_such():
    wider = make_run("memory://compare-wider", "model.hidden=16")
    found = compare_runs(opened(wider), CompareConfig(draws=99, metrics=("training loss",)))
    (row,) = found.parting.to_dict("records")
    assert not row["same_shapes"]
    assert not row["same_weights"]
    text = "\n".join(summarise(found))
    assert "have different architectures" in text
    assert "start from different weights" not in text


def test_layers_are_alike_up_to_rotation_and_not_compared_across_vocabularies(monkeypatch):
    run = open_run(tiny_run())
    text = text_of_run(run, TrajectoryConfig())
    own = layers_of(run, text)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    turned = [Centred.of(3 * each.state_MD @ rotation + 1) for each in own]
    rows = pd.DataFrame(compared(own, turned, 0))
    same = rows[rows["layer"] == rows["other_layer"]]
    assert same["cka"].tolist() == pytest.approx([1] * 3)
    other = open_run(tiny_run())
    monkeypatch.setattr(type(other), "tokens", property(lambda run: [str(id(run))]))
    table, notes = find_similarity([run, other], seed=0)
    assert not len(table)
    assert notes == [
        f"Layers of {run.uri} and {run.uri} are not compared: their vocabularies differ."
    ]


def test_transitions_take_other_seeds_and_refuse_other_settings():
    weights, order, rate = others()
    require_same_settings(opened(weights, order))
    with pytest.raises(ConfigError, match="they differ in training") as refused:
        find_transitions(opened(rate), TransitionsConfig(draws=99, states=0), run_job)
    assert "\n" not in str(refused.value)
    assert f"ontogeny compare {tiny_run()} {rate}" in str(refused.value)


def test_a_run_compared_with_itself_elsewhere_does_not_part():
    again = make_run("memory://compare-again", "capture.outliers.k=20")
    found = compare_runs(opened(again), CompareConfig(draws=99, metrics=("training loss",)))
    assert found.parting["step"].tolist() == [-1]
    same = found.similarity[found.similarity["layer"] == found.similarity["other_layer"]]
    assert same["cka"].tolist() == pytest.approx([1] * 3)
    assert (same["null"] < 0.5).all()
    assert found.runs["group"].tolist() == ["", ""]
    assert "do not part in the steps that both have" in summarise(found)[0]


def test_one_run_cannot_be_compared():
    with pytest.raises(ConfigError, match="two or more, each once"):
        compare_runs(opened(), CompareConfig())
    with pytest.raises(ConfigError, match="two or more, each once"):
        compare_runs(opened(tiny_run()), CompareConfig())


def test_the_commands_train_seeds_and_compare_them(tmp_path, capsys: pytest.CaptureFixture[str]):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat . a dog ran in the park , and the cat saw it ! " * 12)
    settings = [f"run.uri={tmp_path}/run", "corpus.kind=text", f"corpus.path={text}"]
    settings += ["corpus.window=8", "model.layers=1", "model.width=8", "model.hidden=8"]
    settings += [
        "model.heads=2",
        "corpus.validation_share=0.2",
        "capture.outliers.k=50",
        "training.epochs=1",
        "training.device=cpu",
    ]
    words = ["seeds", "demo", *settings, "--seeds", "0:2", "--vary", "order", "--quiet"]
    assert main(words) == 0
    made = [tmp_path / "run-seeds" / f"order-{seed}" for seed in (0, 1)]
    runs = [open_run(path) for path in made]
    assert [run.config.order_seed for run in runs] == [0, 1]
    assert [run.config.weight_seed for run in runs] == [0, 0]
    stamp = (made[0] / "run.yaml").stat().st_mtime_ns
    assert main(words) == 0  # finished runs are not trained again
    assert (made[0] / "run.yaml").stat().st_mtime_ns == stamp
    capsys.readouterr()
    assert main(["compare", str(made[0]), str(made[1]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parting"][0]["order_step"] == 0
    assert main(["seeds", "demo", *settings, "--seeds", "5:2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
