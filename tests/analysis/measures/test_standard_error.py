"""Standard errors of means over samples that depend on each other within groups."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from analysis.measures.standard_error import standard_error


@given(seed=st.integers(0, 99), copies=st.integers(1, 5))
def test_positions_of_a_datum_that_are_alike_count_once(seed: int, copies: int) -> None:
    loss_KN = np.random.default_rng(seed).normal(size=(3, 12))
    wanted_K = loss_KN.std(1, ddof=1) / np.sqrt(12)
    datum_M = np.repeat(np.arange(12), copies)
    found_K = standard_error(np.repeat(loss_KN, copies, axis=1), datum_M)
    np.testing.assert_allclose(found_K, wanted_K)


def test_the_standard_error_is_the_spread_of_means_over_samples_of_datums() -> None:
    rng = np.random.default_rng(0)
    datum_M = np.repeat(np.arange(40), rng.integers(1, 6, 40))

    def sample() -> np.ndarray:
        of_datum_N = rng.normal(size=40)
        return (of_datum_N[datum_M] + 0.5 * rng.normal(size=len(datum_M)))[None]

    samples = [sample() for _ in range(2000)]
    spread = np.std([one.mean() for one in samples])
    found = np.sqrt(np.mean([standard_error(one, datum_M) ** 2 for one in samples]))
    assert abs(found / spread - 1) < 0.1
    assert spread > 1.3 * samples[0].std() / np.sqrt(len(datum_M))
