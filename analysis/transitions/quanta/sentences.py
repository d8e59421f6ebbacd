"""Say in sentences which clusters were learned when, and how much of all loss fell suddenly."""

import numpy as np
import pandas as pd

from analysis.measures.permutation import p_value
from analysis.transitions.quanta.tables import GRADIENTS, LOSS_CURVES, Quanta
from analysis.transitions.sentences import plural
from analysis.transitions.tables import GRADUAL, STEEP, SUDDEN, UNRESOLVED

MOST_NAMED = 8
"""Clusters that the text names."""
SHUFFLED = {
    GRADIENTS: "shuffled gradients",
    LOSS_CURVES: "loss curves whose changes are shuffled",
}
TIMED = (SUDDEN, STEEP, GRADUAL, UNRESOLVED)


def summarise(found: Quanta) -> list[str]:
    """Return the report, one sentence or a few in each line."""
    lines = list(found.notes)
    for kind in (GRADIENTS, LOSS_CURVES):
        own = found.clusters[found.clusters["kind"] == kind]
        if len(own):
            lines += [share_line(found.falls, kind), *together(found.falls, kind)]
            lines += [cluster_line(row) for row in foremost(own).to_dict("records")]
    lines.append(
        "A share counts the fall inside sudden windows alone. Clusters depend on their number: "
        "ask again with others (--clusters)."
    )
    return lines


def foremost(own: pd.DataFrame) -> pd.DataFrame:
    """Return the clusters whose loss changes, the sudden ones first, then the earliest."""
    timed = own[own["verdict"].isin(TIMED)]
    order = timed.assign(later=timed["verdict"] != SUDDEN).sort_values(["later", "half_step"])
    return order.head(MOST_NAMED)


def share_line(falls: pd.DataFrame, kind: str) -> str:
    """Say which share of all fall is sudden, beside the shuffled ones."""
    own = falls[falls["kind"] == kind]
    real, null = own[own["draw"] < 0].iloc[0], own[own["draw"] >= 0]["sudden_share"]
    start = f"Clusters by {kind}: "
    if np.isnan(real["sudden_share"]):
        return f"{start}the loss of these positions does not fall."
    count, p = int(real["sudden_clusters"]), p_value(real["sudden_share"], null)
    return (
        f"{start}{real['sudden_share']:.0%} of the fall of all loss is sudden, in {count} "
        f"{plural('cluster', count)}; with {SHUFFLED[kind]} {null.mean():.0%} on average and at "
        f"most {null.max():.0%} ({len(null)} draws, p = {p:.3f})."
    )


def together(falls: pd.DataFrame, kind: str) -> list[str]:
    """Say whether positions with like gradients also learn alike; nothing of loss curves, whose
    clusters are made of that."""
    own = falls[falls["kind"] == kind]
    real, null = own[own["draw"] < 0].iloc[0], own[own["draw"] >= 0]
    if kind != GRADIENTS or np.isnan(real["explained"]):
        return []
    return [
        f"Gradients have a mean cosine of {real['cosine']:.2f} with the others of their cluster "
        f"(shuffled {null['cosine'].mean():.2f}). Clusters explain {real['explained']:.0%} of the "
        f"variance of the positions' loss curves (shuffled {null['explained'].mean():.0%}, "
        f"p = {p_value(real['explained'], null['explained']):.3f})."
    ]


def cluster_line(row: dict) -> str:
    """Say when the loss of a cluster changed, from where to where, and what it predicts.

    Its fastest change may be a rise although the loss falls in all, or the other way round.
    """
    steps = f"95 % interval {row['half_low']:,.0f} to {row['half_high']:,.0f}"
    moves = "falls" if row["fallen"] > 0 else "rises"
    return (
        f"{row['kind']} cluster {row['cluster']} ({row['positions']} positions; {row['tokens']}): "
        f"{row['verdict']}, loss {row['first_loss']:.2f} to {row['last_loss']:.2f} nats, half of "
        f"the change at step {row['half_step']:,.0f} ({steps}). It {moves} fastest from step "
        f"{row['window_first']:,.0f} to {row['window_end']:,.0f}, by {abs(row['fallen']):.2f} "
        f"nats; {row['share']:.0%} of its range while the step doubles (q = {row['q']:.3f})."
    )
