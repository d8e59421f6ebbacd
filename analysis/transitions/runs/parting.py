"""At which step do two runs part, and on which datums?

Compared are initial weights, the datums of each step by slot, and the loss of each step as recorded
(float32). The first difference of any is where the runs part.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from analysis.run.run import Run
from analysis.transitions.runs.tables import PARTING

COLUMNS = ["step", "loss", "datums"]


def find_parting(runs: Sequence[Run]) -> pd.DataFrame:
    """Return ``PARTING`` of the first run and each other."""
    first = runs[0].steps()[COLUMNS]
    rows = [part(runs[0], other, first, other.steps()[COLUMNS]) for other in runs[1:]]
    return pd.DataFrame(rows, columns=pd.Index(PARTING.names))


def part(run: Run, other: Run, own: pd.DataFrame, others: pd.DataFrame) -> dict[str, Any]:
    """Return the row of one pair."""
    both = own.merge(others, on="step", suffixes=("", "_other")).sort_values("step")
    same = [list(a) == list(b) for a, b in zip(both["datums"], both["datums_other"], strict=True)]
    order_step = first_step(both, [not each for each in same])
    loss_step = first_step(both, (both["loss"] != both["loss_other"]).tolist())
    shapes, weights = same_start(run, other)
    found = [step for step in (order_step, loss_step) if step >= 0]
    step = 0 if not weights else min(found, default=-1)
    at = both[both["step"] == step]
    return {
        "run": run.uri,
        "other": other.uri,
        "same_shapes": shapes,
        "same_weights": weights,
        "order_step": order_step,
        "loss_step": loss_step,
        "step": step,
        "datums": list(at["datums"].item()) if len(at) else [],
        "other_datums": list(at["datums_other"].item()) if len(at) else [],
    }


def first_step(both: pd.DataFrame, differs: list[bool]) -> int:
    """Return the first common step that differs, -1 if none does."""
    found = both["step"][differs]
    return int(found.iloc[0]) if len(found) else -1


def same_start(run: Run, other: Run) -> tuple[bool, bool]:
    """Return whether two runs have parameters of the same names and shapes, and whether these start
    from the same weights, bit for bit."""
    a, b = run.checkpoint(0), other.checkpoint(0)
    shapes, others = (
        {name: c[name].shape for name in c if not name.startswith("optimizer/")} for c in (a, b)
    )
    same = shapes == others
    return same, same and all(torch.equal(a[name], b[name]) for name in shapes)
