"""What is left in a run about neurons that belong together: three tables.

Shapes: G neuron, B bootstrap sample, C cluster.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs.tables import joined
from analysis.neurons.clustering import Clusters
from analysis.neurons.stability import Stability, spread
from analysis.neurons.topics import Topics

NEURONS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # column of the unit
        pa.field("cluster", pa.int32()),  # from 0, the largest first; -1 none
        pa.field("membership", pa.float64()),  # how firmly it belongs there, 0 to 1
        pa.field("x", pa.float64()),  # place on the map, in no unit; near is alike
        pa.field("y", pa.float64()),
        pa.field("rows", pa.int64()),  # outlier rows of all its weights
        pa.field("topics", pa.int32()),  # groups of alike own tokens; > 1: polysemantic
        pa.field("topic_tokens", pa.list_(pa.list_(pa.string()))),  # of each topic, strongest first
    ]
)
"""One row a neuron with enough rows, in the order of units and columns."""

CLUSTERS = pa.schema(
    [
        pa.field("cluster", pa.int32()),
        pa.field("size", pa.int32()),  # neurons
        pa.field("stability", pa.float64()),  # mean Jaccard over bootstrap samples, 0 to 1
        pa.field("low", pa.float64()),  # 95 % of samples lie between low and high
        pa.field("high", pa.float64()),
        pa.field("tokens", pa.list_(pa.string())),  # that its neurons own more than others do
        pa.field("units", pa.list_(pa.string())),  # of its neurons, most frequent first
        pa.field("rows", pa.int64()),  # outlier rows of its neurons
    ]
)
"""One row a cluster, the largest first."""

STABILITY = pa.schema(
    [
        pa.field("method", pa.string()),
        pa.field("weight", pa.string()),  # what counts for a neuron and datum: rows or |shift|
        pa.field("tokens_weight", pa.float64()),  # of the tallies' token profiles, 0 to 1
        pa.field("components", pa.int32()),
        pa.field("min_cluster", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("bootstraps", pa.int32()),
        pa.field("neurons", pa.int32()),  # with enough rows
        pa.field("left_out", pa.int32()),  # with too few
        pa.field("clusters", pa.int32()),
        pa.field("clustered", pa.float64()),  # share of the neurons that are in a cluster
        pa.field("agreement", pa.float64()),  # mean adjusted Rand index; NaN without clusters
        pa.field("low", pa.float64()),  # 95 % of samples lie between low and high
        pa.field("high", pa.float64()),
        pa.field("polysemantic", pa.int32()),  # neurons with several topics
        pa.field("polysemantic_by_chance", pa.int32()),  # the same, own tokens dealt anew
    ]
)
"""One row: the settings, and the clusters as a whole."""

TABLES = {"neurons": NEURONS, "clusters": CLUSTERS, "stability": STABILITY}


def neuron_table(
    neurons: pd.DataFrame,
    clusters: Clusters,
    place_G2: np.ndarray,
    topics: list[Topics],
    names: np.ndarray,
) -> pd.DataFrame:
    """``NEURONS``"""
    tokens = [[names[topic].tolist() for topic in own] for own in topics]
    found = neurons.assign(
        cluster=clusters.label_G,
        membership=clusters.membership_G,
        x=place_G2[:, 0],
        y=place_G2[:, 1],
        topics=[len(own) for own in topics],
        topic_tokens=pd.Series(tokens, neurons.index, object),
    )
    return joined([found], NEURONS)


def cluster_table(
    neurons: pd.DataFrame,
    clusters: Clusters,
    stability: Stability,
    labels: list[list[int]],
    names: np.ndarray,
) -> pd.DataFrame:
    """``CLUSTERS``"""
    rows = []
    for cluster in range(clusters.num_clusters):
        own = neurons[clusters.label_G == cluster]
        mean, low, high = spread(stability.jaccard_BC[:, cluster])
        units = own["unit"].value_counts(sort=True).index.tolist()
        scores = {"stability": mean, "low": low, "high": high}
        texts = {"tokens": names[labels[cluster]].tolist(), "units": units}
        sizes = {"size": len(own), "rows": own["rows"].sum()}
        rows.append({"cluster": cluster, **sizes, **scores, **texts})
    return joined([pd.DataFrame(rows, columns=CLUSTERS.names)], CLUSTERS)


def stability_table(
    settings: Mapping[str, object],
    clusters: Clusters,
    stability: Stability,
    topics: list[Topics],
    by_chance: list[Topics],
) -> pd.DataFrame:
    """``STABILITY``; the settings are its first columns, to ``left_out``."""
    mean, low, high = spread(stability.agreement_B)
    row = {
        **settings,
        "bootstraps": len(stability.agreement_B),
        "neurons": len(clusters.label_G),
        "clusters": clusters.num_clusters,
        "clustered": float((clusters.label_G >= 0).mean()),
        "agreement": mean,
        "low": low,
        "high": high,
        "polysemantic": sum(len(own) > 1 for own in topics),
        "polysemantic_by_chance": sum(len(own) > 1 for own in by_chance),
    }
    return joined([pd.DataFrame([row])], STABILITY)
