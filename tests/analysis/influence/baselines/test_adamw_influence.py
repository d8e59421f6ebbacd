"""AdamW-influence by dattri-llm against its definition, written out with our own derivatives."""

import functools
import sys

import numpy as np
import pytest
import torch
from tiny_run import make_run, tiny_run

from analysis.influence.baselines.adamw_influence import adamw_influence, share_gradient
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.influence.sweeps import begin_sweep
from analysis.run.run import Run, open_run
from capture.errors import ConfigError
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.pullback import UpdateSettings, pull_back
from capture.unrolled.states import backward_steps

ADAMW = (
    *("training.optimizer.kind=adamw", "training.optimizer.weight_decay=0.3"),
    *("training.learning_rate=0.003", "training.clip=1000", "training.epochs=1"),
    *("training.accumulate=2", "model.layers=1", "model.width=8", "model.hidden=6"),
)
ASKED = ("datum:validation:1", "neuron:layers.0.linear2.weight:3")


@functools.cache
def run() -> Run:
    return open_run(make_run("memory://adamw-influence", *ADAMW))


@functools.cache
def queries() -> tuple[Query, ...]:
    return tuple(build_queries(run(), ASKED))


def by_definition() -> np.ndarray:
    """Return the influences with a loop over datums; the curvature is N Σ_z g_z g_zᵀ, [Q, D]."""
    adjoint = begin_sweep(run(), queries(), "unrolled").adjoint  # pyright: ignore
    found_QD = np.zeros((len(queries()), run().num_datums))
    markers, optimizer = [run().start, *run().segments], run().config.training.optimizer
    past = run().gradients.replayable
    for step in backward_steps(past, markers, range(run().steps_done)):
        leaves = {name: own.detach().requires_grad_() for name, own in step.before.weights.items()}
        size = len(step.planned.datum_N)
        rows_NP = torch.stack(
            [torch.cat(share_gradient(step, leaves, slot)) for slot in range(size)]
        )
        parts = rows_NP.sum(0).split([own.numel() for own in leaves.values()])
        gradient = {
            name: own.view(leaf.shape)
            for (name, leaf), own in zip(leaves.items(), parts, strict=True)
        }
        settings = UpdateSettings(optimizer, step.step, step.learning_rate, limit=np.inf)
        of_gradient, before = pull_back(settings, step.before, step.after, gradient, adjoint)
        of_gradient_QP = torch.cat([own.flatten(1) for own in of_gradient.values()], dim=1)
        score_QN = of_gradient_QP @ rows_NP.T
        np.add.at(found_QD.T, step.planned.datum_N, score_QN.T.double().numpy())
        curved = (size * score_QN @ rows_NP).split([own.numel() for own in leaves.values()], dim=1)
        for name, own in zip(leaves, curved, strict=True):
            before.weights[name].add_(own.view(before.weights[name].shape))
        adjoint = Adjoint(before.weights, before.moments)
    return found_QD


def test_scores_are_those_of_the_definition():
    pytest.importorskip("dattri_llm")
    found_QD, wanted_QD = adamw_influence(run(), queries()), by_definition()
    np.testing.assert_allclose(found_QD, wanted_QD, rtol=1e-3, atol=1e-4 * abs(wanted_QD).max())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dattri_llm", None)
    with pytest.raises(ConfigError, match="dattri-llm") as caught:
        adamw_influence(run(), queries())
    assert "ontogeny[adamw-influence]" in str(caught.value)


def test_a_run_of_another_optimizer_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("analysis.influence.baselines.adamw_influence.require_package", object)
    with pytest.raises(ConfigError, match="does not know the run's optimizer sgd"):
        adamw_influence(open_run(tiny_run()), ())
