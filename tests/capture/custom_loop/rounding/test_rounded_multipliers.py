"""The factor between rounded gradients and their sum: no rounding is taken for a lost datum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from capture.custom_loop.sums import within_rounding
from capture.custom_loop.update import gradient_multiplier
from capture.optim.update import BFLOAT16_ROUNDING


def rounded(summed_P: Tensor, factor: float) -> Tensor:
    """Return gradients as a loop under autocast gives them: rounded, then multiplied."""
    return summed_P.bfloat16().float() * factor


def excess(factor: float, given_P: Tensor, summed_P: Tensor) -> float:
    """Return by how much the worst entry exceeds its rounding, relative to that."""
    bound_P = (BFLOAT16_ROUNDING * summed_P.abs()).double()
    return float((((given_P.double() / factor - summed_P).abs() - bound_P) / bound_P).max())


def found_for(given_P: Tensor, summed_P: Tensor) -> float:
    least_squares = gradient_multiplier(given_P, summed_P)
    return within_rounding(least_squares, given_P, summed_P, BFLOAT16_ROUNDING * summed_P.abs())


@given(seed=st.integers(0, 10**6), size=st.integers(1, 60), factor=st.floats(1e-3, 10))
def test_law_some_factor_explains_all_roundings_and_is_found(seed: int, size: int, factor: float):
    summed_P = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    given_P = rounded(summed_P, factor)
    found = found_for(given_P, summed_P)
    assert excess(found, given_P, summed_P) <= 1e-4
    assert found == pytest.approx(factor, rel=2 * BFLOAT16_ROUNDING)


def test_gradients_that_were_not_multiplied_have_the_factor_one():
    found, least_squares = [], []
    for seed in range(50):
        summed_P = torch.randn(20, generator=torch.Generator().manual_seed(seed))
        given_P = rounded(summed_P, 1.0)
        found.append(found_for(given_P, summed_P))
        least_squares.append(excess(gradient_multiplier(given_P, summed_P), given_P, summed_P))
    assert found == [1.0] * 50
    assert sum(each > 0.01 for each in least_squares) >= 5  # least squares alone exceeds bounds


@pytest.mark.parametrize("factor", [1.0, 0.3, -2.0])
def test_a_lost_datum_is_not_explained_away(factor: float):
    one_NP = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    given_P, summed_P = rounded(one_NP.sum(0), factor), one_NP[1:].sum(0)
    least_squares = gradient_multiplier(given_P, summed_P)
    assert found_for(given_P, summed_P) == least_squares
    assert excess(least_squares, given_P, summed_P) > 10


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_degenerate_gradients_keep_least_squares(value: float):
    zero_P, some_P = torch.zeros(3), torch.tensor([1.0, 2.0, 4.0])
    assert within_rounding(1.0, zero_P, some_P, some_P / 256) == 1.0
    assert within_rounding(value, value * some_P, some_P, some_P / 256) == value
