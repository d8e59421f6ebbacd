"""Falls of clusters: standard errors allow for dependent positions, and rises do not count."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from analysis.transitions.quanta import clusters
from analysis.transitions.quanta.falls import Falls, standard_error

STEPS = np.unique(np.round(np.expm1(np.linspace(0, np.log(1000), 40)))).astype(np.int64)


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


def test_a_sudden_rise_is_no_sudden_fall() -> None:
    u_K = np.log1p(STEPS)
    rng = np.random.default_rng(0)
    loss_K = 3 + 6 * ((u_K > 3) & (u_K < 5)) - 2 * u_K / u_K[-1]
    loss_KM = loss_K[:, None] + 0.02 * rng.standard_normal((len(u_K), 6))
    loss_KM[u_K >= 5] = np.linspace(loss_K[u_K < 5][-1], 1, (u_K >= 5).sum())[:, None]
    one_M = np.zeros(6, np.int64)
    found = Falls.of(STEPS, loss_KM, one_M, datum_M=np.arange(6), seed=0, cuts=False)
    assert found.shapes.curves["verdict"].tolist() == ["sudden"]
    assert found.fallen_C[0] < -4
    assert not found.sudden_C.any()
    assert found.sudden_share == 0


def test_a_cluster_of_one_position_has_no_error_and_no_cosine() -> None:
    loss_KM = np.linspace(3, 1, len(STEPS))[:, None] * np.ones(5)
    cluster_M = np.array([0, 0, 0, 0, 1])
    found = Falls.of(STEPS, loss_KM, cluster_M, datum_M=np.arange(5), seed=0, cuts=False)
    assert np.isnan(found.error_KC[:, 1]).all()
    assert np.isnan(clusters.within(np.eye(5), cluster_M)[1])
    assert isinstance(found.shapes.curves, pd.DataFrame)
