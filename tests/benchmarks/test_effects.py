"""The benchmark of effects: its shortcuts give what the product gives."""

import functools

import numpy as np
from tiny_run import make_run

from analysis.influence.judge.designs import random_subsets
from analysis.influence.judge.retrainings import values
from analysis.influence.judge.scores import method_scores
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.run.run import Run, open_run
from benchmarks.effects.evidence import evidence_scores
from benchmarks.effects.tangents import predicted_changes, products
from benchmarks.effects.values import Effects

ADAMW = (
    *("training.optimizer.kind=adamw", "training.learning_rate=0.003", "training.clip=0.3"),
    *("training.epochs=1", "training.optimizer.weight_decay=0.1"),
)
ASKED = ("neuron:layers.0.linear2.weight:3", "head:layers.1.self_attn:0")


@functools.cache
def run() -> Run:
    return open_run(make_run("memory://effects", *ADAMW))


@functools.cache
def queries() -> tuple[Query, ...]:
    return tuple(build_queries(run(), ASKED))


def test_forward_derivatives_predict_what_unrolled_influence_predicts():
    weights = {name: own.detach() for name, own in run().network().named_parameters()}
    subsets = random_subsets(run().num_datums, keep=0.9, count=2, seed=0)
    change_MD = np.stack([one.weight_D - 1 for one in subsets])
    gradients = [query.gradient(weights)[1] for query in queries()]
    found_MQ = products(predicted_changes(run(), change_MD), gradients)
    wanted_MQ = change_MD @ method_scores(run(), queries(), "unrolled").total_QD.T
    np.testing.assert_allclose(found_MQ, wanted_MQ, rtol=1e-3, atol=1e-4 * abs(wanted_MQ).max())


def test_values_are_those_of_the_queries():
    weights = {name: own.detach() for name, own in run().network().named_parameters()}
    found_Q = Effects(run(), queries()).values(weights)
    np.testing.assert_allclose(found_Q, values(queries(), weights), rtol=1e-4, atol=1e-6)


def test_every_evidence_scores_the_datums_of_a_neuron():
    scores = evidence_scores(run(), queries())
    neuron, head = (np.stack([own[row] for own in scores.values()]) for row in (0, 1))
    assert np.isfinite(neuron).all()
    assert (neuron.std(1) > 0).sum() >= 7
    assert np.isfinite(head).all(1).sum() == 3  # outliers (two) and the tokens of outliers
