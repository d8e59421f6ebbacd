"""Rows of a trajectory: what a metric returns for one checkpoint.

Shapes: N datum (or sequence).
"""

from typing import NamedTuple

import numpy as np

WHOLE = ""
"""Component of a metric of the whole model."""


class Row(NamedTuple):
    """One value of one metric."""

    metric: str
    component: str
    """Part of the model: "" for the whole, ``layer 0``, ``L0H2`` (head 2 of layer 0), a unit."""
    value: float
    n: int
    """Number of independent samples (datums or sequences; entries for weights)."""
    standard_error: float = float("nan")
    """Standard error of the value as a mean over the samples; NaN if it is no mean."""
    null: float = float("nan")
    """Value to compare with, as the metric's docstring says; NaN if there is none."""


def mean_row(metric: str, component: str, value_N: np.ndarray, null: float = float("nan")) -> Row:
    """Return a mean over datums with its standard error, s / √n."""
    n = len(value_N)
    error = float(np.std(value_N, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Row(metric, component, float(np.mean(value_N)), n, error, null)


def head_name(layer: int, head: int) -> str:
    """Return the name of an attention head, as in ``L0H2``."""
    return f"L{layer}H{head}"


def state_name(index: int) -> str:
    """Return the name of a residual state: ``embedding``, then ``layer 0``, ``layer 1``, …"""
    return f"layer {index - 1}" if index else "embedding"
