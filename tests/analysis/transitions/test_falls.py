"""Falls of clusters: a sudden rise is none, and a single position has no standard error."""

import numpy as np

from analysis.transitions.quanta import clusters
from analysis.transitions.quanta.falls import Falls

STEPS = np.unique(np.round(np.expm1(np.linspace(0, np.log(1000), 40)))).astype(np.int64)


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
