"""How much do outcomes vary over runs, which runs are outliers, and are there two kinds?

After "PolyPythias: Stability and Outliers across Fifty Language Model Pre-Training Runs" (outlier
runs) and "Distributional Scaling Laws for Emergent Capabilities" (bimodal outcomes).

Shapes: R run, D draw.
"""

from typing import Any

import numpy as np
import pandas as pd

from analysis.transitions.runs.student import student_interval
from analysis.transitions.runs.tables import FINAL, HALF, OUTCOMES, OUTLIERS, STABILITY
from analysis.transitions.shape.segments import needs
from analysis.transitions.shape.shapes import ALPHA, adjusted

FEWEST_FOR_OUTLIERS = 5
FEWEST_FOR_TWO_KINDS = 8
DRAWS = 2000
"""Samples of Gaussian runs, for the null of the largest robust z."""
KEYS = ["group", "metric", "component", "quantity"]


def quantities(milestones: pd.DataFrame, groups: dict[str, str]) -> pd.DataFrame:
    """Return one row per run, curve and quantity: ``KEYS``, run and value; NaN is left out."""
    ends = milestones.assign(quantity=FINAL, value=milestones["end"])
    halves = milestones.assign(quantity=HALF, value=np.log1p(milestones["half_step"]))
    both = pd.concat([ends, halves], ignore_index=True)
    both["group"] = both["run"].map(groups)
    return both[np.isfinite(both["value"].astype(np.float64))][[*KEYS, "run", "value"]]


def find_stability(values: pd.DataFrame) -> pd.DataFrame:
    """Return ``STABILITY`` of quantities that two runs or more have."""
    rows: list[dict[str, Any]] = []
    for key, own in values.groupby(KEYS, sort=False):
        value_R = own["value"].to_numpy(np.float64)
        if len(value_R) < 2:
            continue
        low, high = student_interval(value_R)
        row = dict(zip(KEYS, key, strict=True)) | {"runs": len(value_R), "low": low, "high": high}
        rows.append(row | {"mean": value_R.mean(), "deviation": value_R.std(ddof=1)})
    return pd.DataFrame(rows, columns=pd.Index(STABILITY.names))


def robust_z(value_DR: np.ndarray) -> np.ndarray:
    """Return 0.6745 (value − median) / median absolute deviation, over the last axis.

    After Iglewicz and Hoaglin (1993). Infinite for a value that differs where half of the runs
    agree.
    """
    away_DR = value_DR - np.median(value_DR, -1, keepdims=True)
    spread_D1 = np.median(np.abs(away_DR), -1, keepdims=True)
    far_DR = np.where(away_DR == 0, 0.0, np.copysign(np.inf, away_DR))
    return np.where(spread_D1 > 0, 0.6745 * away_DR / np.where(spread_D1 > 0, spread_D1, 1), far_DR)


def find_outliers(values: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return ``OUTLIERS``: every run of each quantity that ``FEWEST_FOR_OUTLIERS`` runs have.

    p is the share of samples of as many Gaussian runs in which any has so large a robust z, so one
    quantity names an outlier among Gaussian runs with probability 5 %; q covers all quantities, by
    the p of their most extreme runs.
    """
    rng = np.random.default_rng([seed, 5])
    nulls: dict[int, np.ndarray] = {}
    parts: list[pd.DataFrame] = []
    for _, own in values.groupby(KEYS, sort=False):
        value_R = own["value"].to_numpy(np.float64)
        count = len(value_R)
        if count < FEWEST_FOR_OUTLIERS:
            continue
        if count not in nulls:
            nulls[count] = np.abs(robust_z(rng.standard_normal((DRAWS, count)))).max(1)
        z_R = robust_z(value_R)
        p_R = np.array([(1 + (nulls[count] >= abs(z)).sum()) / (1 + DRAWS) for z in z_R])
        parts.append(own.assign(median=np.median(value_R), robust_z=z_R, p=p_R))
    if not parts:
        return OUTLIERS.empty_table().to_pandas()
    q_of_quantity = adjusted(np.array([part["p"].min() for part in parts]))
    parts = [
        part.assign(q=np.maximum(part["p"], q))
        for part, q in zip(parts, q_of_quantity, strict=True)
    ]
    table = pd.concat(parts).sort_values(["q", "p"], kind="stable", ignore_index=True)
    return table.assign(outlier=table["q"] <= ALPHA)[OUTLIERS.names]


def find_outcomes(values: pd.DataFrame) -> pd.DataFrame:
    """Return ``OUTCOMES``: are there two kinds? For quantities of ``FEWEST_FOR_TWO_KINDS`` runs.

    The dip test (Hartigan and Hartigan 1985) asks whether one mode is enough; a mixture of two
    Gaussians says where two would be. Raises ``ConfigError`` if diptest is not installed.
    """
    rows: list[dict[str, Any]] = []
    for key, own in values.groupby(KEYS, sort=False):
        value_R = own["value"].to_numpy(np.float64)
        if len(value_R) >= FEWEST_FOR_TWO_KINDS and np.ptp(value_R) > 0:
            row = dict(zip(KEYS, key, strict=True)) | {"runs": len(value_R)}
            rows.append(row | two_kinds(value_R))
    table = pd.DataFrame(rows, columns=pd.Index(OUTCOMES.names))
    table["q"] = adjusted(table["p"].to_numpy(np.float64))
    table["two_kinds"] = (table["q"] <= ALPHA) & (table["bic_gain"] > 0)
    return table


def two_kinds(value_R: np.ndarray) -> dict[str, float]:
    """Return the dip, its p, and the mixture's gain in BIC, means and share."""
    try:
        from diptest import diptest
    except ImportError as error:
        raise needs("diptest") from error
    from sklearn.mixture import GaussianMixture

    dip, p = diptest(value_R)
    z_R1 = ((value_R - value_R.mean()) / value_R.std())[:, None]
    one, two = (
        GaussianMixture(kinds, reg_covar=1e-3, n_init=5, random_state=0).fit(z_R1)
        for kinds in (1, 2)
    )
    low, high = np.argsort(two.means_[:, 0])
    means = value_R.mean() + value_R.std() * two.means_[:, 0]
    return {
        "dip": float(dip),
        "p": float(p),
        "bic_gain": float(one.bic(z_R1) - two.bic(z_R1)),
        "low_mean": float(means[low]),
        "high_mean": float(means[high]),
        "high_share": float(two.weights_[high]),
    }
