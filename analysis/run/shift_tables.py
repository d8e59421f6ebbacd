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

UNITS_LISTED = 8
"""Units that an error names."""

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


def indices_of_neurons(
    layout: Layout, unit: str | Sequence[str], neuron: Indices, index: Indices | None
) -> np.ndarray:
    """Return the flat indices of neurons: the columns of a unit with two axes, int64 [K].

    Where a weight is stored [I, O], as in Hugging Face's Conv1D, neurons are its rows.
    Raises ``UnitError`` without exactly one such unit, or for a neuron that it does not have.
    """
    units = [unit] if isinstance(unit, str) else list(unit)
    if len(units) != 1 or index is not None:
        beside = "beside an index" if index is not None else f"with {len(units)} units"
        problem = f"got {neuron} {beside}"
        raise UnitError("neuron", problem, "Ask for the neurons of one unit, without index")
    (name,) = units
    if name not in layout.shapes:
        with_neurons = [unit for unit, shape in layout.shapes.items() if len(shape) == 2]
        raise UnitError(name, "was not captured", nearest(name, with_neurons))
    if len(layout.shapes[name]) != 2:
        axes = {1: "one axis"}.get(len(layout.shapes[name]), f"{len(layout.shapes[name])} axes")
        raise UnitError(name, f"has no neurons: it has {axes}, not two")
    index_RC = np.arange(layout.sizes[layout.names.index(name)]).reshape(layout.shapes[name])
    index_IO = index_RC if name in layout.transposed else index_RC.T
    neuron_K = whole_numbers("neuron", neuron)
    for found in neuron_K[(neuron_K < 0) | (neuron_K >= len(index_IO))][:1]:
        problem = f"does not exist: the unit's neurons are 0 to {len(index_IO) - 1}"
        raise UnitError(f"{name}:{found}", problem)
    return np.sort(index_IO[neuron_K], axis=None)


def parameters_of_neurons(
    layout: Layout, unit: str | Sequence[str] | None, neuron: Indices, index: Indices | None
) -> tuple[str | Sequence[str], np.ndarray]:
    """Return the unit and the flat indices of neurons; without a unit, of the only one that fits.

    Raises ``UnitError`` as ``indices_of_neurons`` and ``only_unit_with_neurons`` do.
    """
    if unit is None:
        unit = [] if index is not None else only_unit_with_neurons(layout, neuron)
    return unit, indices_of_neurons(layout, unit, neuron, index)


def only_unit_with_neurons(layout: Layout, neuron: Indices) -> str:
    """Return the one unit that has neurons (two axes).

    Raises ``UnitError``, which lists the units, if none or several have.
    """
    units = [name for name, shape in layout.shapes.items() if len(shape) == 2]
    if len(units) == 1:
        return units[0]
    if not units:
        raise UnitError("neuron", f"got {neuron}, but no captured unit has two axes")
    listed = ", ".join(units[:UNITS_LISTED])
    more = f" and {len(units) - UNITS_LISTED} more" if len(units) > UNITS_LISTED else ""
    problem = f"got {neuron} without a unit, and {len(units)} units have neurons: {listed}{more}"
    example = f"Say which one: run.shifts(unit={units[0]!r}, neuron={neuron})"
    raise UnitError("neuron", problem, example)


def wanted_steps(uri: str, steps: range, steps_done: int) -> range:
    """Return the steps, ascending; raise ``RunError`` for one that is not recorded."""
    if not isinstance(steps, range):
        problem = f"steps={steps!r} is not a range"
        raise RunError(uri, problem, "Ask for steps=range(first, end)")
    ascending = steps if steps.step > 0 else steps[::-1]
    if not ascending:
        raise RunError(uri, f"has steps 0 to {steps_done - 1}, none of {steps}")
    if ascending[0] < 0 or ascending[-1] >= steps_done:
        problem = f"has steps 0 to {steps_done - 1}, asked for {ascending[0]} to {ascending[-1]}"
        raise RunError(uri, problem, "Steps are chosen as in steps=range(first, end)")
    return ascending


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
