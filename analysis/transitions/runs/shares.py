"""How does the share of one kind of outcome change along a scale or a mix of data?

Where outcomes are of two kinds, a metric's mean over runs can change smoothly while no single run
does, and a sudden change of the mean can be a smooth change of the share of runs that succeed.
After "Distributional Scaling Laws for Emergent Capabilities". The kinds are told apart by one
boundary for all groups: midway between the two means of the mixture in the group whose dip test is
the most significant.

Shapes: R run, G group, D draw.
"""

from typing import Any

import numpy as np
import pandas as pd

from analysis.measures.permutation import p_value
from analysis.measures.shares import wilson
from analysis.transitions.runs.stability import KEYS
from analysis.transitions.runs.tables import SHARES
from analysis.transitions.shape.shapes import adjusted

DRAWS = 2000
"""Permutations of the runs among groups."""
CURVE_KEYS = [name for name in KEYS if name != "group"]


def find_shares(values: pd.DataFrame, outcomes: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return ``SHARES`` of the quantities that have two kinds of outcome in a group or more.

    ``values``: as from ``quantities``; ``outcomes``: as from ``find_outcomes``. p is the share of
    permutations of runs among groups in which the shares differ as much (chi-squared).
    """
    parts: list[pd.DataFrame] = []
    rng = np.random.default_rng([seed, 7])
    found = outcomes[outcomes["two_kinds"]].sort_values("p", kind="stable")
    for key, own in found.groupby(CURVE_KEYS, sort=False):
        best = own.iloc[0]
        runs = values[(values[CURVE_KEYS] == list(key)).all(axis=1)]
        if runs["group"].nunique() < 2:
            continue
        boundary = (best["low_mean"] + best["high_mean"]) / 2
        upper_R = runs["value"].to_numpy(np.float64) > boundary
        part = shares_of(upper_R, runs["group"].to_numpy(object))
        row: dict[str, Any] = dict(zip(CURVE_KEYS, key, strict=True))
        row |= {"boundary": boundary, "p": p_of_shares(upper_R, runs["group"].to_numpy(), rng)}
        parts.append(part.assign(**row))
    if not parts:
        return SHARES.empty_table().to_pandas()
    q_of_quantity = adjusted(np.array([part["p"].iloc[0] for part in parts]))
    parts = [part.assign(q=q) for part, q in zip(parts, q_of_quantity, strict=True)]
    return pd.concat(parts, ignore_index=True)[SHARES.names]


def shares_of(upper_R: np.ndarray, group_R: np.ndarray) -> pd.DataFrame:
    """Return group, runs, and the share of the upper kind with Wilson's 95 % interval."""
    rows = []
    for group in dict.fromkeys(group_R):
        own = upper_R[group_R == group]
        low, high = wilson(own.sum(), len(own))
        rows.append((group, len(own), float(own.mean()), float(low), float(high)))
    return pd.DataFrame(rows, columns=pd.Index(["group", "runs", "upper_share", "low", "high"]))


def p_of_shares(upper_R: np.ndarray, group_R: np.ndarray, rng: np.random.Generator) -> float:
    """Return the permutation p of the hypothesis that all groups have the same share."""
    _, index_R = np.unique(group_R.astype(str), return_inverse=True)
    count_G = np.bincount(index_R)

    def spread(upper_DR: np.ndarray) -> np.ndarray:
        """Σ n (share − share of all)², which orders draws as chi-squared does."""
        belongs_RG = index_R[:, None] == np.arange(len(count_G))
        share_DG = upper_DR.astype(float) @ belongs_RG / count_G
        return (count_G * (share_DG - upper_R.mean()) ** 2).sum(-1)

    found = spread(upper_R[None])[0]
    return p_value(found, spread(np.stack([rng.permutation(upper_R) for _ in range(DRAWS)])))
