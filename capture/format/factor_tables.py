"""Store the factors of a step as rows of a Parquet table.

Each array of a row is stored as one string of bytes, its numbers as they are in memory, or as two
strings that compress better (``capture.shards.float_planes``). Parquet's own lists of floats take
longer: a position in its list is computed for every number.

Shapes: N datum, T position, S number of an array, as in ``capture.gradients.factors``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from capture.format.factor_layout import KEY, ArrayLayout, FactorLayout, Packing, StoredFactor
from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factor, Factors
from capture.gradients.memo import tensor_key
from capture.shards import encoding as shards
from capture.shards.float_planes import split
from capture.shards.schema import factor_schema

ROWS_PER_GROUP = 4
"""Rows that a reader of one datum reads. Two rows per group would take a third longer to write."""
SUMS = "sums"
"""Name of the array of gradients that are smaller than their factors."""
HALF_EXPONENT = 15
"""Numbers below 2 to this power fit in a float16."""


@dataclass(frozen=True)
class FactorRows:
    """The factors of some datums of one step, one row per slot."""

    step: int
    slot_N: np.ndarray
    datum_N: np.ndarray
    scale: float
    """Multiplier from gradient to shift (−lr · clip), before preconditioning."""
    array_NS: dict[str, np.ndarray]
    """Values by array name: float32, or int32 for tokens."""


def rows_of_step(
    step: int,
    datum_N: np.ndarray,
    factors: Factors,
    scale: float,
    precision: Literal["float32", "float16"],
    *,
    packing: Packing = "plain",
    first_slot: int = 0,
    preconditioned: bool = False,
    multiplied: bool = False,
) -> tuple[FactorLayout, FactorRows]:
    """Return the layout and the rows of a step's factors.

    ``datum_N``: the datum in each slot, starting at ``first_slot``. ``preconditioned``: whether a
    shift also needs a preconditioner beside gradient and scale; ``multiplied``: whether numbers
    that differ between entries or units, by which the loop multiplied gradients, are part of it.
    """
    layout, kept = lay_out(factors, precision)
    layout = replace(layout, preconditioned=preconditioned, multiplied=multiplied, packing=packing)
    array_NS = {
        name: tensor.detach().reshape(len(datum_N), -1).cpu().numpy()
        for name, tensor in kept.items()
    }
    slot_N = first_slot + np.arange(len(datum_N))
    return layout, FactorRows(step, slot_N, datum_N, scale, array_NS)


# --- what to keep ---------------------------------------------------------------------------------


class DistinctArrays:
    """The distinct arrays among some factors, by name. Views of the same numbers count as one."""

    def __init__(self) -> None:
        self.names: dict[object, str] = {}
        self.tensors: dict[str, Tensor] = {}

    def name(self, tensor_NTS: Tensor) -> str:
        key = tensor_key(tensor_NTS)
        if key not in self.names:
            self.names[key] = f"f{len(self.names):02d}"
            self.tensors[self.names[key]] = tensor_NTS
        return self.names[key]


def tensors_of(use: Factor) -> list[Tensor]:
    return [t for t in (use.delta_NTO, use.a_NTI, use.token_NT) if t is not None]


def lay_out(
    factors: Factors, precision: Literal["float32", "float16"]
) -> tuple[FactorLayout, dict[str, Tensor]]:
    """Return the layout of a step's factors, and the tensor [N, …] of each array."""
    kept, uses = DistinctArrays(), dict[str, tuple[StoredFactor, ...]]()
    summed = summed_units(factors)
    for unit in factors:
        if unit not in summed:
            uses[unit] = tuple(stored_use(use, kept) for use in factors[unit])
    tensors, first = dict(kept.tensors), 0
    for unit in summed:  # their gradients lie side by side in one array
        end = first + factors[unit][0].delta_NTO.shape[2]
        uses[unit] = (StoredFactor("sum", SUMS, columns=(first, end)),)
        first = end
    if summed:
        tensors[SUMS] = torch.cat([gradients_of(factors[unit]) for unit in summed], 1)[:, None]
    arrays = {name: array_layout(tensor, precision) for name, tensor in tensors.items()}
    return FactorLayout(arrays, {unit: uses[unit] for unit in factors}), tensors


def summed_units(factors: Factors) -> list[str]:
    """Return the units whose gradient is smaller than the arrays that only they need."""
    vectors = {
        unit: uses
        for unit, uses in factors.items()
        if all(use.kind in ("scale", "sum") for use in uses)
    }
    others = [use for unit, uses in factors.items() if unit not in vectors for use in uses]
    shared = {tensor_key(tensor) for use in others for tensor in tensors_of(use)}
    return [unit for unit, uses in vectors.items() if gradient_is_smaller(uses, shared)]


def gradient_is_smaller(uses: list[Factor], shared: set[tuple[object, ...]]) -> bool:
    """Whether a vector's gradient has fewer numbers than its arrays that are not in ``shared``."""
    own = {tensor_key(t): t[0].numel() for use in uses for t in tensors_of(use)}
    extra = sum(numel for key, numel in own.items() if key not in shared)
    return extra > uses[0].delta_NTO.shape[2]


