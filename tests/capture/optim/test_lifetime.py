"""Law 11 in float64: lifetime shifts and decay of the initial weights sum to the weights' change.

Shapes: t step, N datum, S entry of a parameter.
"""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_lifetime import last_weights
from torch import Tensor, nn

from capture.optim.lifetime import AppliedUpdate, Coefficient, Persistence
from capture.optim.optimizer import inherited_terms, make_optimizer, optimizer_state, split_update
from capture.optim.optimizer_config import OptimizerConfig

KINDS = {
    "sgd": OptimizerConfig(),
    "sgd-decay": OptimizerConfig(weight_decay=0.1),
    "momentum": OptimizerConfig(momentum=0.9),
    "momentum-decay": OptimizerConfig(momentum=0.9, weight_decay=0.1),
    "nesterov": OptimizerConfig(momentum=0.9, nesterov=True),
    "nesterov-decay": OptimizerConfig(momentum=0.8, nesterov=True, weight_decay=0.1),
    "adam": OptimizerConfig(kind="adam"),
    "adam-decay": OptimizerConfig(kind="adam", beta1=0.8, weight_decay=0.1),
    "adamw": OptimizerConfig(kind="adamw", beta2=0.95),
    "adamw-decay": OptimizerConfig(kind="adamw", beta2=0.95, weight_decay=0.3),
    "no-first-moment": OptimizerConfig(kind="adamw", beta1=0.0, epsilon=1e-4, weight_decay=0.1),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
N, S = 3, 5


def train(
    config: OptimizerConfig, start_S: Tensor, seed: int, rates: Sequence[float]
) -> tuple[Tensor, Tensor, list[AppliedUpdate]]:
    """Train y = x · w in float64 by ``torch.optim``, with clipping and two micro-batches a step.

    Returns the last weights, every datum's gradient before clipping, [t, N, S], and the updates.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(start_S.clone())
    optimizer = make_optimizer([weight], config, 1.0)
    grads, updates = [], []
    for step, rate in enumerate(rates):
        x_NS = torch.randn(N, S, generator=generator, dtype=torch.float64)
        y_N = torch.randn(N, generator=generator, dtype=torch.float64)
        losses = (x_NS @ weight - y_N).square() / N
        grads.append(
            torch.stack([torch.autograd.grad(v, weight, retain_graph=True)[0] for v in losses])
        )
        optimizer.zero_grad()
        losses[:1].sum().backward(retain_graph=True)
        losses[1:].sum().backward()
        clip = 0.3 + 0.7 * float(torch.rand(1, generator=generator))
        assert weight.grad is not None
        weight.grad *= clip
        optimizer.param_groups[0]["lr"] = rate
        inherited = inherited_terms(config, {"w": weight}, {})
        optimizer.step()
        squares = optimizer_state(optimizer, {"w": weight}, "exp_avg_sq")
        parts = split_update(config, inherited, squares, learning_rate=rate, clip=clip, step=step)
        preconditioner = parts.preconditioner["w"] if parts.preconditioner else None
        updates.append(
            AppliedUpdate.of(
                config, learning_rate=rate, clip=clip, step=step, preconditioner=preconditioner
            )
        )
    return weight.detach(), torch.stack(grads), updates


def coefficients(
    updates: Sequence[AppliedUpdate],
) -> tuple[list[Coefficient], Coefficient]:
    """Return each step's multiplier from gradient to lifetime shift, and what is left of θ_0."""
    after, found = Persistence(), []
    for update in reversed(updates):
        found.append(after.of_gradient(update))
        after = after.before(update)
    return found[::-1], after.weight


def warm_up(steps: int) -> list[float]:
    """The first learning rate is 0, as ``LambdaLR`` often gives it."""
    return [0.05 * min(1.0, step / 3) for step in range(steps)]


def start(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(S, generator=generator, dtype=torch.float64)


@given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 99), steps=st.integers(1, 30))
def test_lifetime_shifts_and_decay_of_the_start_are_the_change(name, seed, steps):
    config, start_S = KINDS[name], start(seed)
    end_S, grad_tNS, updates = train(config, start_S, seed, warm_up(steps))
    by_t, left = coefficients(updates)
    found_S = (left - 1) * start_S
    for by, grad_NS in zip(by_t, grad_tNS, strict=True):
        found_S = found_S + (by * grad_NS).sum(0)
    torch.testing.assert_close(found_S, end_S - start_S, rtol=1e-10, atol=1e-10)
    assert (torch.as_tensor(left) == 1).all() == (config.weight_decay == 0 or steps == 1)


@every_kind
def test_a_lifetime_shift_is_the_end_minus_the_end_without_that_gradient(config):
    start_S, rates = start(0), warm_up(12)
    _, grad_tNS, updates = train(config, start_S, 0, rates)
    by_t, left = coefficients(updates)
    clipped_tS = [own.clip * grad_NS.sum(0) for own, grad_NS in zip(updates, grad_tNS, strict=True)]
    end_S = last_weights(config, start_S, clipped_tS, rates, clipped_tS)
    for step, datum in [(0, 0), (1, 2), (5, 1), (10, 0), (11, 2)]:
        without_tS = list(clipped_tS)
        without_tS[step] = clipped_tS[step] - updates[step].clip * grad_tNS[step, datum]
        wanted_S = end_S - last_weights(config, start_S, clipped_tS, rates, without_tS)
        found_S = by_t[step] * grad_tNS[step, datum]
        torch.testing.assert_close(found_S, wanted_S, rtol=1e-9, atol=1e-12)
    from_zero = (clipped_tS, rates, clipped_tS, torch.zeros(S, dtype=torch.float64))
    left_S = end_S - last_weights(config, start_S, *from_zero)
    torch.testing.assert_close(left * start_S, left_S, rtol=1e-9, atol=1e-12)


def test_under_plain_sgd_a_lifetime_shift_has_the_bits_of_the_shift():
    _, _, updates = train(KINDS["sgd"], start(3), 3, warm_up(9))
    by_t, _ = coefficients(updates)
    assert by_t == [update.rate * update.clip for update in updates]


@every_kind
def test_in_the_last_step_a_lifetime_shift_is_the_shift(config):
    _, _, updates = train(config, start(4), 4, warm_up(6))
    last, by_t = updates[-1], coefficients(updates)[0]
    wanted = last.rate * last.clip * torch.as_tensor(last.preconditioner)
    torch.testing.assert_close(torch.as_tensor(by_t[-1]), wanted, rtol=1e-15, atol=0.0)


def test_momentum_multiplies_an_early_shift_by_almost_ten():
    """A first gradient acts with Σ μ^s = (1 − μ^60) / (1 − μ) over 60 steps with μ = 0.9."""
    config = KINDS["momentum"]
    updates = [AppliedUpdate.of(config, learning_rate=0.1, clip=1.0, step=s) for s in range(60)]
    by_t, left = coefficients(updates)
    assert by_t[0] == pytest.approx(-0.1 * (1 - 0.9**60) / (1 - 0.9), rel=1e-12)
    assert left == 1.0
