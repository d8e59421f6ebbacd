"""A step's factors as rows of a table: what to keep of them, and the table's bytes.

Parquet's own lists would hold the numbers too, but a page of one datum's numbers is too small for
zstd to code their exponents by themselves: it would take a seventh more, and twice the time.

Shapes: N datum, T position, S number of an array, as in ``capture.gradients.factors``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from capture.format.factor_layout import KEY, Array, FactorLayout, StoredUse
from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factor, Factors
from capture.gradients.memo import identity
from capture.shards import encoding as shards
from capture.shards.float_planes import split
from capture.shards.schema import factor_schema

ROWS_PER_GROUP = 4
"""What is read for one datum. Two rows a group take a third more time to write."""
SUMS = "sums"
"""The array of gradients that are smaller than what they are made of."""
HALF_EXPONENT = 15
"""Below 2 to this, numbers fit a float16."""


@dataclass(frozen=True)
class Rows:
    """Some datums of one step, by slot."""

    step: int
    slot_N: np.ndarray
    datum_N: np.ndarray
    scale: float
    """What a gradient becomes a shift by, but for a preconditioner."""
    array_NS: dict[str, np.ndarray]
    """float32, or int32 for tokens."""


def rows_of_step(
    step: int,
    datum_N: np.ndarray,
    factors: Factors,
    scale: float,
    precision: Literal["float32", "float16"],
    *,
    first_slot: int = 0,
    preconditioned: bool = False,
) -> tuple[FactorLayout, Rows]:
    """What is stored of a step, whose factors are of the slots from ``first_slot`` on.

    ``datum_N``: the datum in each of them. ``preconditioned``: whether a shift is more than the
    gradient times the scale.
    """
    layout, kept = lay_out(factors, precision)
    layout = replace(layout, preconditioned=preconditioned)
    array_NS = {
        name: tensor.detach().reshape(len(datum_N), -1).cpu().numpy()
        for name, tensor in kept.items()
    }
    slot_N = first_slot + np.arange(len(datum_N))
    return layout, Rows(step, slot_N, datum_N, scale, array_NS)


# --- what to keep ---------------------------------------------------------------------------------


class Distinct:
    """The different arrays among some factors, by name; views of the same numbers are one."""

    def __init__(self) -> None:
        self.names: dict[object, str] = {}
        self.tensors: dict[str, Tensor] = {}

    def name(self, tensor_NTS: Tensor) -> str:
        key = identity(tensor_NTS)
        if key not in self.names:
            self.names[key] = f"f{len(self.names):02d}"
            self.tensors[self.names[key]] = tensor_NTS
        return self.names[key]


def tensors_of(use: Factor) -> list[Tensor]:
    return [t for t in (use.delta_NTO, use.a_NTI, use.token_NT) if t is not None]


def lay_out(
    factors: Factors, precision: Literal["float32", "float16"]
) -> tuple[FactorLayout, dict[str, Tensor]]:
    """The layout of a step's factors, and the tensor [N, …] of each of its arrays."""
    kept, uses = Distinct(), dict[str, tuple[StoredUse, ...]]()
    summed = summed_units(factors)
    for unit in factors:
        if unit not in summed:
            uses[unit] = tuple(stored_use(use, kept) for use in factors[unit])
    tensors, first = dict(kept.tensors), 0
    for unit in summed:
        end = first + factors[unit][0].delta_NTO.shape[2]
        uses[unit] = (StoredUse("sum", SUMS, columns=(first, end)),)
        first = end
    if summed:
        tensors[SUMS] = torch.cat([gradients_of(factors[unit]) for unit in summed], 1)[:, None]
    arrays = {name: array_of(tensor, precision) for name, tensor in tensors.items()}
    return FactorLayout(arrays, {unit: uses[unit] for unit in factors}), tensors


def summed_units(factors: Factors) -> list[str]:
    """Units of which the gradient is smaller than the arrays that nothing else needs."""
    vectors = {
        unit: uses
        for unit, uses in factors.items()
        if all(use.kind in ("scale", "sum") for use in uses)
    }
    others = [use for unit, uses in factors.items() if unit not in vectors for use in uses]
    there = {identity(tensor) for use in others for tensor in tensors_of(use)}
    return [unit for unit, uses in vectors.items() if costs_more(uses, there)]


def costs_more(uses: list[Factor], there: set[tuple[object, ...]]) -> bool:
    own = {identity(t): t[0].numel() for use in uses for t in tensors_of(use)}
    extra = sum(numel for key, numel in own.items() if key not in there)
    return extra > uses[0].delta_NTO.shape[2]


