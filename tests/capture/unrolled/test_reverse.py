"""A sweep gives the same numbers however it is cut: by memory, by interruption, by query."""

import numpy as np
import pytest
import torch
from tiny_run import make_run

from capture.errors import InfluenceError, ShardError
from capture.format import checkpoint
from capture.format.chain import read_segments, require_start
from capture.format.markers import Marker
from capture.optim.optimizer import Tensors
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.store import Store
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.reverse import StepInfluence, unroll
from capture.unrolled.states import MAX_BYTES

ADAMW = ("training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.epochs=1")


@pytest.fixture(scope="module")
def run() -> ReplayableRun:
    return read_replayable_run(Store(make_run("memory://reverse", *ADAMW)))


def markers(run: ReplayableRun) -> list[Marker]:
    return [require_start(run.store), *read_segments(run.store)]


def random_directions(run: ReplayableRun, count: int) -> list[Tensors]:
    weights = checkpoint.read_checkpoint(run.store, 0)
    generator = torch.Generator().manual_seed(0)
    # No loss depends on the bias of the keys. Its gradient is rounding, by which Adam divides.
    scale = {name: 0.0 if name.endswith("in_proj_bias") else 1.0 for name in sorted(weights)}
    return [
        {n: by * torch.randn(weights[n].shape, generator=generator) for n, by in scale.items()}
        for _ in range(count)
    ]


def at_end(run: ReplayableRun, count: int = 3) -> Adjoint:
    return Adjoint.at_end(random_directions(run, count), run.plan.config.training.optimizer)


def swept(
    run: ReplayableRun, adjoint: Adjoint, steps: range, max_bytes: int = MAX_BYTES
) -> list[StepInfluence]:
    return list(unroll(run, markers(run), adjoint, steps, max_bytes=max_bytes))


def assert_same(found: list[StepInfluence], wanted: list[StepInfluence]) -> None:
    assert [one.step for one in found] == [one.step for one in wanted]
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine.influence_QNT, theirs.influence_QNT)
        np.testing.assert_array_equal(mine.adjoint_norm_Q, theirs.adjoint_norm_Q)
        np.testing.assert_array_equal(mine.datum_N, theirs.datum_N)


@pytest.fixture(scope="module")
def whole(run: ReplayableRun) -> list[StepInfluence]:
    return swept(run, at_end(run), range(12))


def test_every_step_has_an_influence_for_each_query_datum_and_position(
    run: ReplayableRun, whole: list[StepInfluence]
) -> None:
    assert [one.step for one in whole] == list(range(12))[::-1]
    for one, planned in zip(whole[::-1], run.plan.planned_steps(0), strict=True):
        assert one.influence_QNT.shape == (3, 4, 8)
        assert one.influence_QNT.dtype == np.float64
        np.testing.assert_array_equal(one.datum_N, planned.datum_N)
        assert (one.adjoint_norm_Q > 0).all()


def test_less_memory_gives_the_same_numbers(run: ReplayableRun, whole: list[StepInfluence]) -> None:
    state = sum(x.numel() * 4 for x in checkpoint.read_checkpoint(run.store, 7).values())
    assert_same(swept(run, at_end(run), range(12), max_bytes=8 * state), whole)


@pytest.mark.parametrize("cut", [7, 10])
def test_a_sweep_resumes_from_a_stored_adjoint(
    run: ReplayableRun, whole: list[StepInfluence], cut: int
) -> None:
    """Also within a segment (10)."""
    late = swept(run, at_end(run), range(cut, 12))
    stored = Adjoint.decode(late[-1].adjoint.encode(), "memory")
    assert_same(late + swept(run, stored, range(cut)), whole)


def test_queries_do_not_affect_each_other(run: ReplayableRun, whole: list[StepInfluence]) -> None:
    config = run.plan.config.training.optimizer
    for number, direction in enumerate(random_directions(run, 3)):
        alone = swept(run, Adjoint.at_end([direction], config), range(6, 12))
        for one, together in zip(alone, whole, strict=False):
            np.testing.assert_allclose(
                one.influence_QNT[0], together.influence_QNT[number], rtol=1e-4, atol=1e-7
            )


