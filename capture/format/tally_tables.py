"""Tallies as Parquet: one table per unit, kind of token and window, with two columns per neuron.

A token is one row, so that a neuron or a token can be read without the rest. The folder names let
pandas, DuckDB and Arrow read ``unit`` and ``by`` from the path::

    pandas.read_parquet(
        "RUN/tallies",
        columns=["token_id", "window", "ablation_estimate_96"],
        filters=[("unit", "==", "layers.2.linear2.weight"), ("by", "==", "target")],
    )

Shapes: V vocabulary, I neuron, R token that occurs.
"""

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from capture.shards import encoding as shards
from capture.shards.schema import tally_schema
from capture.shifts.tallies import BYS, By, TallySums

KEY = re.compile(r"tallies/unit=([^/]+)/by=(target|input)/window-(\d{4,9})\.parquet")
TOKENS_PER_GROUP = 2048
SIGNIFICANT_BITS = 7
"""Precision of stored tallies. Rounding the float32 sums changes them by at most 0.8 %, 2^-7."""


def key_of(unit: str, by: By, window: int) -> str:
    """Return the key of a table."""
    return f"tallies/unit={unit}/by={by}/window-{window:04d}.parquet"


def parse_key(key: str) -> tuple[str, By, int] | None:
    """Return unit, kind of token and window of the table with this key; None for other keys."""
    if not (found := KEY.fullmatch(key)):
        return None
    unit, by, window = found[1], BYS[BYS.index(found[2])], int(found[3])
    return (unit, by, window) if key_of(unit, by, window) == key else None


def encode_window(sums: TallySums, window: int) -> Iterator[tuple[str, int, memoryview]]:
    """Yield key, number of rows and bytes of every table of a window."""
    for by in BYS:
        for unit in sums.widths:
            rows = tally_table(sums, by, unit, window)
            data = shards.encode(
                rows, rows_per_group=TOKENS_PER_GROUP, statistics=["window", "token_id", "count"]
            )
            yield key_of(unit, by, window), rows.num_rows, data


def tally_table(sums: TallySums, by: By, unit: str, window: int) -> pa.Table:
    """Return a table with one row per token that occurs in the window, ascending by token.

    This function uses NumPy and not torch, because it runs beside training. A second thread that
    computes with torch starts OpenMP threads of its own. There are then more threads than cores,
    and the training thread's OpenMP team sleeps between operations for the rest of the run.
    """
    count_V = sums.count_V[by].numpy()
    token_R = count_V.nonzero()[0]
    norm_RI, estimate_RI = (round_to_bits(values.numpy()[token_R]) for values in sums.of(by, unit))
    columns = [
        np.full(len(token_R), window),
        token_R,
        count_V[token_R],
        *np.ascontiguousarray(norm_RI.T),
        *np.ascontiguousarray(estimate_RI.T),
    ]
    schema = tally_schema(sums.widths[unit])
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def round_to_bits(values: np.ndarray) -> np.ndarray:
    """Round to ``SIGNIFICANT_BITS`` bits, ties to even. The file takes a third of the bytes."""
    bits = values.view(np.uint32)
    dropped = 24 - SIGNIFICANT_BITS
    # Half a unit of the last kept bit, less one, plus that bit itself: ties go to even.
    half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
    return ((bits + half) >> dropped << dropped).view(np.float32)
