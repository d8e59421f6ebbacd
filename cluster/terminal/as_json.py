"""What a command prints with ``--json``: one JSON document on standard output, and nothing else.

A NaN becomes null, an infinite number a string, as JSON has neither. All characters are ASCII.
"""

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd


def print_as_json(found: Any) -> None:
    """Print an answer: an object of tables (name → list of rows) for an analysis."""
    print(json.dumps(plain(found), indent=1, allow_nan=False))


def plain(value: Any) -> Any:
    """Return a value as JSON has it; a table is a list of rows, each column name → value."""
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.to_dict("records")]
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return None if value is pd.NA or value is pd.NaT else str(value)
