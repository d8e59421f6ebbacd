"""Select recorded shifts, and return them with the columns of the study's first table.

A query becomes allowed values of each column (``scan.Wanted``), which are checked against what the
run holds.

Shapes: M shift, K wanted value.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.run.names import nearest
from analysis.run.scan import REMEDY, Wanted
from capture.errors import RunError, ShardError, UnitError
from capture.gradients.layout import Layout

Indices = int | np.integer | Sequence[int] | np.ndarray
"""One index or several."""


def wanted_parameters(layout: Layout, unit: str | Sequence[str], index: Indices | None) -> Wanted:
    """Return the condition for parameters; raise ``UnitError`` for one that was not captured."""
    units = [unit] if isinstance(unit, str) else list(unit)
    for name in units:
        if name not in layout.shapes:
            raise UnitError(name, "was not captured", nearest(name, layout.names))
    if index is None:
        return {"unit": sorted(set(units))}
    index_K = whole_numbers("index", index)
    for name in units:
        size = layout.sizes[layout.names.index(name)]
        for found in index_K[(index_K < 0) | (index_K >= size)][:1]:
            shape = " × ".join(map(str, layout.shapes[name]))
            problem = f"does not exist: the unit is {shape}, its indices are 0 to {size - 1}"
            raise UnitError(f"{name}[{found}]", problem)
    return {"unit": sorted(set(units)), "index": index_K.tolist()}


def wanted_steps(uri: str, steps: range, steps_done: int) -> range:
    """Return those of the steps that are recorded; raise ``RunError`` if none is."""
    if not isinstance(steps, range):
        problem = f"steps={steps!r} is not a range"
        raise RunError(uri, problem, "Ask for steps=range(first, end)")
    ascending = steps if steps.step > 0 else steps[::-1]
    recorded = [step for step in range(steps_done) if step in ascending]
    if not recorded:
        problem = f"has steps 0 to {steps_done - 1}, none of {steps}"
        raise RunError(uri, problem)
    return range(recorded[0], recorded[-1] + 1, abs(steps.step))


def wanted_datums(uri: str, datum: Indices, num_datums: int) -> list[int]:
    """Return the condition for datums; raise ``RunError`` for one that the corpus lacks."""
    datum_K = whole_numbers("datum", datum)
    for found in datum_K[(datum_K < 0) | (datum_K >= num_datums)][:1]:
        problem = f"has no datum {found}: its datums are 0 to {num_datums - 1}"
        raise RunError(uri, problem)
    return datum_K.tolist()


def whole_numbers(name: str, values: Indices) -> np.ndarray:
    """Return distinct whole numbers, ascending, int64 [K]; raise ``RunError`` for other values."""
    value_K = np.unique(np.atleast_1d(np.asarray(values)))
    if value_K.size and value_K.dtype.kind not in "iu":
        raise RunError(name, f"got {values!r}, must be a whole number or several")
    return value_K.astype(np.int64)


def require_known(
    rows: pa.Table, when: pa.Table, where: str, *, num_datums: int, may_lack: bool
) -> pa.Table:
    """Return the rows if their steps are in ``when`` and their datums in the corpus.

    Raises ``ShardError`` otherwise. With ``may_lack``, rows of unknown steps are left out instead.
    """
    datum_M = rows["datum"].to_numpy()
    if len(datum_M) and not 0 <= datum_M.min() <= datum_M.max() < num_datums:
        raise ShardError(where, "has datums that the corpus lacks", REMEDY)
    known_M = np.isin(rows["step"].to_numpy(), when["step"].to_numpy())
    if known_M.all():
        return rows
    if not may_lack:
        raise ShardError(where, "has steps that steps/ lacks", REMEDY)
    return rows.filter(pa.array(known_M))


def study_columns(rows: pa.Table, when: pa.Table, texts: pa.Array) -> pd.DataFrame:
    """Return the study's columns of rows of ``schema.OUTLIERS``, in order of capture.

    ``when`` holds step, epoch and batch of all steps that occur, ascending; ``texts`` the text of
    each datum.
    """
    # lexsort is stable, so rows of a datum keep the shard's order: by unit and index.
    order = np.lexsort((rows["slot"].to_numpy(), rows["step"].to_numpy()))
    rows = rows.take(order)
    row_of_step_M = np.searchsorted(when["step"].to_numpy(), rows["step"].to_numpy())
    shift_M = rows["shift"].to_numpy()
    return pd.DataFrame(
        {
            "epoch": when["epoch"].to_numpy()[row_of_step_M],
            "batch": when["batch"].to_numpy()[row_of_step_M],
            "datum_ix": rows["slot"].to_numpy(),
            "unit": rows["unit"].to_pandas().cat.remove_unused_categories(),
            "index": rows["index"].to_numpy(),
            "diff": shift_M,
            "abs_diff": np.abs(shift_M),
            "datum": texts_of(rows["datum"].to_numpy(), texts),
            "step": rows["step"].to_numpy(),
            "datum_id": rows["datum"].to_numpy(),
            "position": rows["position"].to_numpy(),
        }
    )


def texts_of(datum_M: np.ndarray, texts: pa.Array) -> pd.Categorical:
    """Return each row's text as a categorical, which holds every text once."""
    datum_K, place_M = np.unique(datum_M, return_inverse=True)
    text_K = texts.take(pa.array(datum_K)).dictionary_encode()
    codes_M = text_K.indices.to_numpy()[place_M]
    return pd.Categorical.from_codes(codes_M, categories=text_K.dictionary.to_pandas())
