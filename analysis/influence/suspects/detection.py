"""How well a ranking of datums finds those that were planted.

Shapes: D datum.
"""

from dataclasses import dataclass

import numpy as np

from analysis.measures.ranking import auc, precision

PRECISE = 0.95
"""Precision at which the recall is reported."""


@dataclass(frozen=True)
class Detection:
    """Measures of a ranking, highest score first."""

    planted: int
    """Datums to be found."""
    datums: int
    auc: float
    """Probability that a planted datum ranks above another one; 0.5 is chance."""
    precision: float
    """Share of planted datums among as many first ones as were planted; equals the recall there.
    Chance gives planted / datums."""
    average_precision: float
    """Mean, over planted datums, of the precision down to each; chance gives about that share."""
    precise_recall: float
    """Largest share of the planted datums that a list with a precision of 95 % or more finds."""


def detect(score_D: np.ndarray, planted_D: np.ndarray) -> Detection:
    """Return the measures; ties count by expectation for auc and precision.

    For the other two, tied datums come with those not planted first, so that ties never help.
    """
    count = int(planted_D.sum())
    order_D = np.lexsort((planted_D, -score_D))
    hit_D = planted_D[order_D].astype(np.float64)
    found_D = hit_D.cumsum()
    precision_D = found_D / np.arange(1, len(hit_D) + 1)
    nothing = float("nan")
    return Detection(
        planted=count,
        datums=len(score_D),
        auc=auc(score_D, planted_D),
        precision=precision(score_D, planted_D, count) if count else nothing,
        average_precision=float(precision_D @ hit_D / count) if count else nothing,
        precise_recall=(
            float(found_D[precision_D >= PRECISE].max(initial=0) / count) if count else nothing
        ),
    )
