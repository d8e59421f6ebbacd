"""What retraining without random datums says about unrolled influence on a query."""

import pandas as pd

from analysis.influence.confirmation import departure

NO_BETTER = 1.0
"""Departure of a prediction that nothing changes."""
NOT_CONFIRMED = (
    "NOT CONFIRMED: predicting no change at all is no worse. Make no causal claim of it."
)
NOT_CHECKED = "Not confirmed by retraining: the horizon alone proves nothing. Use --checks, or lds."
"""The derivative of one query can stay small in training that is unstable in other directions."""


def check_lines(checks: pd.DataFrame) -> list[str]:
    """Return what the retrainings of one query's ``CHECKS`` say about the prediction."""
    if checks.empty:
        return [NOT_CHECKED]
    changed, predicted = (
        ", ".join(f"{value:+.3g}" for value in checks[column]) for column in ("change", "predicted")
    )
    left_out = " and ".join(dict.fromkeys(str(count) for count in checks["left_out"]))
    off = departure(checks["predicted"].to_numpy(), checks["change"].to_numpy())
    line = (
        f"Check: retraining without {left_out} random datums changed it by {changed}; "
        f"predicted {predicted}. Off by {off:.0%} of the change."
    )
    return [line, *([] if off < NO_BETTER else [NOT_CONFIRMED])]
