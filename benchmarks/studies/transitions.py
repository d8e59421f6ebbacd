"""What ``ontogeny transitions`` says of curves, as JSON and as cells of tables."""

import math
from typing import Any

import pandas as pd

from benchmarks.studies.study import between, step_of

COLUMNS = ("verdict", "half_step", "half_low", "half_high", "share", "p_smooth", "p_walk", "q")
Verdicts = dict[str, dict[str, Any]]
"""Metric, or METRIC COMPONENT → the columns above; None stands for a number that is not known."""


def verdicts(curves: pd.DataFrame) -> Verdicts:
    """Return the verdict on each curve of a table ``curves``."""
    found = {}
    for row in curves.to_dict("records"):
        name = f"{row['metric']} {row['component']}".strip()
        found[name] = {column: known(row[column]) for column in COLUMNS}
    return found


def known(value: Any) -> Any:
    """Return a value as JSON has it: None in place of NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def half_cell(found: dict[str, Any] | None) -> str:
    """Return verdict, step of half the change and its interval."""
    if not found:
        return "not measured"
    if found["half_step"] is None:
        return str(found["verdict"])
    interval = ""
    if found["half_low"] is not None and found["half_high"] is not None:
        interval = f" ({between(found['half_low'], found['half_high'])})"
    return f"{found['verdict']}, {step_of(found['half_step'])}{interval}"


def lead_rows(warnings: pd.DataFrame) -> dict[str, list[float | None]]:
    """Return by how many steps each curve leads the target: mean and 95 % interval."""
    found = {}
    for row in warnings.to_dict("records"):
        name = f"{row['metric']} {row['component']}".strip()
        found[name] = [known(row[key]) for key in ("lead_steps", "lead_low", "lead_high")]
    return found


def lead_cell(lead: list[float | None] | None) -> str:
    if not lead or lead[0] is None:
        return "–"
    interval = "" if lead[1] is None or lead[2] is None else f" ({between(lead[1], lead[2])})"
    return f"{step_of(lead[0])}{interval}"
