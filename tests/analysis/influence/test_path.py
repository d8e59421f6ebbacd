"""Path influence: completeness (law 12) for every optimizer, and agreement with slow references."""

import functools

import numpy as np
import pytest
import torch
from path_steps import path_steps
from tiny_run import make_run

from analysis.influence.path import PathStep
from analysis.influence.path_formulas import mean_gradient
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.run.run import Run, open_run

SHORT = ("training.epochs=1", "training.batch=8", "model.dropout=0.1", "capture.segment_steps=4")
SETTINGS: dict[str, tuple[str, ...]] = {
    "sgd": ("training.learning_rate=0.5", "training.clip=1000"),
    "clipped": ("training.learning_rate=2", "training.clip=0.2"),
    "momentum": ("training.learning_rate=0.2", "training.optimizer.momentum=0.9"),
    "nesterov": (
        "training.learning_rate=0.2",
        "training.optimizer.momentum=0.9",
        "training.optimizer.nesterov=true",
        "training.accumulate=2",
    ),
    "decay": (
        "training.learning_rate=0.3",
        "training.optimizer.momentum=0.5",
        "training.optimizer.weight_decay=0.1",
    ),
    "adam": (
        "training.optimizer.kind=adam",
        "training.learning_rate=0.01",
        "training.optimizer.weight_decay=0.05",
    ),
    "adamw": (
        "training.optimizer.kind=adamw",
        "training.learning_rate=0.02",
        "training.optimizer.weight_decay=0.3",
        "training.clip=0.5",
    ),
}
QUERIES = (
    {"prompt": "w1 w3", "completion": "w4"},
    "datum:validation:0",
    "neuron:layers.1.linear2.weight:3@w5",
)


@functools.cache
def run_of(kind: str) -> Run:
    return open_run(make_run(f"memory://path/{kind}", *SHORT, *SETTINGS[kind]))


@functools.cache
def steps_of(kind: str, first_step: int = 0) -> tuple[list[Query], list[PathStep]]:
    run = run_of(kind)
    queries = build_queries(run, QUERIES)
    steps = range(first_step, run.steps_done)
    return queries, list(path_steps(run, queries, steps))[::-1]


@pytest.mark.parametrize(
    ("kind", "first_step"), [*((kind, 0) for kind in SETTINGS), ("nesterov", 3), ("adam", 3)]
)
def test_influences_of_datums_and_decay_sum_to_the_change(kind: str, first_step: int):
    queries, steps = steps_of(kind, first_step)
    influence_SQ = np.array([step.influence_QNT.sum((1, 2)) for step in steps])
    entries_Q = sum(np.abs(step.influence_QNT.sum(2)).sum(1) for step in steps)
    decay_SQ = np.array([step.decay_Q for step in steps])
    ends = [run_of(kind).checkpoint(0), run_of(kind).checkpoint()]
    names = run_of(kind).network().state_dict()
    start_Q, end_Q = (
        np.array([q.value({n: own[n].double() for n in names}) for q in queries]) for own in ends
    )
    if first_step == 0:
        np.testing.assert_allclose(steps[0].before_Q, start_Q, rtol=1e-12)
        assert not steps[0].inherited_Q.any()
    np.testing.assert_allclose(steps[-1].after_Q, end_Q, rtol=1e-12)
    found_Q = influence_SQ.sum(0) + decay_SQ.sum(0) + steps[0].inherited_Q
    change_Q = end_Q - steps[0].before_Q
    assert (np.abs(found_Q - change_Q) <= 1e-4 * (entries_Q + np.abs(decay_SQ).sum(0))).all()
    rest_Q = np.array([np.abs(step.rest_Q) for step in steps]).sum(0)
    assert (rest_Q <= 0.01 * entries_Q).all()
    assert (np.abs(change_Q) > 1e-4).all()


def test_path_follows_single_gradients_of_plain_sgd():
    """Reference: −lr · clip · ⟨mean gradient of the query, the datum's own gradient⟩, by a loop."""
    queries, steps = steps_of("clipped")
    run, step = run_of("clipped"), 3
    row = run.steps().iloc[step]
    found = steps[step]
    assert row["clip"] < 1
    assert found.datum_N.tolist() == row["datums"].tolist()
    from capture.unrolled.states import backward_steps

    markers = [run.start, *run.segments]
    (state,) = backward_steps(run.gradients.replayable, markers, range(step, step + 1))
    ends = [
        {name: own.double() for name, own in each.weights.items()}
        for each in (state.before, state.after)
    ]
    for q, query in enumerate(queries):
        gradient = mean_gradient(query, *ends, points=16)
        for slot in range(len(found.datum_N)):
            leaves = {n: own.clone().requires_grad_() for n, own in state.before.weights.items()}
            loss_NT = state.loss.shares(leaves)
            own = torch.autograd.grad(loss_NT[slot].sum(), list(leaves.values()))
            wanted = sum(float((gradient[n] * g).sum()) for n, g in zip(leaves, own, strict=True))
            wanted *= -row["learning_rate"] * row["clip"]
            scale = np.abs(found.influence_QNT[q]).sum()
            assert found.influence_QNT[q, slot].sum() == pytest.approx(wanted, abs=5e-3 * scale)


def test_queries_do_not_change_each_others_answers():
    _, together = steps_of("momentum")
    run = run_of("momentum")
    alone = list(path_steps(run, build_queries(run, QUERIES[1:2]), range(run.steps_done)))[::-1]
    for one, other in zip(alone, together, strict=True):
        scale = np.abs(one.influence_QNT).max()
        np.testing.assert_allclose(
            one.influence_QNT[0], other.influence_QNT[1], rtol=1e-4, atol=1e-5 * scale
        )
