"""From a row of a table of factors back to the factors of one datum, and how exact they are.

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

from capture.format.factor_layout import Array, FactorLayout, StoredUse
from capture.format.factor_tables import Rows, doubled
from capture.gradients.dense import write_shifts
from capture.gradients.factors import Factor
from capture.shards.float_planes import join


@dataclass(frozen=True)
class Stored:
    """One array of one datum as it was stored."""

    value_1TS: Tensor
    error: float
    """How far any of its numbers may be from what capture saw."""


@dataclass(frozen=True)
class DatumFactors:
    """What one datum's gradient of one unit is made of."""

    shape: tuple[int, ...]
    """Of the unit."""
    uses: list[Factor]
    error_uses: list[Factor]
    """The same with the error of each array in the place of its numbers."""
    scale: float
    """What the gradient becomes a shift by, but for a preconditioner."""
    preconditioned: bool
    """Whether there was one."""


def columns_of(layout: FactorLayout, unit: str) -> list[str]:
    """The columns of the table that hold a unit's factors."""
    suffixes = {"float32": ("_high", "_low"), "int32": ("",)}
    suffixes["float16"] = ("_high", "_low", "_exponent", "_error")
    arrays = layout.arrays_of(unit)
    return [name + suffix for name in arrays for suffix in suffixes[arrays[name].precision]]


def read_row(
    row: Mapping[str, pa.Scalar], layout: FactorLayout, unit: str, shape: tuple[int, ...]
) -> DatumFactors:
    """A unit's factors from its columns and ``scale``; ``ValueError`` if they cannot be such."""
    arrays = layout.arrays_of(unit)
    stored = {name: read_array(row, name, array) for name, array in arrays.items()}
    found = assembled(layout, unit, shape, stored, float(row["scale"].as_py()))
    for use in found.uses:
        check_tokens(use.token_NT, shape[0] if shape else 0)
    return found


def of_row(
    layout: FactorLayout, rows: Rows, slot: int, unit: str, shape: tuple[int, ...]
) -> DatumFactors:
    """A unit's factors of one slot of a step that was taken again and not stored."""
    stored = {}
    for name, array in layout.arrays_of(unit).items():
        value_S = torch.from_numpy(rows.array_NS[name][slot])
        tokens = array.precision == "int32"
        size = (1, array.positions) if tokens else (1, array.positions, array.width)
        stored[name] = Stored(value_S.reshape(size), 0.0)
    return assembled(layout, unit, shape, stored, rows.scale)


def assembled(
    layout: FactorLayout,
    unit: str,
    shape: tuple[int, ...],
    stored: Mapping[str, Stored],
    scale: float,
) -> DatumFactors:
    values = {name: each.value_1TS for name, each in stored.items()}
    errors = {
        name: torch.full_like(value, stored[name].error) if value.is_floating_point() else value
        for name, value in values.items()
    }
    uses, error_uses = (
        [factor_of(use, tensors) for use in layout.uses[unit]] for tensors in (values, errors)
    )
    return DatumFactors(shape, uses, error_uses, scale, layout.preconditioned)


def check_tokens(token_NT: Tensor | None, num_rows: int) -> None:
    if token_NT is not None and not bool(((token_NT >= 0) & (token_NT < num_rows)).all()):
        raise ValueError(f"it has tokens beyond the unit's {num_rows:,} rows")


def read_array(row: Mapping[str, pa.Scalar], name: str, array: Array) -> Stored:
    if array.precision == "int32":
        token_T = np.asarray(row[name].as_py(), np.int64)
        if len(token_T) != array.size:
            raise ValueError(f"its column {name} has {len(token_T):,} tokens, not {array.size:,}")
        return Stored(torch.from_numpy(token_T).reshape(1, array.positions), 0.0)
    high, low = row[f"{name}_high"].as_py(), row[f"{name}_low"].as_py()
    try:
        value_S = join(high, low, array.size, array.precision)
    except ValueError as error:
        raise ValueError(f"its column {name} has {error}") from error
    error = 0.0
    if array.precision == "float16":
        value_S = doubled(value_S, row[f"{name}_exponent"].as_py())
        error = float(row[f"{name}_error"].as_py())
    value_1TS = torch.from_numpy(value_S).reshape(1, array.positions, array.width)
    return Stored(value_1TS, error)


def factor_of(use: StoredUse, value_1TS: Mapping[str, Tensor]) -> Factor:
    delta_1TO = value_1TS[use.delta]
    if use.columns:
        delta_1TO = delta_1TO[:, :, slice(*use.columns)]
    a, token = (value_1TS[name] if name else None for name in (use.a, use.token))
    return Factor(use.kind, delta_1TO, a, use.transposed, token)


# --- gradients ------------------------------------------------------------------------------------


def dense(uses: list[Factor], shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """A unit's gradient times ``scale``, to the bit what capture computes for a batch on a CPU.

    Matrix products of a batch of one may round otherwise than those of a larger one, so the datum
    is there twice. (A run with batches of one datum can differ in the last bit, where T = 1.)
    """
    twice = [use.mapped(lambda x: torch.cat([x, x])) for use in uses]
    out_NS = uses[0].delta_NTO.new_empty(2, prod(shape))
    write_shifts(twice, scale, out_NS)
    return out_NS[0].reshape(shape)


def error_bound(factors: DatumFactors) -> Tensor:
    """How far each entry of the gradient may be from the one that capture saw, [shape].

    A product of a ± e and δ ± f is off by at most (|a| + e) (|δ| + f) - |a| |δ|. The rounding of
    float32 sums, which every gradient has, comes on top.
    """
    size = [absolute(use) for use in factors.uses]
    errors = map(absolute, factors.error_uses)
    wide = [added(use, error) for use, error in zip(size, errors, strict=True)]
    bound = dense(wide, factors.shape) - dense(size, factors.shape)
    return torch.nextafter(bound.float(), bound.new_tensor(torch.inf).float()) * (bound > 0)


def absolute(use: Factor) -> Factor:
    """Magnitudes in float64."""
    return use.mapped(lambda x: x.abs().double() if x.is_floating_point() else x)


def added(use: Factor, other: Factor) -> Factor:
    a_NTI: Any = None
    if use.a_NTI is not None and other.a_NTI is not None:
        a_NTI = use.a_NTI + other.a_NTI
    return Factor(use.kind, use.delta_NTO + other.delta_NTO, a_NTI, use.transposed, use.token_NT)
