"""Pool parameters to neurons, as in the study: a neuron takes the tokens of its parameters.

Shapes: P captured parameter, G group (parameters, then the rest of each unit).
"""

import numpy as np
import pandas as pd

from analysis.levels import Groups, groups_at, is_mlp
from capture.gradients.layout import Layout

SUMS = ("count", "weight", "expected", "up", "down", "strengthened", "weakened")


def neurons_of(groups: Groups, layout: Layout) -> tuple[Groups | None, np.ndarray]:
    """Return the neurons of a run, and the neuron of each group of parameters.

    The latter is -1 for parameters outside MLP units and for unnamed groups. Returns None for the
    neurons if no MLP unit was captured.
    """
    neuron_G = np.full(groups.num_groups, -1)
    if not any(is_mlp(name, layout) for name in layout.names):
        return None, neuron_G
    neurons = groups_at("neuron", layout, heads=1)
    place_P = np.flatnonzero((groups.group_P >= 0) & (groups.group_P < groups.num_named))
    neuron_G[groups.group_P[place_P]] = neurons.group_P[place_P]
    return neurons, neuron_G


def pooled_tokens(tokens: pd.DataFrame, neuron_G: np.ndarray) -> pd.DataFrame:
    """Return the tokens of each neuron: those of its parameters, with additive columns summed.

    Tokens are ranked by score: Σ log(relative frequency) over the parameters that the token was
    chosen for, in nats. p and q are NaN.
    """
    evidence = np.log(tokens["relative_frequency"])
    own = tokens.assign(group=neuron_G[tokens["group"]], score=evidence)
    named = own[own["group"] >= 0].groupby(["group", "token_id"])
    pooled = named[["score", *SUMS]].sum(min_count=1).reset_index()
    pooled["relative_frequency"] = pooled["weight"] / pooled["expected"]
    order = np.lexsort((pooled["token_id"], -pooled["score"], pooled["group"]))
    pooled = pooled.iloc[order].reset_index(drop=True)
    return pooled.assign(rank=pooled.groupby("group").cumcount(), p=np.nan, q=np.nan)


def pooled_windows(windows: pd.DataFrame, neuron_G: np.ndarray) -> pd.DataFrame:
    """Return weight and expected weight of each neuron's tokens by window."""
    own = windows.assign(group=neuron_G[windows["group"]])
    keys = ["group", "token_id", "window", "first_step", "end_step"]
    found = own[own["group"] >= 0].groupby(keys)[["weight", "expected"]]
    return found.sum(min_count=1).reset_index()
