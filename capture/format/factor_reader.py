"""Read the factors of one datum from a row of a factor table, with a bound on their error.

Shapes: N datum (always 1), T position, S number of an array, as in ``capture.gradients.factors``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from capture.format.factor_layout import ArrayLayout, FactorLayout, Packing, StoredFactor
from capture.format.factor_tables import FactorRows, from_half
from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factor
from capture.shards.float_planes import join


@dataclass(frozen=True)
class DatumArray:
    """One array of one datum, as stored."""

    value_1TS: Tensor
    error: float
    """Largest absolute difference between a stored number and the one that capture computed."""


@dataclass(frozen=True)
class DatumFactors:
    """The factors of one datum's gradient in one unit."""

    shape: tuple[int, ...]
    """Shape of the unit."""
    uses: list[Factor]
    error_uses: list[Factor]
    """Like ``uses``, with the error of each array in place of its numbers."""
    scale: float
    """Multiplier from gradient to shift (−lr · clip), before preconditioning."""
    preconditioned: bool
    """Whether the optimizer applied a preconditioner."""
    multiplied: bool
    """Whether the loop had multiplied gradients by numbers that are not stored."""


def columns_of(layout: FactorLayout, unit: str) -> list[str]:
    """Return the names of the table's columns that hold a unit's factors."""
    strings = ("_high", "_low") if layout.packing == "planes" else ("",)
    suffixes = {"float32": strings, "int32": ("",)}
    suffixes["float16"] = (*strings, "_exponent", "_error")
    arrays = layout.arrays_of(unit)
    return [name + suffix for name in arrays for suffix in suffixes[arrays[name].precision]]


def read_row(
    row: Mapping[str, pa.Scalar], layout: FactorLayout, unit: str, shape: tuple[int, ...]
) -> DatumFactors:
    """Read a unit's factors from its columns and ``scale``.

    Raises ``ValueError`` for columns that cannot hold these factors.
    """
    arrays = layout.arrays_of(unit)
    stored = {name: read_array(row, name, a, layout.packing) for name, a in arrays.items()}
    found = assemble(layout, unit, shape, stored, float(row["scale"].as_py()))
    for use in found.uses:
        check_tokens(use.token_NT, shape[0] if shape else 0)
    return found


def factors_of_slot(
    layout: FactorLayout, rows: FactorRows, slot: int, unit: str, shape: tuple[int, ...]
) -> DatumFactors:
    """Return a unit's factors for one slot of a replayed step, which is in memory only."""
    stored = {}
    for name, array in layout.arrays_of(unit).items():
        value_S = torch.from_numpy(rows.array_NS[name][slot])
        tokens = array.precision == "int32"
        size = (1, array.positions) if tokens else (1, array.positions, array.width)
        stored[name] = DatumArray(value_S.reshape(size), 0.0)
    return assemble(layout, unit, shape, stored, rows.scale)


def assemble(
    layout: FactorLayout,
    unit: str,
    shape: tuple[int, ...],
    stored: Mapping[str, DatumArray],
    scale: float,
) -> DatumFactors:
    """Build a unit's factors from the arrays of one datum."""
    values = {name: each.value_1TS for name, each in stored.items()}
    errors = {
        name: torch.full_like(value, stored[name].error) if value.is_floating_point() else value
        for name, value in values.items()
    }
    uses, error_uses = (
        [factor_of(use, tensors) for use in layout.uses[unit]] for tensors in (values, errors)
    )
    return DatumFactors(shape, uses, error_uses, scale, layout.preconditioned, layout.multiplied)


def check_tokens(token_NT: Tensor | None, num_rows: int) -> None:
    """Raise ``ValueError`` for tokens that are not row numbers of an embedding."""
    if token_NT is not None and not bool(((token_NT >= 0) & (token_NT < num_rows)).all()):
        raise ValueError(f"it has tokens beyond the unit's {num_rows:,} rows")


