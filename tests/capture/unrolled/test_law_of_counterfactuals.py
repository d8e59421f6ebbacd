"""Law 13: unrolled influences equal finite differences of retraining, in float64, to 1e-6."""

import functools
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_hf import hf_config
from tiny_run import make_run
from torch import Tensor

from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.retraining.weighted_engine import WeightedEngine
from capture.store import Store
from capture.training.loop import capture_run
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.reverse import StepInfluence, sweep
from capture.unrolled.states import BackwardWalker, state_of

STEPS = 5
"""Taken by each run, of six in its plan: two epochs of three steps."""
SMALL = [
    *("model.layers=1", "model.width=8", "model.hidden=6", "training.batch=16"),
    *("capture.outliers.k=5", "training.learning_rate=0.3", "training.clip=1000"),
]
ADAM = "training.optimizer.epsilon=1e-3"
"""A large ε, so that differences of 1e-4 are small beside the smallest divisors."""
KINDS: dict[str, list[str]] = {
    "sgd": [],
    "clipped": ["training.clip=0.3"],
    "l2": ["training.optimizer.weight_decay=0.1"],
    "momentum": ["training.optimizer.momentum=0.9", "training.clip=0.1"],
    "nesterov": [
        *("training.optimizer.momentum=0.8", "training.optimizer.nesterov=true"),
        *("training.optimizer.weight_decay=0.1", "training.schedule.kind=cosine"),
    ],
    "adam-l2": [
        *("training.optimizer.kind=adam", "training.optimizer.weight_decay=0.1", ADAM),
        *("training.learning_rate=0.01", "training.decay=0.5"),
    ],
    "adamw": [
        *("training.optimizer.kind=adamw", "training.optimizer.weight_decay=0.3", ADAM),
        *("training.learning_rate=0.01", "training.clip=0.1", "training.schedule.warmup_steps=3"),
        *("training.optimizer.beta2=0.9", "training.accumulate=2"),
    ],
    "intervention": [
        *("intervention.suppress=['layers.0.self_attn:0','layers.0.linear2.weight:1-2']",),
        *("intervention.leave_out=[0-15]", "intervention.first_step=1", "intervention.end_step=4"),
        *("training.clip=0.3", "training.optimizer.momentum=0.9"),
    ],
    "no-dropout": ["model.dropout=0", "training.accumulate=4", "training.clip=0.3"],
}


@functools.cache
def small_run(kind: str) -> ReplayableRun:
    uri = make_run(f"memory://law13/{kind}", *SMALL, *KINDS[kind])
    return read_replayable_run(Store(uri))


def tied_run(folder: Path) -> ReplayableRun:
    optimizer = ("kind=adamw", "weight_decay=0.1", "epsilon=1e-3")
    overrides = [f"training.optimizer.{setting}" for setting in optimizer]
    config = hf_config(
        folder, "gpt2", *overrides, "training.learning_rate=0.01", "capture.units=['*']"
    )
    capture_run(config, lambda event: None)
    return read_replayable_run(Store(config.run.uri))


def train(run: ReplayableRun, changed: dict[tuple[int, int], float]) -> WeightedEngine:
    """Train in float64; ``changed``: other weights than 1 by (step, slot)."""
    engine = WeightedEngine.of(run.plan, exact=True)
    walker = BackwardWalker(run, engine, 0, {})
    for planned in islice(run.plan.planned_steps(0), STEPS):
        weight_N = torch.ones(len(planned.datum_N), dtype=torch.float64)
        for (step, slot), weight in changed.items():
            if step == planned.step:
                weight_N[slot] = weight
        batch = walker.batch(planned)
        engine.weighted_step(*batch, weight_N, step=planned.step, epoch=planned.epoch)
    return engine


def directions(engine: WeightedEngine) -> list[dict[str, Tensor]]:
    """Two random directions in weight space; a query is the weights' component along one."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: torch.randn(own.shape, generator=generator, dtype=torch.float64)
            for name, own in engine.model.named_parameters()
        }
        for _ in range(2)
    ]


def queries(engine: WeightedEngine) -> np.ndarray:
    parameters = dict(engine.model.named_parameters())
    return np.array(
        [
            sum(float((along[name] * parameters[name].detach()).sum()) for name in along)
            + sum(float((parameters[name].detach() ** 2).sum()) for name in along)
            for along in directions(engine)
        ]
    )


def gradients(engine: WeightedEngine) -> list[dict[str, Tensor]]:
    parameters = dict(engine.model.named_parameters())
    return [
        {name: own + 2 * parameters[name].detach() for name, own in along.items()}
        for along in directions(engine)
    ]


def unrolled(run: ReplayableRun) -> list[StepInfluence]:
    """Influences of all steps in float64, last step first."""
    ended = train(run, {})
    adjoint = Adjoint.at_end(gradients(ended), ended.config.optimizer)
    engine = WeightedEngine.of(run.plan, exact=True)
    walker = BackwardWalker(run, engine, 2**30, {})
    return list(sweep(walker.walk(state_of(engine, 0), STEPS), adjoint))


def difference(run: ReplayableRun, slots: list[tuple[int, int]]) -> np.ndarray:
    """Return the derivative of both queries by a common weight of some (step, slot), [Q].

    Central differences at two distances; Richardson's extrapolation removes their h² term.
    """

    def central(h: float) -> np.ndarray:
        above, below = (train(run, dict.fromkeys(slots, 1 + s * h)) for s in (1, -1))
        return (queries(above) - queries(below)) / (2 * h)

    return (4 * central(5e-4) - central(1e-3)) / 3


def assert_law(run: ReplayableRun) -> None:
    found = {step.step: step.influence_QNT for step in unrolled(run)}
    assert sorted(found) == list(range(STEPS))
    scale = max(np.abs(one.sum(2)).max() for one in found.values())
    for slots in ([(0, 1)], [(STEPS - 1, 0)], [(0, 0), (2, 3), (4, 2)]):
        by_sweep = sum(found[step][:, slot].sum(1) for step, slot in slots)
        np.testing.assert_allclose(by_sweep, difference(run, slots), rtol=1e-6, atol=1e-8 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_influences_equal_finite_differences_of_retraining(kind: str) -> None:
    assert_law(small_run(kind))


def test_with_tied_weights(tmp_path: Path) -> None:
    assert_law(tied_run(tmp_path))
