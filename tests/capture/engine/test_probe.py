"""Probes see the norm of any difference, and a wrong datum in a thousand at once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from capture.engine.audit import are_clearly_within, compare
from capture.engine.probe import LOOK_AGAIN, PROBES, Probe
from capture.gradients.dense import slice_datums, sum_shifts
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout

N, T, V = 5, 4, 30
SHAPES: dict[str, tuple[int, ...]] = {
    **{"q": (11, 12), "q.bias": (11,), "conv1d": (12, 11), "norm": (12,), "embedding": (V, 12)},
    **{"tied": (V, 12), "image": (11, 2, 6), "narrow": (11, 3), "vmap": (4, 20)},
}
LAYOUT = Layout(SHAPES)
CPU = torch.device("cpu")


def floats(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def example(seed: int = 0, datums: int = N) -> Factors:
    """Return factors of every kind, some of which share an input."""
    x, q = floats(datums, T, 12, seed=seed), floats(datums, T, 11, seed=seed + 1)
    token_NT = torch.arange(datums * T).reshape(datums, T) % V
    rows = Factor("rows", floats(datums, T, 12, seed=seed + 2), token_NT=token_NT)
    return {
        "q": [Factor("outer", q, x)],
        "q.bias": [Factor("sum", q)],
        "conv1d": [Factor("outer", q, x, transposed=True)],
        "norm": [Factor("scale", floats(datums, T, 12, seed=seed + 3), x)],
        "embedding": [rows],
        "tied": [rows, Factor("outer", floats(datums, T, V, seed=seed + 4), x)],
        "image": [Factor("outer", q, x), Factor("outer", q.flip(1), x)],
        "narrow": [Factor("outer", q, x[..., :3])],
        "vmap": [Factor("sum", floats(datums, 1, 80, seed=seed + 5))],
    }


@given(seed=st.integers(0, 2**32), step=st.integers(0, 10**6), scale=st.floats(-2, 2))
def test_what_is_seen_of_factors_is_what_is_seen_of_their_sum(seed, step, scale):
    probe, factors = Probe(LAYOUT, seed, step, CPU), example(seed % 100)
    total_P = sum_shifts(factors, LAYOUT, scale)
    seen_Q = probe.of_factors(factors, scale)
    torch.testing.assert_close(seen_Q, probe.of_vector(total_P), rtol=1e-4, atol=1e-4)
    parts = total_P.split(LAYOUT.sizes)
    tensors = {n: x.reshape(SHAPES[n]) for n, x in zip(LAYOUT.names, parts, strict=True)}
    assert torch.equal(probe.of_tensors(tensors), probe.of_vector(total_P))


def test_the_square_of_the_norm_is_right_on_average():
    wanted_P = floats(LAYOUT.size, seed=3)
    sizes = [Probe(LAYOUT, 1, s, CPU).of_vector(wanted_P).square().sum() for s in range(400)]
    assert float(torch.stack(sizes).mean() / wanted_P.square().sum()) == pytest.approx(1, abs=0.02)


def test_probes_are_those_of_seed_and_step():
    value_P = floats(LAYOUT.size, seed=3)
    one, again, other_step, other_seed = (
        Probe(LAYOUT, seed, step, CPU).of_vector(value_P)
        for seed, step in ((1, 7), (1, 7), (1, 8), (2, 7))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other_step)
    assert not torch.equal(one, other_seed)


def test_a_small_error_of_rank_one_is_underestimated_as_rarely_as_stated():
    """The worst case: χ² of 8 degrees of freedom, at a quarter of the norm: 1.4e-4."""
    layout = Layout({"w": (40, 50)})
    error_P = torch.outer(floats(40, seed=1), floats(50, seed=2)).reshape(-1)
    size = float(error_P.norm())
    seen = [float(Probe(layout, 0, s, CPU).of_vector(error_P).norm()) / size for s in range(4000)]
    assert np.mean([each < 0.5 for each in seen]) == pytest.approx(0.0190, abs=0.008)
    assert np.mean([each < LOOK_AGAIN for each in seen]) < 2e-3
    # P(χ²_8 < x) ≤ (x/2)⁴ / 4!: what the module's docstring states.
    below = [(PROBES * share**2 / 2) ** 4 / math.factorial(4) for share in (0.25, 0.025, 0.0025)]
    assert below[0] < 1.7e-4
    assert below[1] < 1.7e-12
    assert below[2] < 1e-9


@pytest.mark.parametrize("step", range(20))
def test_one_wrong_datum_in_a_thousand_is_seen_at_once(step):
    layout = Layout({"w": (30, 40)})
    left, right = floats(1000, 3, 30, seed=1), floats(1000, 3, 40, seed=2)
    wanted_P = sum_shifts({"w": [Factor("outer", left, right)]}, layout, 1.0)
    right[step * 7] = right[step * 7 + 1]
    probe = Probe(layout, 5, step, CPU)
    wrong_Q = probe.of_factors({"w": [Factor("outer", left, right)]}, 1.0)
    found = [compare(wrong_Q, probe.of_vector(wanted_P), 0.0)]
    assert not are_clearly_within(1e-5, found)
    assert found[0].error > 1e-2


def test_a_lost_datum_is_seen_and_rounding_is_not():
    probe, factors = Probe(LAYOUT, 0, 3, CPU), example(datums=40)
    wanted_Q = probe.of_vector(sum_shifts(factors, LAYOUT, 1.0))
    assert are_clearly_within(1e-5, [compare(probe.of_factors(factors, 1.0), wanted_Q, 0.0)])
    lost_Q = probe.of_factors(slice_datums(factors, 0, 39), 1.0)
    assert not are_clearly_within(1e-5, [compare(lost_Q, wanted_Q, 0.0)])
