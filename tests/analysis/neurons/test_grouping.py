"""Clustering of neurons: planted clusters are found, noise has none, measures have references."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score

from analysis.measures.association import associations
from analysis.neurons.clustering import ClusteringConfig, find_clusters, number_by_size, tsne_map
from analysis.neurons.grouping import cluster_views
from analysis.neurons.stability import (
    adjusted_rand_index,
    best_jaccard,
    bootstrap_stability,
    draw_columns,
    mean_and_interval,
)
from capture.errors import ConfigError

BLOCKS, PER_BLOCK, NUM_DATUMS = 4, 15, 400
PLANTED_G = np.repeat(np.arange(BLOCKS), PER_BLOCK)
HDBSCAN = ClusteringConfig()
JOINED = ClusteringConfig(method="agglomerative", clusters=BLOCKS)
LABELS = st.lists(st.integers(-1, 3), min_size=2, max_size=12)


def planted(seed: int, contrast: float = 3.0) -> csr_array:
    """Counts of four blocks of neurons, each with datums of its own."""
    rng = np.random.default_rng(seed)
    rate_GN = np.full((BLOCKS * PER_BLOCK, NUM_DATUMS), 0.3)
    for block in range(BLOCKS):
        rate_GN[block * PER_BLOCK :][:PER_BLOCK, block * 80 :][:, :80] = 0.3 + contrast
    busy_G1 = rng.uniform(0.5, 2, size=(len(rate_GN), 1))  # total counts differ between neurons
    return csr_array(rng.poisson(rate_GN * busy_G1).astype(float))


# --- associations ---------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), num_columns=st.integers(1, 6))
def test_associations_equal_a_plain_loop(seed: int, num_columns: int) -> None:
    count_GC = np.random.default_rng(seed).integers(0, 4, size=(5, num_columns)).astype(float)
    wanted_GC = np.zeros_like(count_GC)
    for g, c in zip(*count_GC.nonzero(), strict=True):
        chance = count_GC[g].sum() * count_GC[:, c].sum() / count_GC.sum()
        wanted_GC[g, c] = max(0, np.log(count_GC[g, c] / chance))
    wanted_GC /= np.maximum(np.linalg.norm(wanted_GC, axis=1, keepdims=True), 1e-9)
    found_GC = associations(csr_array(count_GC)).toarray()
    np.testing.assert_allclose(found_GC, wanted_GC, atol=1e-6)


@given(seed=st.integers(0, 999))
def test_a_sample_of_columns_is_the_matrix_with_these_columns_repeated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count_GC = rng.integers(0, 4, size=(5, 8)).astype(float)
    times_C = draw_columns(8, rng)
    # Columns that are not drawn contribute to the margins of neither.
    repeated = associations(csr_array(np.repeat(count_GC, times_C, axis=1))).toarray()
    weighted = associations(csr_array(count_GC), times_C).toarray()
    np.testing.assert_allclose(weighted @ weighted.T, repeated @ repeated.T, atol=1e-9)


@given(seed=st.integers(0, 99), scale=st.floats(1e-6, 1e6))
def test_the_scale_of_counts_changes_nothing(seed: int, scale: float) -> None:
    count_GC = planted(seed)
    found = associations(csr_array(count_GC * scale)).toarray()
    np.testing.assert_allclose(found, associations(count_GC).toarray(), atol=1e-6)


# --- clusters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [HDBSCAN, JOINED], ids=["hdbscan", "agglomerative"])
@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_recovered(config: ClusteringConfig, seed: int) -> None:
    point_GD, found = cluster_views([(planted(seed), 1.0)], config)
    assert adjusted_rand_score(PLANTED_G, found.label_G) > 0.9
    assert found.num_clusters == BLOCKS
    assert ((found.membership_G >= 0) & (found.membership_G <= 1)).all()
    np.testing.assert_allclose(np.linalg.norm(point_GD, axis=1), 1)


@pytest.mark.parametrize("config", [HDBSCAN, JOINED], ids=["hdbscan", "agglomerative"])
@pytest.mark.parametrize("seed", range(3))
def test_neurons_in_another_order_have_the_same_clusters(
    config: ClusteringConfig, seed: int
) -> None:
    counts = planted(seed, contrast=1.5)
    order_G = np.random.default_rng(seed).permutation(len(PLANTED_G))
    _, found = cluster_views([(counts, 1.0)], config)
    _, again = cluster_views([(counts[order_G], 1.0)], config)
    assert adjusted_rand_index(found.label_G[order_G], again.label_G) == 1


def test_two_views_separate_blocks_that_one_view_cannot() -> None:
    """The datums of blocks 0 and 1 are mixed, and the tokens of blocks 2 and 3."""
    counts = planted(0).toarray()
    datums, tokens = counts.copy(), counts.copy()
    datums[:, :80] = datums[:, 80:160] = counts[:, :80] + counts[:, 80:160]
    tokens[:, 160:240] = tokens[:, 240:320] = counts[:, 160:240] + counts[:, 240:320]
    views = [(csr_array(datums), 0.5), (csr_array(tokens), 0.5)]
    _, one = cluster_views([(views[0][0], 1.0), (views[1][0], 0.0)], HDBSCAN)
    _, both = cluster_views(views, HDBSCAN)
    assert adjusted_rand_score(PLANTED_G, one.label_G) < 0.8
    assert adjusted_rand_score(PLANTED_G, both.label_G) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_no_stable_clusters(seed: int) -> None:
    noise = csr_array(np.random.default_rng(seed).poisson(1.0, size=(60, 400)).astype(float))
    _, found = cluster_views([(noise, 1.0)], HDBSCAN)
    stability = stability_of(noise, found.label_G, seed)
    mean, _, _ = mean_and_interval(stability.agreement_B)
    assert found.num_clusters == 0 or mean < 0.3


def test_planted_groups_are_stable() -> None:
    counts = planted(0)
    _, found = cluster_views([(counts, 1.0)], HDBSCAN)
    stability = stability_of(counts, found.label_G, 0)
    assert stability.agreement_B.min() > 0.9
    assert stability.jaccard_BC.shape == (5, BLOCKS)
    assert stability.jaccard_BC.min() > 0.8
    again = stability_of(counts, found.label_G, 0)
    np.testing.assert_array_equal(stability.jaccard_BC, again.jaccard_BC)


def stability_of(counts: csr_array, label_G: np.ndarray, seed: int):
    reported = []
    found = bootstrap_stability(
        label_G,
        lambda rng: cluster_views([(counts, 1.0)], HDBSCAN, rng)[1].label_G,
        samples=5,
        seed=seed,
        report=lambda done, total: reported.append((done, total)),
    )
    assert reported == [(done, 5) for done in range(1, 6)]
    return found


@given(LABELS)
def test_numbering_by_size_keeps_the_clusters(labels: list[int]) -> None:
    label_G = np.array(labels)
    found_G = number_by_size(label_G)
    assert ((found_G == -1) == (label_G == -1)).all()
    pairs = {(int(a), int(b)) for a, b in zip(label_G, found_G, strict=True)}
    assert len(pairs) == len(set(labels))
    sizes = np.bincount(found_G[found_G >= 0])
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()


def test_identical_points_have_at_most_one_cluster() -> None:
    found = find_clusters(np.ones((12, 2)) / np.sqrt(2), HDBSCAN)
    assert found.num_clusters <= 1
    assert tsne_map(np.eye(12), seed=0).shape == (12, 2)


def test_the_map_keeps_neighbours_and_is_determined_by_the_seed() -> None:
    point_GD, _ = cluster_views([(planted(0), 1.0)], HDBSCAN)
    position_G2 = tsne_map(point_GD, seed=1)
    np.testing.assert_array_equal(position_G2, tsne_map(point_GD, seed=1))
    distance_GG = (
        np.linalg.norm(position_G2[:, None] - position_G2, axis=2) + np.eye(len(position_G2)) * 1e9
    )
    assert (PLANTED_G[distance_GG.argmin(1)] == PLANTED_G).mean() > 0.9


# --- measures of stability ------------------------------------------------------------------------


@given(LABELS, st.integers(0, 999))
def test_the_rand_index_equals_counting_pairs(labels: list[int], seed: int) -> None:
    a_G = np.array(labels)
    b_G = np.random.default_rng(seed).integers(-1, 3, size=len(a_G))
    together = [
        (a_G[i] == a_G[j] >= 0, b_G[i] == b_G[j] >= 0)
        for i, j in itertools.combinations(range(len(a_G)), 2)
    ]
    a, b = np.array(together).T
    found = adjusted_rand_index(a_G, b_G)
    assert found == adjusted_rand_index(b_G, a_G) or np.isnan(found)
    if a.sum() + b.sum() == 0:
        assert np.isnan(found)
    elif (a.sum() + b.sum()) / 2 > a.sum() * b.sum() / len(a):
        chance = a.sum() * b.sum() / len(a)
        assert found == pytest.approx(((a & b).sum() - chance) / ((a.sum() + b.sum()) / 2 - chance))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 999))
def test_the_rand_index_equals_sklearn_if_all_are_in_clusters(labels: list[int], seed: int) -> None:
    a_G = np.array(labels)
    b_G = np.random.default_rng(seed).integers(0, 3, size=len(a_G))
    if len(set(labels)) < len(a_G) / 2 and len(set(b_G)) < len(a_G) / 2:  # else sklearn warns
        assert adjusted_rand_index(a_G, b_G) == pytest.approx(adjusted_rand_score(a_G, b_G))
    assert adjusted_rand_index(a_G, a_G) == 1 or len(set(labels)) == len(labels)


@given(LABELS, st.integers(0, 999))
def test_best_jaccard_equals_sets(labels: list[int], seed: int) -> None:
    a_G = number_by_size(np.array(labels))
    b_G = np.random.default_rng(seed).integers(-1, 3, size=len(a_G))
    wanted = []
    for cluster in range(a_G.max() + 1):
        own = set(np.flatnonzero(a_G == cluster))
        rivals = [set(np.flatnonzero(b_G == rival)) for rival in range(3)]
        wanted.append(max(len(own & rival) / len(own | rival) for rival in rivals))
    assert best_jaccard(a_G, b_G).tolist() == pytest.approx(wanted)


def test_the_interval_ignores_samples_that_are_nan() -> None:
    assert mean_and_interval(np.array([0.5, np.nan, 0.5])) == (0.5, 0.5, 0.5)
    assert np.isnan(mean_and_interval(np.array([np.nan]))).all()


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"method": "kmeans"}, "neurons.method: got 'kmeans', must be one of hdbscan, agglom"),
        ({"min_cluster": 1}, "neurons.min_cluster: got 1, must be at least 2."),
        ({"components": 1}, "neurons.components: got 1, must be at least 2."),
        ({"seed": -1}, "neurons.seed: got -1, must be at least 0."),
        (
            {"method": "agglomerative"},
            "neurons.clusters: is not given, but agglomerative needs it. Give a number, or use",
        ),
        ({"method": "agglomerative", "clusters": 1}, "neurons.clusters: got 1, must be at least 2"),
        (
            {"clusters": 4},
            "neurons.clusters: got 4, but hdbscan chooses the number of clusters. Leave it out",
        ),
    ],
)
def test_invalid_settings_raise(values: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{text}"):
        ClusteringConfig(**values)
