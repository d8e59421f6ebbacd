"""The three tables that ``neurons`` writes into a run.

Shapes: G neuron, B bootstrap sample, C cluster.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs.tables import concat_frames
from analysis.neurons.clustering import Clusters
from analysis.neurons.stability import Stability, mean_and_interval
from analysis.neurons.topics import Topics

NEURONS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # column of the unit
        pa.field("cluster", pa.int32()),  # from 0, the largest first; -1 none
        pa.field("membership", pa.float64()),  # strength of membership, 0 to 1
        pa.field("x", pa.float64()),  # position on the map, without unit
        pa.field("y", pa.float64()),
        pa.field("rows", pa.int64()),  # outlier rows of all its weights
        pa.field("topics", pa.int32()),  # groups of similar own tokens; > 1: polysemantic
        pa.field(
            "topic_tokens", pa.list_(pa.list_(pa.string()))
        ),  # tokens of each topic, strongest first
    ]
)
"""One row per neuron with enough outlier rows, in the order of units and columns."""

CLUSTERS = pa.schema(
    [
        pa.field("cluster", pa.int32()),
        pa.field("size", pa.int32()),  # number of neurons
        pa.field("stability", pa.float64()),  # mean Jaccard over bootstrap samples, 0 to 1
        pa.field("low", pa.float64()),  # 95 % interval over samples: low to high
        pa.field("high", pa.float64()),
        pa.field(
            "tokens", pa.list_(pa.string())
        ),  # own tokens of its neurons more often than of others
        pa.field("units", pa.list_(pa.string())),  # units of its neurons, most frequent first
        pa.field("rows", pa.int64()),  # outlier rows of its neurons
    ]
)
"""One row per cluster, largest first."""

STABILITY = pa.schema(
    [
        pa.field("method", pa.string()),
        pa.field("weight", pa.string()),  # count for a neuron and datum: rows or |shift|
        pa.field("tokens_weight", pa.float64()),  # weight of the tallies' token profiles, 0 to 1
        pa.field("components", pa.int32()),
        pa.field("min_cluster", pa.int32()),
        pa.field("seed", pa.int64()),
        pa.field("bootstraps", pa.int32()),
        pa.field("neurons", pa.int32()),  # with enough outlier rows
        pa.field("left_out", pa.int32()),  # neurons with too few outlier rows
        pa.field("clusters", pa.int32()),
        pa.field("clustered", pa.float64()),  # share of neurons in a cluster
        pa.field("agreement", pa.float64()),  # mean adjusted Rand index; NaN without clusters
        pa.field("low", pa.float64()),  # 95 % interval over samples: low to high
        pa.field("high", pa.float64()),
        pa.field("polysemantic", pa.int32()),  # neurons with several topics
        pa.field("polysemantic_by_chance", pa.int32()),  # the same with shuffled own tokens (null)
    ]
)
"""One row: the settings, and measures of the whole clustering."""

TABLES = {"neurons": NEURONS, "clusters": CLUSTERS, "stability": STABILITY}


def neuron_table(
    neurons: pd.DataFrame,
    clusters: Clusters,
    position_G2: np.ndarray,
    topics: list[Topics],
    names: np.ndarray,
) -> pd.DataFrame:
    """Return ``NEURONS``."""
    tokens = [[names[topic].tolist() for topic in own] for own in topics]
    found = neurons.assign(
        cluster=clusters.label_G,
        membership=clusters.membership_G,
        x=position_G2[:, 0],
        y=position_G2[:, 1],
        topics=[len(own) for own in topics],
        topic_tokens=pd.Series(tokens, neurons.index, object),
    )
    return concat_frames([found], NEURONS)


def cluster_table(
    neurons: pd.DataFrame,
    clusters: Clusters,
    stability: Stability,
    labels: list[list[int]],
    names: np.ndarray,
) -> pd.DataFrame:
    """Return ``CLUSTERS``."""
    rows = []
    for cluster in range(clusters.num_clusters):
        own = neurons[clusters.label_G == cluster]
        mean, low, high = mean_and_interval(stability.jaccard_BC[:, cluster])
        units = own["unit"].value_counts(sort=True).index.tolist()
        scores = {"stability": mean, "low": low, "high": high}
        texts = {"tokens": names[labels[cluster]].tolist(), "units": units}
        sizes = {"size": len(own), "rows": own["rows"].sum()}
        rows.append({"cluster": cluster, **sizes, **scores, **texts})
    return concat_frames([pd.DataFrame(rows, columns=CLUSTERS.names)], CLUSTERS)


def stability_table(
    settings: Mapping[str, object],
    clusters: Clusters,
    stability: Stability,
    topics: list[Topics],
    shuffled: list[Topics],
) -> pd.DataFrame:
    """Return ``STABILITY``; ``settings`` are its first columns, up to ``left_out``."""
    mean, low, high = mean_and_interval(stability.agreement_B)
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
        "polysemantic_by_chance": sum(len(own) > 1 for own in shuffled),
    }
    return concat_frames([pd.DataFrame([row])], STABILITY)
