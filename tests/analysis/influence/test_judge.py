"""Judging a small run by real retrainings: they are kept, reused, and what they should be."""

import functools
from unittest import mock

import numpy as np
import pytest
import torch
from tiny_run import copied, make_run

from analysis.influence.config import InfluenceConfig
from analysis.influence.influence import compute_influence
from analysis.influence.judge.designs import Variation
from analysis.influence.judge.judge import JudgeConfig, judge, score_methods, write_judged
from analysis.influence.judge.retrainings import query_values, read_kept, require_kept, values
from analysis.influence.judge.scores import METHODS, Scores, method_scores
from analysis.influence.judge.tables import SCHEMAS, Judged
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.jobs.question import Question
from analysis.jobs.tables import read_table
from analysis.run.run import Run, open_run
from capture.errors import ConfigError, ShardError
from capture.maintenance.verify import verify

SMOOTH = (
    *("training.optimizer.kind=adamw", "training.learning_rate=0.003", "training.clip=1"),
    *("model.dropout=0", "training.epochs=1", "capture.segment_steps=4"),
)
ASKED = ("datum:validation:1", "neuron:layers.1.linear2.weight:3")
CONFIG = JudgeConfig(
    methods=("unrolled", "gradient", "bm25", "random"),
    keep=(0.8,),
    subsets=6,
    removals=5,
    top=0.1,
    controls=1,
)


@functools.cache
def uri() -> str:
    return make_run("memory://judged", *SMOOTH)


def run() -> Run:
    return open_run(uri())


@functools.cache
def queries() -> tuple[Query, ...]:
    return tuple(build_queries(run(), ASKED))


@functools.cache
def scores() -> dict[str, Scores]:
    return score_methods(run(), queries(), CONFIG.methods)


@functools.cache
def judged() -> Judged:
    return judge(run(), queries(), scores(), CONFIG)


def values_of(test: str, method: str) -> np.ndarray:
    rows = judged().judgements
    return rows[(rows["test"] == test) & (rows["method"] == method)]["value"].to_numpy()


def test_unrolled_influence_predicts_retraining_and_random_scores_do_not():
    assert values_of("lds", "unrolled").mean() > 0.8
    assert values_of("tsloo", "unrolled").mean() > 0.8
    assert abs(values_of("lds", "random").mean()) < 0.6
    assert len(values_of("lds", "gradient")) == len(queries())


def test_named_datums_matter_more_than_random_ones():
    loss = 0
    assert values_of("removal", "unrolled")[loss] > values_of("removal", "random")[loss]
    assert values_of("duplication", "unrolled")[loss] < values_of("duplication", "random")[loss]


def test_nothing_is_left_of_a_query_that_is_0_as_trained():
    unit = "layers.1.linear2.weight"
    first = float(run().checkpoint()[unit][0, 0])
    moved = Query("moved", {}, [lambda weights: weights[unit][0, 0] - first])
    config = JudgeConfig(methods=("gradient", "random"), subsets=0, top=0.1, controls=1)
    found = judge(run(), [moved], score_methods(run(), [moved], config.methods), config)
    assert set(found.judgements["test"]) == {"removal", "duplication"}
    assert found.judgements["value"].isna().all()


def test_every_test_has_a_row_for_every_method_and_query():
    found = judged().judgements.groupby(["test", "method"]).size()
    assert (found == len(queries())).all()
    assert len(found) == 4 * len(CONFIG.methods)
    summary = judged().summary()
    assert len(summary) == len(found)
    known = summary[summary["queries"] > 1]
    assert (known["low"] <= known["mean"] + 1e-9).all()
    assert (known["mean"] <= known["high"] + 1e-9).all()


def test_retrainings_are_kept_and_not_made_again():
    judged()

    def refuse(work, items):
        raise AssertionError(f"{len(items)} retrainings are made again")

    again = judge(run(), queries(), scores(), CONFIG, sweep=refuse)
    assert again.retrained.equals(judged().retrained)
    assert not [one for one in verify(run().store) if one.key.startswith("analysis/")]


def test_retraining_with_weights_1_is_the_run_itself():
    as_trained = Variation(np.ones(run().num_datums))
    assert require_kept(run(), [as_trained, as_trained]) == 1
    kept, wanted = read_kept(run(), as_trained), run().checkpoint()
    assert all(torch.equal(own, wanted[name]) for name, own in kept.items())
    (found_Q,) = query_values(run(), queries(), [as_trained]).values()
    trained_Q = values(queries(), dict(run().network().named_parameters()))
    assert found_Q.tolist() == trained_Q.tolist()


def test_a_damaged_retraining_is_named():
    as_trained = Variation(np.ones(run().num_datums))
    require_kept(run(), [as_trained])
    store = copied(uri(), "memory://judged-damaged")
    store.put(f"analysis/retrain/{as_trained.name}/model.safetensors", b"nothing")
    with pytest.raises(ShardError, match="is not the file that its marker names"):
        read_kept(open_run(store.uri), as_trained)


def test_step_scores_sum_to_the_total():
    found = method_scores(run(), queries()[:1], "path")
    total_D = np.zeros(run().num_datums)
    for step, datum_N in enumerate(run().steps()["datums"]):
        for slot, datum in enumerate(datum_N):
            total_D[datum] += found.of_slot(step, slot, datum)[0]
    np.testing.assert_allclose(total_D, found.total_QD[0])


def test_what_is_judged_is_what_influence_reports():
    """Contributions beyond the horizon count in neither."""
    asked, config = queries()[:1], InfluenceConfig(method="unrolled")
    whole = method_scores(run(), asked, "unrolled")
    growth = compute_influence(run(), asked, config, resumable=False).steps["growth"]
    with mock.patch("analysis.influence.sums.LIMIT", growth.max() * 0.99):
        judged = method_scores(run(), asked, "unrolled")
        reported = compute_influence(run(), asked, config, resumable=False)
    assert not reported.steps["reliable"].all()
    np.testing.assert_allclose(judged.total_QD[0], reported.datums["influence"], atol=1e-12)
    assert not np.allclose(judged.total_QD, whole.total_QD)
    for step in np.flatnonzero(~reported.steps["reliable"]):
        assert not judged.by_step[int(step)].any()


def test_tables_are_written_with_their_question():
    write_judged(run(), judged(), Question.of("lds", CONFIG))
    for name, schema in SCHEMAS.items():
        assert len(read_table(run(), "lds", name, schema)) == len(getattr(judged(), name))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"methods": ()}, "methods: got none, must be some of"),
        ({"methods": ("magic",)}, "methods: got 'magic', must be some of: unrolled, path"),
        ({"keep": (1.0,)}, "keep: got 1.0, must be above 0 and below 1"),
        ({"subsets": 2}, "subsets: got 2, a correlation needs at least 3"),
        ({"subsets": 0}, "nothing is judged"),
        ({"top": 1.0}, "top: got 1.0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_impossible_settings_are_refused(values, problem):
    with pytest.raises(ConfigError) as caught:
        JudgeConfig(**values)
    assert problem in str(caught.value)


def test_methods_have_distinct_names():
    assert len(set(METHODS)) == len(METHODS)