def gradients_of(uses: list[Factor]) -> Tensor:
    """Return every datum's gradient of a unit that is a vector, [N, O]."""
    delta_NTO = uses[0].delta_NTO
    out_NO = delta_NTO.new_empty(len(delta_NTO), delta_NTO.shape[2])
    write_shifts(uses, 1.0, out_NO)
    return out_NO


def stored_use(use: Factor, kept: DistinctArrays) -> StoredFactor:
    a, token = (None if t is None else kept.name(t) for t in (use.a_NTI, use.token_NT))
    return StoredFactor(use.kind, kept.name(use.delta_NTO), a, token, use.transposed)


def array_layout(tensor: Tensor, precision: Literal["float32", "float16"]) -> ArrayLayout:
    width = tensor.shape[2] if tensor.dim() == 3 else 1
    return ArrayLayout(tensor.shape[1], width, precision if tensor.is_floating_point() else "int32")


# --- the table's bytes ----------------------------------------------------------------------------


def encode(layout: FactorLayout, pieces: list[FactorRows]) -> tuple[memoryview, int]:
    """Encode a factor table as Parquet. Returns the bytes and the number of rows.

    Equal rows give equal bytes.
    """
    num_rows = sum(len(piece.datum_N) for piece in pieces)
    columns = {
        "step": np.concatenate([np.full(len(p.datum_N), p.step) for p in pieces]),
        "slot": np.concatenate([p.slot_N for p in pieces]),
        "datum": np.concatenate([p.datum_N for p in pieces]),
        "scale": np.concatenate([np.full(len(p.datum_N), p.scale) for p in pieces]),
    }
    for name, array in layout.arrays.items():
        value_NS = concatenated([piece.array_NS[name] for piece in pieces])
        columns |= columns_of(name, array, value_NS, layout.packing)
    precisions = {name: array.precision for name, array in layout.arrays.items()}
    schema = factor_schema(precisions, layout.packing)
    data = shards.encode(
        pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema),
        rows_per_group=ROWS_PER_GROUP,
        statistics=["step", "slot"],
        uncompressed=[f.name for f in schema if f.type == pa.binary() and f.name[-5:] != "_high"],
        page_checksums=False,
        metadata={KEY.decode(): layout.encode()},
    )
    return data, num_rows


def concatenated(pieces: list[np.ndarray]) -> np.ndarray:
    """Concatenate arrays along the rows. A single array, the usual case, is not copied."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def columns_of(
    name: str, array: ArrayLayout, value_NS: np.ndarray, packing: Packing
) -> Mapping[str, np.ndarray | pa.Array]:
    """Return the columns that hold one array of every row."""
    if array.precision == "int32":
        return {name: list_array(value_NS)}
    as_columns = plane_columns if packing == "planes" else plain_column
    if array.precision == "float32":
        return as_columns(name, value_NS.astype(np.float32, copy=False))
    half_NS, exponent_N, error_N = to_half(value_NS)
    return {
        **as_columns(name, half_NS),
        f"{name}_exponent": exponent_N.astype(np.int16),
        f"{name}_error": error_N,
    }


def plane_columns(name: str, value_NS: np.ndarray) -> dict[str, pa.Array]:
    """Return the high and the low bytes of each row as two columns."""
    high_NS, low, bounds = split(value_NS)
    ends = np.arange(len(high_NS) + 1) * high_NS.shape[1]
    return {f"{name}_high": binary_array(ends, high_NS), f"{name}_low": binary_array(bounds, low)}


def plain_column(name: str, value_NS: np.ndarray) -> dict[str, pa.Array]:
    """Return the bytes of each row's numbers as one column."""
    stored_NS = np.ascontiguousarray(value_NS, value_NS.dtype.newbyteorder("<"))
    ends = np.arange(len(stored_NS) + 1) * (stored_NS.shape[1] * stored_NS.itemsize)
    return {name: binary_array(ends, stored_NS)}


def binary_array(bounds: np.ndarray, data: np.ndarray) -> pa.Array:
    """Return one string of bytes per row: row i is data[bounds[i] : bounds[i + 1]]."""
    buffers = [None, pa.py_buffer(bounds.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(bounds) - 1, buffers)


def list_array(value_NS: np.ndarray) -> pa.Array:
    """Return one list of int32 per row."""
    ends = np.arange(len(value_NS) + 1, dtype=np.int32) * value_NS.shape[1]
    return pa.ListArray.from_arrays(ends, pa.array(value_NS.reshape(-1).astype(np.int32)))


def to_half(value_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert each row to float16 times a power of two.

    Returns the float16 numbers, the exponent of each row, and its largest absolute error, which is
    0 if nothing was lost and rounded up otherwise.
    """
    exponent_N = np.frexp(np.abs(value_NS).max(1))[1] - HALF_EXPONENT
    half_NS = np.ldexp(value_NS, -exponent_N[:, None]).astype(np.float16)
    error_NS = np.abs(from_half(half_NS, exponent_N[:, None]).astype(np.float64) - value_NS)
    error_N = error_NS.max(1)
    above_N = np.nextafter(error_N.astype(np.float32), np.float32(np.inf))
    return half_NS, exponent_N, np.where(error_N > 0, above_N, np.float32(0))


def from_half(half: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """Return float16 numbers times 2 to the exponent, as float32."""
    return np.ldexp(half.astype(np.float32), exponent)
