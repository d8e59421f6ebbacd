"""Rows of the tables of quanta.

Shapes: K checkpoint, M position, C cluster.
"""

from collections import Counter

import numpy as np
import pandas as pd

from analysis.trajectory.observed.text import Text
from analysis.transitions.quanta import clusters
from analysis.transitions.quanta.falls import Falls
from analysis.transitions.quanta.positions import Chosen
from analysis.transitions.quanta.tables import CHANGES, CLUSTERS, GRADIENTS, LOSS_CURVES

CONTEXT = 8
"""Tokens of the context that the table of positions holds."""
NAMED = 5
"""Targets that a cluster's row names."""


def fall_row(
    kind: str,
    draw: int,
    found: Falls,
    loss_KM: np.ndarray,
    cluster_M: np.ndarray,
    cosine_MM: np.ndarray,
) -> dict[str, object]:
    """Return a row of ``FALLS``."""
    return {
        "kind": kind,
        "draw": draw,
        "sudden_share": found.sudden_share,
        "sudden_clusters": int(found.sudden_C.sum()),
        "cosine": clusters.mean_within(cosine_MM, cluster_M),
        "explained": clusters.explained(loss_KM, cluster_M),
    }


def cluster_rows(
    kind: str,
    found: Falls,
    cosine_C: np.ndarray,
    sizes: list[tuple[int, float]],
    cluster_M: np.ndarray,
    chosen: Chosen,
    text: Text,
) -> pd.DataFrame:
    """Return ``CLUSTERS`` of one kind."""
    table = found.shapes.curves.assign(
        kind=kind,
        cluster=np.arange(len(found.count_C)),
        positions=found.count_C,
        cosine=cosine_C,
        null_cosine=[nearest_in_size(int(count), sizes) for count in found.count_C],
        fallen=found.fallen_C,
        first_loss=found.mean_KC[0],
        last_loss=found.mean_KC[-1],
        tokens=[frequent(chosen.target_M[cluster_M == c], text) for c in range(len(found.count_C))],
    )
    return table[CLUSTERS.names]


def nearest_in_size(count: int, sizes: list[tuple[int, float]]) -> float:
    """Return the mean cosine of the shuffled clusters whose size is nearest to ``count``."""
    known = [(abs(size - count), value) for size, value in sizes if np.isfinite(value)]
    if not known:
        return float("nan")
    least = min(apart for apart, _ in known)
    return float(np.mean([value for apart, value in known if apart == least]))


def frequent(target_M: np.ndarray, text: Text) -> str:
    """Return the most frequent targets with their numbers, as in ``the 12, of 5``."""
    most = Counter(target_M.tolist()).most_common(NAMED)
    return ", ".join(f"{token_name(text, token)} {count}" for token, count in most)


def token_name(text: Text, token: int) -> str:
    return text.tokens[token] if text.tokens else str(token)


def curve_rows(kind: str, found: Falls) -> pd.DataFrame:
    """Return ``CURVES`` of one kind."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "kind": kind,
                    "cluster": c,
                    "step": found.step_K,
                    "loss": found.mean_KC[:, c],
                    "standard_error": found.error_KC[:, c],
                }
            )
            for c in range(len(found.count_C))
        ]
    )


def change_rows(kind: str, found: Falls) -> pd.DataFrame:
    """Return ``CHANGES`` of one kind."""
    table = found.shapes.changes
    number = table["component"].astype(str).str.removeprefix("cluster ").astype(np.int64)
    return table.assign(kind=kind, cluster=number)[CHANGES.names]


def position_rows(
    chosen: Chosen, text: Text, own: dict[str, np.ndarray], loss_KM: np.ndarray
) -> pd.DataFrame:
    """Return ``POSITIONS``."""
    contexts = [
        " ".join(token_name(text, t) for t in row_T[max(0, place + 1 - CONTEXT) : place + 1])
        for row_T, place in zip(chosen.windows.token_NT[chosen.row_M], chosen.place_M, strict=True)
    ]
    return pd.DataFrame(
        {
            "datum": chosen.number_N[chosen.row_M],
            "position": chosen.place_M,
            "context": contexts,
            "target": [token_name(text, token) for token in chosen.target_M.tolist()],
            "gradient_cluster": own[GRADIENTS],
            "curve_cluster": own[LOSS_CURVES],
            "first_loss": loss_KM[0],
            "last_loss": loss_KM[-1],
        }
    )
