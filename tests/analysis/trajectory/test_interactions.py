"""Interactions of tokens: additive models have none, planted products have theirs, by shapiq."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.trajectory.metrics.interactions import pair_interactions, token_interactions
from analysis.trajectory.observed.text import Text, Windows

pytest.importorskip("shapiq")
RNG = np.random.default_rng(0)


def test_a_planted_product_is_the_interaction_of_its_tokens() -> None:
    found = pair_interactions(lambda s_SP: 3.0 * s_SP[:, 1] * s_SP[:, 3] + 2 * s_SP[:, 0], 5)
    wanted = [3.0 if pair == (1, 3) else 0.0 for pair in combinations(range(5), 2)]
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_the_index_is_that_of_its_definition() -> None:
    """Sundararajan et al. 2020, equation 4: 2 / n · Σ_T δ(T) / C(n − 1, |T|), over all T without
    the pair, with δ(T) the pair's discrete derivative."""
    count = 5
    table = dict(enumerate(RNG.standard_normal(2**count)))

    def value(subset_SP: np.ndarray) -> np.ndarray:
        codes = subset_SP.astype(np.int64) @ (1 << np.arange(count))
        return np.array([table[int(code)] for code in codes])

    found = pair_interactions(value, count)
    for place, (i, j) in enumerate(combinations(range(count), 2)):
        others = [p for p in range(count) if p not in (i, j)]
        total = 0.0
        for size in range(count - 1):
            for chosen in combinations(others, size):
                code = sum(1 << p for p in chosen)
                both, one, two = code | 1 << i | 1 << j, code | 1 << i, code | 1 << j
                change = table[both] - table[one] - table[two] + table[code]
                total += change / comb(count - 1, size)
        assert found[place] == pytest.approx(2 / count * total)


class Additive:
    """log p of the target: the sum of what the tokens give, so that they do not interact."""

    def __init__(self, product: bool) -> None:
        self.product = product

    def logits(self, token_NT: Tensor) -> Tensor:
        N, T = token_NT.shape
        given_N = token_NT.double().sum(1) / 100
        if self.product:
            given_N = given_N + token_NT[:, -1].double() * token_NT[:, -2] / 100
        log_p_N2 = torch.stack([-given_N - 1, torch.log1p(-torch.exp(-given_N - 1))], 1)
        return log_p_N2[:, None].expand(N, T, 2)


@pytest.mark.parametrize("product", [False, True])
def test_tokens_interact_where_the_model_multiplies_them(product: bool) -> None:
    windows = Windows(RNG.integers(1, 9, (5, 12)), np.zeros((5, 12), np.int64))
    text = Text(9, 12, windows, None, [])
    model = Additive(product)
    found = {r.component: r for r in token_interactions(model, text)}  # pyright: ignore
    assert set(found) == {"", *(f"distance {d}" for d in range(1, 8))}
    assert found[""].n == 5
    assert found["distance 2"].value == pytest.approx(0, abs=1e-9)
    if product:
        assert found["distance 1"].value > 1e-3
    else:
        assert found["distance 1"].value == pytest.approx(0, abs=1e-9)
