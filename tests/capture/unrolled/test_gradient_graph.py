"""The graph of a gradient has torch's derivatives and the engine's bits, within the bound."""

import pytest
import torch
from tiny_run import make_run
from torch.nn import functional as F

from capture.engine.build import build_engine
from capture.format.chain import read_segments, require_start
from capture.replay.segments import ReplayableRun, as_captured, read_replayable_run
from capture.store import Store
from capture.unrolled.gradient_graph import GradientGraph
from capture.unrolled.states import (
    MAX_BYTES,
    BackwardStep,
    BackwardWalker,
    backward_steps,
    state_of,
    trained_parameters,
)
from capture.unrolled.step_loss import StepLoss
from capture.unrolled.token_losses import twice_differentiable_losses

POSITIONS, VOCABULARY = 6, 9


@pytest.fixture(scope="module")
def run() -> ReplayableRun:
    settings = ("training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.epochs=1")
    return read_replayable_run(Store(make_run("memory://graphs/adamw", *settings)))


def steps_with_graphs(
    run: ReplayableRun, steps: range, max_bytes: int = MAX_BYTES
) -> list[BackwardStep]:
    markers = [require_start(run.store), *read_segments(run.store)]
    return list(backward_steps(run, markers, steps, graphs=True, max_bytes=max_bytes))


def stock_losses(logit_PV: torch.Tensor, target_P: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logit_PV, target_P, reduction="none")


def test_losses_have_the_first_and_second_derivatives_of_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logit_PV = torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64)
    target_P = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    weight_P = torch.rand(POSITIONS, generator=generator, dtype=torch.float64)
    along_PV = torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64)
    found = []
    for losses in (twice_differentiable_losses, stock_losses):
        # The logits are a function of the leaf, so that the second pass goes through them too.
        leaf_PV = logit_PV.clone().requires_grad_()
        given_P = weight_P.clone().requires_grad_()
        lost_P = losses(leaf_PV.sin(), target_P)
        (first,) = torch.autograd.grad((lost_P * given_P).sum(), leaf_PV, create_graph=True)
        for repeat in (True, False):
            second = torch.autograd.grad(first, [leaf_PV, given_P], along_PV, retain_graph=repeat)
        found.append((lost_P, first, *second))
    for mine, torchs in zip(*found, strict=True):
        torch.testing.assert_close(mine, torchs)
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("setting", ["training.precision=float32", "training.precision=bfloat16"])
def test_the_gradient_has_the_bits_of_the_engine(setting: str) -> None:
    own = read_replayable_run(Store(make_run(f"memory://graphs/{setting}", setting)))
    engine = build_engine(own.plan, ())
    planned = next(own.plan.planned_steps(0))
    batch = BackwardWalker(own, engine, 0, {}).batch(planned)
    before = state_of(engine, 0)
    with as_captured(own):
        graph = GradientGraph.of(StepLoss(engine, 0, *batch), before.weights, range(len(batch[0])))
        engine.gradients(*batch, 0)
    for name, parameter in trained_parameters(engine).items():
        assert parameter.grad is not None
        assert torch.equal(graph.gradient[name], parameter.grad)


def test_replay_with_graphs_has_the_bits_of_replay_without(run: ReplayableRun) -> None:
    markers = [require_start(run.store), *read_segments(run.store)]
    plain = backward_steps(run, markers, range(12))
    for mine, wanted in zip(steps_with_graphs(run, range(12)), plain, strict=True):
        assert mine.graph
        assert wanted.graph is None
        assert (mine.clip, mine.learning_rate) == (wanted.clip, wanted.learning_rate)
        for name, own in wanted.after.weights.items():
            assert torch.equal(mine.after.weights[name], own)


def test_graphs_are_kept_of_the_last_steps_that_fit(run: ReplayableRun) -> None:
    """Without room, the last step's graph is kept, as it is needed first."""
    steps = range(7, 12)  # a segment
    engine = build_engine(run.plan, ())
    first = state_of(engine, 0)
    walker = BackwardWalker(run, engine, MAX_BYTES, {}, graphs=True)
    assert [bool(step.graph) for step in walker.walk(first, 2)] == [True, True]
    assert walker.graph_bytes
    least = 8 * 3 * first.num_bytes  # weights and both moments
    kept = [
        [step.step for step in steps_with_graphs(run, steps, most) if step.graph]
        for most in (least, least + 2 * walker.graph_bytes, MAX_BYTES)
    ]
    assert kept[0] == [11]
    assert kept[2] == [11, 10, 9, 8, 7]
    assert kept[1] == kept[2][: len(kept[1])]
    assert 1 < len(kept[1]) < 5