def gradients_of(uses: list[Factor]) -> Tensor:
    """Every datum's gradient of a unit that is a vector, [N, O]."""
    delta_NTO = uses[0].delta_NTO
    out_NO = delta_NTO.new_empty(len(delta_NTO), delta_NTO.shape[2])
    write_shifts(uses, 1.0, out_NO)
    return out_NO


def stored_use(use: Factor, kept: Distinct) -> StoredUse:
    a, token = (None if t is None else kept.name(t) for t in (use.a_NTI, use.token_NT))
    return StoredUse(use.kind, kept.name(use.delta_NTO), a, token, use.transposed)


def array_of(tensor: Tensor, precision: Literal["float32", "float16"]) -> Array:
    width = tensor.shape[2] if tensor.dim() == 3 else 1
    return Array(tensor.shape[1], width, precision if tensor.is_floating_point() else "int32")


# --- the table's bytes ----------------------------------------------------------------------------


def encode(layout: FactorLayout, pieces: list[Rows]) -> tuple[memoryview, int]:
    """A table of factors as Parquet, and its number of rows; equal rows give equal bytes."""
    num_rows = sum(len(piece.datum_N) for piece in pieces)
    columns = {
        "step": np.concatenate([np.full(len(p.datum_N), p.step) for p in pieces]),
        "slot": np.concatenate([p.slot_N for p in pieces]),
        "datum": np.concatenate([p.datum_N for p in pieces]),
        "scale": np.concatenate([np.full(len(p.datum_N), p.scale) for p in pieces]),
    }
    for name, array in layout.arrays.items():
        columns |= columns_of(name, array, joined([piece.array_NS[name] for piece in pieces]))
    schema = factor_schema({name: array.precision for name, array in layout.arrays.items()})
    data = shards.encode(
        pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema),
        rows_per_group=ROWS_PER_GROUP,
        statistics=["step", "slot"],
        uncompressed=[name for name in schema.names if name.endswith("_low")],
        page_checksums=False,
        metadata={KEY.decode(): layout.encode()},
    )
    return data, num_rows


def joined(pieces: list[np.ndarray]) -> np.ndarray:
    """One array of all rows; a step alone, the usual case, is not copied."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def columns_of(
    name: str, array: Array, value_NS: np.ndarray
) -> Mapping[str, np.ndarray | pa.Array]:
    """The columns that hold one array of every row."""
    if array.precision == "int32":
        return {name: lists(value_NS)}
    if array.precision == "float32":
        return planes(name, value_NS.astype(np.float32, copy=False))
    half_NS, exponent_N, error_N = halved(value_NS)
    return {
        **planes(name, half_NS),
        f"{name}_exponent": exponent_N.astype(np.int16),
        f"{name}_error": error_N,
    }


def planes(name: str, value_NS: np.ndarray) -> dict[str, pa.Array]:
    high_NS, low, bounds = split(value_NS)
    ends = np.arange(len(high_NS) + 1) * high_NS.shape[1]
    return {f"{name}_high": binaries(ends, high_NS), f"{name}_low": binaries(bounds, low)}


def binaries(bounds: np.ndarray, data: np.ndarray) -> pa.Array:
    """One string of bytes a row, from where each begins and the last one ends."""
    buffers = [None, pa.py_buffer(bounds.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(bounds) - 1, buffers)


def lists(value_NS: np.ndarray) -> pa.Array:
    ends = np.arange(len(value_NS) + 1, dtype=np.int32) * value_NS.shape[1]
    return pa.ListArray.from_arrays(ends, pa.array(value_NS.reshape(-1).astype(np.int32)))


def halved(value_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row as float16 times a power of two, its exponent, and its largest error.

    The error is 0 where nothing was lost, else rounded up.
    """
    exponent_N = np.frexp(np.abs(value_NS).max(1))[1] - HALF_EXPONENT
    half_NS = np.ldexp(value_NS, -exponent_N[:, None]).astype(np.float16)
    error_NS = np.abs(doubled(half_NS, exponent_N[:, None]).astype(np.float64) - value_NS)
    error_N = error_NS.max(1)
    above_N = np.nextafter(error_N.astype(np.float32), np.float32(np.inf))
    return half_NS, exponent_N, np.where(error_N > 0, above_N, np.float32(0))


def doubled(half: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """What float16 numbers stand for, float32."""
    return np.ldexp(half.astype(np.float32), exponent)