def test_the_given_adjoint_stays_unchanged(run: ReplayableRun) -> None:
    given, same = at_end(run), at_end(run)
    swept(run, given, range(10, 12))
    for name, own in given.weights.items():
        assert torch.equal(own, same.weights[name])


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_the_last_influences_sum_to_the_change_of_a_linear_query(
    precision: str, error: float
) -> None:
    """One step of plain SGD, not clipped: −lr Σ ⟨direction, gradient⟩ is the query's change."""
    settings = ("training.clip=1e9", "training.learning_rate=0.1", "capture.segment_steps=1")
    uri = make_run(f"memory://reverse/{precision}", *settings, f"training.precision={precision}")
    run = read_replayable_run(Store(uri))
    before, after = (read_weights(run, step) for step in (5, 6))
    direction = {name: after[name] - before[name] for name in before}
    adjoint = Adjoint.at_end([direction], run.plan.config.training.optimizer)
    moved = sum(float(own.double().square().sum()) for own in direction.values())
    (found,) = swept(run, adjoint, range(5, 6))
    assert found.influence_QNT.sum() == pytest.approx(moved, rel=error)


def read_weights(run: ReplayableRun, step: int) -> Tensors:
    weights, _ = checkpoint.split_checkpoint(checkpoint.read_checkpoint(run.store, step))
    return weights


def test_an_adjoint_that_overflows_is_one_line_that_names_the_step(run: ReplayableRun) -> None:
    huge = [{name: own * 1e38 for name, own in random_directions(run, 1)[0].items()}]
    adjoint = Adjoint.at_end(huge, run.plan.config.training.optimizer)
    with pytest.raises(InfluenceError, match=r"^step \d+: the derivative of the query") as caught:
        swept(run, adjoint, range(12))
    assert "\n" not in str(caught.value)


def test_a_query_is_given_up_where_its_adjoint_is_too_large(
    run: ReplayableRun, whole: list[StepInfluence]
) -> None:
    """The others do not notice; the sweep ends with the last of them."""
    norm_SQ = np.stack([one.adjoint_norm_Q for one in whole])
    largest_Q = torch.from_numpy(norm_SQ.max(0)) * torch.tensor([2.0, 0.0, 1e-9]) + 1e-300
    found = list(unroll(run, markers(run), at_end(run), range(12), largest_norm_Q=largest_Q))
    assert len(found) == 12
    for one, free in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.influence_QNT[0], free.influence_QNT[0])
        assert one.adjoint_norm_Q[0] == free.adjoint_norm_Q[0]
    first, *others = found
    np.testing.assert_array_equal(first.influence_QNT, whole[0].influence_QNT)
    np.testing.assert_array_equal(first.adjoint_norm_Q, whole[0].adjoint_norm_Q)
    for one in others:
        assert not one.influence_QNT[1:].any()
        assert np.isnan(one.adjoint_norm_Q[1:]).all()
    resumed = Adjoint.decode(found[4].adjoint.encode(), "memory")
    again = list(unroll(run, markers(run), resumed, range(7), largest_norm_Q=largest_Q))
    assert_same(again, found[5:])
    few = list(unroll(run, markers(run), at_end(run), range(12), largest_norm_Q=largest_Q / 1e9))
    assert [one.step for one in few] == [11]


def test_an_adjoint_that_overflows_can_be_given_up(run: ReplayableRun) -> None:
    huge = [{name: own * 1e38 for name, own in random_directions(run, 1)[0].items()}]
    adjoint = Adjoint.at_end(huge, run.plan.config.training.optimizer)
    largest_Q = torch.tensor([1e300], dtype=torch.float64)
    found = list(unroll(run, markers(run), adjoint, range(12), largest_norm_Q=largest_Q))
    assert found[-1].adjoint_norm_Q == [np.inf]
    assert all(np.isfinite(one.influence_QNT).all() for one in found)
    assert found[-1].step > 0


def test_a_damaged_adjoint_is_refused() -> None:
    with pytest.raises(ShardError, match=r"adjoint: is not readable: .* Delete it"):
        Adjoint.decode(b"no tensors", "adjoint")
