"""Removal of the datums that a method names: what is left is what retraining leaves."""

import functools
from pathlib import Path

import numpy as np
import pytest
from tiny_run import make_run

from analysis.influence.judge.designs import Variation
from analysis.influence.judge.retrainings import trained_again
from analysis.influence.judge.scores import method_scores
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.measures.bootstrap import mean_interval
from analysis.run.run import Run, open_run
from benchmarks.effects.judge import UNROLLED, Bench
from benchmarks.effects.removals import LOWEST, OTHER, SAME, Removals, for_others
from benchmarks.effects.tables import interval_over_tokens, removal_lines
from benchmarks.effects.values import Effects

SETTINGS = (
    *("training.optimizer.kind=adamw", "training.learning_rate=0.003", "training.epochs=1"),
    *("capture.record=checkpoints", "corpus.window=16"),
)
HEAD, SMALL, LARGE = 0, 1, 2
"""Places of the queries."""


@functools.cache
def run() -> Run:
    return open_run(make_run("memory://removals", *SETTINGS))


@functools.cache
def queries() -> tuple[Query, ...]:
    units = [f"neuron:layers.0.linear2.weight:{number}" for number in range(6)]
    neurons = build_queries(run(), units)
    weights = dict(run().network().named_parameters())
    by_value = sorted(neurons, key=lambda query: query.value(weights))
    head = build_queries(run(), ["head:layers.1.self_attn:0"])
    return (*head, by_value[0], by_value[-1])


def bench(work: Path) -> Bench:
    """Return a bench with one method beside unrolled influence, which has no scores for heads."""
    score_QD = np.random.default_rng(0).standard_normal((3, run().num_datums))
    score_QD[HEAD] = np.nan
    return Bench(Effects(run(), queries()), {"bm25": score_QD}, work)


def left_without(datums: np.ndarray, query: Query) -> float:
    """Reference: train again without these datums, and evaluate the query itself."""
    weight_D = np.ones(run().num_datums)
    weight_D[datums] = 0
    weights = trained_again(run().gradients.replayable, Variation(weight_D))
    trained = query.value(dict(run().network().named_parameters()))
    return query.value(weights) / trained


def test_the_effect_left_is_that_of_training_without_the_named_datums(tmp_path: Path) -> None:
    own = bench(tmp_path)
    *_, found = Removals(own, neurons=1, controls=2).judged()
    assert found["queries"] == [HEAD, LARGE]
    assert found["datums"] == round(0.05 * run().num_datums) >= 1
    score_QD = {UNROLLED: method_scores(run(), queries(), UNROLLED).total_QD, **own.scores}
    for method, place, row in ((UNROLLED, 0, HEAD), (UNROLLED, 1, LARGE), ("bm25", 1, LARGE)):
        named = np.argsort(-score_QD[method][row])[: found["datums"]]
        wanted = left_without(named, queries()[row])
        assert found["left"][method][place] == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert found["left"]["bm25"][0] is None  # no scores for heads
    lowest, mean = (np.array(found["left"][name]) for name in (LOWEST, "random"))
    assert (lowest <= mean).all()
    assert found["left"][OTHER] == [None, None]  # one query of each level


def test_for_others_leaves_the_query_itself_and_other_levels_out() -> None:
    left_QQ = np.arange(25.0).reshape(5, 5)
    described = [{"level": "neuron", "token": token} for token in "aab"]
    described += [{"level": "head", "token": "a"}, {"level": "neuron", "token": "c"}]
    found = for_others(left_QQ, described)
    for query in range(5):
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for other in range(5):
            alike = described[other]["level"] == described[query]["level"]
            if other != query and alike:
                same = described[other]["token"] == described[query]["token"]
                kinds[same].append(left_QQ[other, query])
        for name, values_ in ((SAME, kinds[True]), (OTHER, kinds[False])):
            np.testing.assert_equal(found[name][query], np.mean(values_) if values_ else np.nan)


def test_the_table_has_controls_last_and_the_least_effect_left_in_bold() -> None:
    left = {"random": [1.0, 1.1, 0.9], UNROLLED: [0.2, 0.4, 0.6], "bm25": [0.1, 0.9, None]}
    left |= {LOWEST: [0.1, 0.1, 0.1], SAME: [None, 0.7, 0.7], OTHER: [None, 0.9, 0.9]}
    found = {
        "queries": [{"level": "head"}, {"level": "neuron"}, {"level": "neuron"}],
        "removal": {"queries": [0, 1, 2], "left": left},
    }
    names = [line.split(" | ")[0] for line in removal_lines(found)]
    assert names == [
        "| unrolled",
        "| BM25",
        f"| {SAME}",
        f"| {OTHER}",
        "| random (null)",
        f"| {LOWEST}",
    ]
    first, second = list(removal_lines(found))[:2]
    assert first == "| unrolled | **0.50** (0.40 to 0.60) | 0.20 |"
    assert second == "| BM25 | 0.90 | **0.10** |"


def test_queries_about_one_token_are_drawn_together() -> None:
    value_Q = np.random.default_rng(0).random(12)
    alone = interval_over_tokens(value_Q, list("abcdefghijkl"))
    assert alone == mean_interval(value_Q)
    twice = interval_over_tokens(np.repeat(value_Q, 2), list("aabbccddeeffgghhiijjkkll"))
    np.testing.assert_allclose(twice, alone, rtol=1e-6)
