"""Assert that two runs are equal except for rounding, for example with other numbers of workers."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load

from capture.maintenance.verify import verify
from capture.store import Store

KEYS = ["step", "slot", "unit", "index"]
TABLES = ("steps", "evaluations")
NOISE = [f"layers.{number}.self_attn.in_proj_bias" for number in range(2)]
"""The gradient of a key's bias is rounding only, from which Adam makes a full-size update."""
STORED = 2.0**-6
"""Relative tolerance of tallies, which are stored rounded to few bits."""


def same_run(wanted: str, found: str, size: int) -> None:
    """Assert that all tables and weights agree; ``size``: workers that stored ``found``."""
    assert verify(Store(found)) == []
    assert not Store(found).exists("lease.json")
    for table in TABLES:
        same_tables(read_all(wanted, table), read_all(found, table))
    same_tables(read_all(wanted, "tallies"), read_all(found, "tallies"), STORED)
    ours, theirs = read_all(wanted, "outliers"), read_all(found, "outliers")
    same_tables(by_key(ours), by_key(theirs))
    shards = Store(found).keys("outliers")
    assert {key.split("-")[-1] for key in shards} <= {
        f"w{rank:02d}.parquet" for rank in range(size)
    }
    same_weights(wanted, found)


def same_rounded_run(wanted: str, found: str) -> None:
    """Assert what holds under bfloat16: the first losses agree, and all steps were audited.

    Later losses differ between processors: rounding to bfloat16 amplifies the order of sums.
    """
    ours, theirs = read_all(wanted, "steps"), read_all(found, "steps")
    assert len(theirs) == len(ours), "every step was audited, or training would have stopped"
    assert_allclose(theirs["loss"][:2], ours["loss"][:2], rtol=2.0**-8)


def by_key(rows: pd.DataFrame) -> pd.DataFrame:
    """Return outlier rows in an order that does not depend on the worker that stored them."""
    return rows.sort_values(KEYS) if len(rows) else rows


def read_all(uri: str, folder: str) -> pd.DataFrame:
    """Return the rows of all tables in a folder of the run, in the order of their keys."""
    keys = Store(uri).keys(folder)
    tables = [pq.read_table(f"{uri}/{key}").to_pandas() for key in keys]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def same_tables(wanted: pd.DataFrame, found: pd.DataFrame, rtol: float = 2e-3) -> None:
    """Assert that integers and names are equal and floats close; audit errors are not compared."""
    assert list(wanted.columns) == list(found.columns)
    assert len(wanted) == len(found)
    for name in wanted.columns.drop("audit_error", errors="ignore"):
        ours, theirs = wanted[name].to_numpy(), found[name].to_numpy()
        if np.issubdtype(ours.dtype, np.floating):
            assert_allclose(theirs, ours, rtol=rtol, atol=1e-5, err_msg=name)
        else:
            assert [str(value) for value in theirs] == [str(value) for value in ours], name


def same_weights(wanted: str, found: str) -> None:
    for key in Store(wanted).keys("checkpoints"):
        ours, theirs = load(Store(wanted).get(key)), load(Store(found).get(key))
        for name in ours.keys() - set(NOISE):
            tensor = ours[name]
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4)
