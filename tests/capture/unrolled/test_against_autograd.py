"""Unrolled influence equals plain autograd through all of training, a slow reference.

The reference shares nothing with the sweep but the model: it writes every step of SGD as a function
of the weights before it and of the datums' weights, keeps the whole graph, and differentiates once.
It needs no differences, so that it holds over many steps and at a learning rate at which training
is unstable, where differences of any size leave the linear range.
"""

import numpy as np
import torch
from tiny_run import make_run
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from capture.models.dropout import Masks
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.retraining.weighted_engine import WeightedEngine
from capture.store import Store
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.reverse import sweep
from capture.unrolled.states import BackwardWalker, state_of

SETTINGS = (
    *("training.epochs=8", "training.batch=16", "model.dropout=0", "training.clip=1e9"),
    *("model.layers=2", "model.width=8", "model.hidden=8", "capture.outliers.k=5"),
    *("training.schedule.kind=constant", "capture.segment_steps=24"),
    "training.learning_rate=1.5",
)


def held_out(run: ReplayableRun) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of the held-out datums, each [N, T]."""
    datums = run.plan.corpus.validation
    assert datums
    return torch.as_tensor(datums.token_NT).long(), torch.as_tensor(datums.target_NT).long()


def by_autograd(run: ReplayableRun) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Return ∂(held-out loss)/∂(weight of each datum), [D], and the last weights."""
    model = WeightedEngine.of(run.plan, exact=True).model
    corpus, rate = run.plan.corpus, run.plan.config.training.learning_rate
    weights = {n: own.detach().requires_grad_() for n, own in model.named_parameters()}
    weight_D = torch.ones(len(corpus.train.token_NT), dtype=torch.float64, requires_grad=True)

    def losses(weights: dict[str, Tensor], token_NT: Tensor, target_NT: Tensor) -> Tensor:
        logit_NTV = functional_call(model, weights, (token_NT, Masks.none()))
        flat = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten(), reduction="none")
        return flat.view(target_NT.shape).mean(1)

    for planned in run.plan.planned_steps(0):
        token_NT, target_NT = (
            torch.as_tensor(part[planned.datum_N]).long()
            for part in (corpus.train.token_NT, corpus.train.target_NT)
        )
        loss = (weight_D[planned.datum_N] * losses(weights, token_NT, target_NT)).mean()
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        pairs = zip(weights.items(), found, strict=True)
        weights = {name: own - rate * gradient for (name, own), gradient in pairs}
    (influence_D,) = torch.autograd.grad(losses(weights, *held_out(run)).mean(), weight_D)
    return influence_D.numpy(), {name: own.detach() for name, own in weights.items()}


def by_sweep(run: ReplayableRun, last: dict[str, Tensor]) -> tuple[np.ndarray, float]:
    """Return the same derivative by the sweep, and the largest growth of the adjoint."""
    engine = WeightedEngine.of(run.plan, exact=True)
    leaves = {name: own.clone().requires_grad_() for name, own in last.items()}
    token_NT, target_NT = held_out(run)
    logit_NTV = functional_call(engine.model, leaves, (token_NT, Masks.none()))
    loss = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten())
    found = torch.autograd.grad(loss, list(leaves.values()))
    gradient = dict(zip(leaves, found, strict=True))
    adjoint = Adjoint.at_end([gradient], engine.config.optimizer)
    walker = BackwardWalker(run, engine, 2**30, {})
    influence_D, largest = np.zeros(len(run.plan.corpus.train.token_NT)), 0.0
    for step in sweep(walker.walk(state_of(engine, 0), run.plan.num_steps), adjoint):
        np.add.at(influence_D, step.datum_N, step.influence_QNT[0].sum(1))
        largest = max(largest, float(step.adjoint_norm_Q[0]))
    return influence_D, largest / float(adjoint.norm()[0])


def test_the_sweep_equals_autograd_through_all_steps_of_unstable_training() -> None:
    run = read_replayable_run(Store(make_run("memory://autograd", *SETTINGS)))
    assert run.plan.num_steps == 24
    wanted_D, last = by_autograd(run)
    found_D, growth = by_sweep(run, last)
    assert growth > 100
    np.testing.assert_allclose(found_D, wanted_D, rtol=1e-7, atol=1e-9 * np.abs(wanted_D).max())