def read_array(
    row: Mapping[str, pa.Scalar], name: str, array: ArrayLayout, packing: Packing
) -> DatumArray:
    """Decode one array. Raises ``ValueError`` if its columns do not hold ``array.size`` numbers."""
    if array.precision == "int32":
        token_T = np.asarray(row[name].as_py(), np.int64)
        if len(token_T) != array.size:
            raise ValueError(f"its column {name} has {len(token_T):,} tokens, not {array.size:,}")
        return DatumArray(torch.from_numpy(token_T).reshape(1, array.positions), 0.0)
    try:
        if packing == "planes":
            strings = row[f"{name}_high"].as_py(), row[f"{name}_low"].as_py()
            value_S = join(*strings, array.size, array.precision)
        else:
            value_S = plain_numbers(row[name].as_py(), array)
    except ValueError as error:
        raise ValueError(f"its column {name} has {error}") from error
    error = 0.0
    if array.precision == "float16":
        value_S = from_half(value_S, row[f"{name}_exponent"].as_py())
        error = float(row[f"{name}_error"].as_py())
    value_1TS = torch.from_numpy(value_S).reshape(1, array.positions, array.width)
    return DatumArray(value_1TS, error)


def plain_numbers(data: bytes, array: ArrayLayout) -> np.ndarray:
    """Return the numbers [S] of a row's bytes; raises ``ValueError`` for a wrong number of them."""
    stored = np.dtype(array.precision).newbyteorder("<")
    if len(data) != array.size * stored.itemsize:
        raise ValueError(f"{len(data):,} bytes, not {array.size * stored.itemsize:,}")
    return np.frombuffer(data, stored).astype(array.precision)


def factor_of(use: StoredFactor, value_1TS: Mapping[str, Tensor]) -> Factor:
    """Replace the array names of a stored factor by their tensors."""
    delta_1TO = value_1TS[use.delta]
    if use.columns:
        delta_1TO = delta_1TO[:, :, slice(*use.columns)]
    a, token = (value_1TS[name] if name else None for name in (use.a, use.token))
    return Factor(use.kind, delta_1TO, a, use.transposed, token)


# --- gradients ------------------------------------------------------------------------------------


def dense(uses: list[Factor], shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Return a unit's gradient times ``scale``, with the bits that capture computes on a CPU.

    A run with batches of one datum can differ in the last bit if T = 1.
    """
    # A batch of one can round differently from a larger batch, so the datum is repeated.
    twice = [use.map_tensors(lambda x: torch.cat([x, x])) for use in uses]
    out_NS = uses[0].delta_NTO.new_empty(2, prod(shape))
    write_shifts(twice, scale, out_NS)
    return out_NS[0].reshape(shape)


def error_bound(factors: DatumFactors) -> Tensor:
    """Return a bound on the error of each entry of the gradient, [shape].

    A product of a ± e and δ ± f differs from a · δ by at most (|a| + e) (|δ| + f) - |a| |δ|. The
    rounding of float32 sums, which every gradient has, is not included.
    """
    size = [magnitudes(use) for use in factors.uses]
    errors = map(magnitudes, factors.error_uses)
    larger = [add_pairwise(use, error) for use, error in zip(size, errors, strict=True)]
    bound = dense(larger, factors.shape) - dense(size, factors.shape)
    # Round up to the next float32, but keep exact zeros.
    return torch.nextafter(bound.float(), bound.new_tensor(torch.inf).float()) * (bound > 0)


def magnitudes(use: Factor) -> Factor:
    """Return the absolute values of a factor's floats, in float64."""
    return use.map_tensors(lambda x: x.abs().double() if x.is_floating_point() else x)


def add_pairwise(use: Factor, other: Factor) -> Factor:
    """Add the tensors of two factors of the same kind: δ to δ, a to a."""
    a_NTI: Any = None
    if use.a_NTI is not None and other.a_NTI is not None:
        a_NTI = use.a_NTI + other.a_NTI
    return Factor(use.kind, use.delta_NTO + other.delta_NTO, a_NTI, use.transposed, use.token_NT)
