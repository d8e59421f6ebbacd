"""The layout of a factor table: its arrays, and the arrays that give each unit's gradient.

A row of the table is one datum in one step. Each *distinct* array of its factors is stored once per
row: layers with the same input share it, and a bias uses the δ of its weight. If a unit's gradient
is smaller than the arrays that only this unit needs, as for a LayerNorm, the gradient itself is
stored instead. The gradients of all such units lie side by side in one array.

The layout is stored as JSON in the metadata of each table. Tables can come from untrusted sources,
so every part of the JSON is checked when it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal, get_args

from capture.gradients.factors import Kind

Precision = Literal["float32", "float16", "int32"]
Packing = Literal["planes", "plain"]
"""planes: two byte strings for each row, see ``capture.shards.float_planes``. plain: one, the
numbers as they are in memory."""
KEY = b"ontogeny.factors"
MAX_NUMBERS = 2**31 - 1


@dataclass(frozen=True)
class ArrayLayout:
    """Shape and type of one array of every row: numbers [positions, width], stored flattened."""

    positions: int
    width: int
    precision: Precision
    """float32 or float16; int32 for token ids."""

    @property
    def size(self) -> int:
        return self.positions * self.width


@dataclass(frozen=True)
class StoredFactor:
    """A ``Factor`` whose tensors are given by the names of arrays of the table."""

    kind: Kind
    delta: str
    a: str | None = None
    token: str | None = None
    transposed: bool = False
    columns: tuple[int, int] | None = None
    """The columns [first, end) of δ that belong to this unit; None for all."""

    @property
    def arrays(self) -> list[str]:
        """The names of the arrays that this factor needs."""
        return [name for name in (self.delta, self.a, self.token) if name is not None]


@dataclass(frozen=True)
class FactorLayout:
    """The arrays of a factor table, by name, and the factors of each unit.

    ``uses`` has one factor for every call in which the forward pass used the unit. The unit's
    gradient is the sum over them.
    """

    arrays: dict[str, ArrayLayout]
    uses: dict[str, tuple[StoredFactor, ...]]
    preconditioned: bool = False
    """Whether a shift also needs a preconditioner, as with Adam, beside gradient and scale."""
    multiplied: bool = False
    """Whether the loop multiplied gradients of units or entries by different numbers (clipping by
    value), which are then part of the preconditioner and not stored."""
    packing: Packing = "planes"
    """How floats are stored. Tables before schema version 3 have planes and do not say so."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one datum's numbers before compression."""
        return sum(array.size * (2 if array.precision == "float16" else 4) for array in self.all)

    @property
    def all(self) -> list[ArrayLayout]:
        """All arrays, in the order of the table's columns."""
        return list(self.arrays.values())

    def arrays_of(self, unit: str) -> dict[str, ArrayLayout]:
        """Return the arrays that a unit's gradient is computed from."""
        names = dict.fromkeys(name for use in self.uses[unit] for name in use.arrays)
        return {name: self.arrays[name] for name in names}

    def encode(self) -> str:
        """Return the layout as JSON."""
        arrays = {name: [a.positions, a.width, a.precision] for name, a in self.arrays.items()}
        uses = {unit: [nondefault_fields(use) for use in uses] for unit, uses in self.uses.items()}
        values: dict[str, Any] = {"arrays": arrays, "uses": uses}
        if self.preconditioned:
            values["preconditioned"] = True
        if self.multiplied:
            values["multiplied"] = True
        if self.packing != "planes":
            values["packing"] = self.packing
        return json.dumps(values)


def nondefault_fields(use: StoredFactor) -> dict[str, Any]:
    """Return the fields of a factor that differ from their defaults."""
    return {name: value for name, value in asdict(use).items() if value not in (None, False)}


def decode(text: bytes, shapes: Mapping[str, tuple[int, ...]]) -> FactorLayout:
    """Parse an encoded layout. Raises ``ValueError`` unless it fits units of these shapes."""
    try:
        values = json.loads(text)
        arrays = {str(name): parse_array(*array) for name, array in values["arrays"].items()}
        uses = {
            str(unit): tuple(parse_use(**use) for use in entries)
            for unit, entries in values["uses"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("its layout of factors is not readable") from error
    packing = values.get("packing", "planes")
    if packing not in get_args(Packing):
        raise ValueError(f"its packing {packing!r:.40} is unknown")
    preconditioned, multiplied = (
        values.get(name) is True for name in ("preconditioned", "multiplied")
    )
    layout = FactorLayout(arrays, uses, preconditioned, multiplied, packing)
    for unit in uses:
        if unit not in shapes or not uses[unit]:
            raise ValueError(f"it has factors of {unit[:80]}, which was not captured")
        for use in uses[unit]:
            if not makes_gradient(use, arrays, shapes[unit]):
                raise ValueError(f"its factors do not make a gradient of {unit}")
    return layout


def parse_array(positions: object, width: object, precision: Any) -> ArrayLayout:
    if precision not in get_args(Precision):
        raise ValueError("no such precision")
    array = ArrayLayout(parse_count(positions), parse_count(width), precision)
    if not 0 < array.size <= MAX_NUMBERS:
        raise ValueError("no such size")
    return array


def parse_use(
    kind: Any,
    delta: object,
    a: object = None,
    token: object = None,
    transposed: object = False,
    columns: Any = None,
) -> StoredFactor:
    if kind not in get_args(Kind) or not isinstance(transposed, bool):
        raise ValueError("no such use")
    if columns is not None:
        first, end = (parse_count(column) for column in columns)
        columns = (first, end)
    a, token = (None if name is None else str(name) for name in (a, token))
    return StoredFactor(kind, str(delta), a, token, transposed, columns)


def parse_count(number: object) -> int:
    if type(number) is not int or not 0 <= number <= MAX_NUMBERS:
        raise ValueError("no such number")
    return number


def makes_gradient(
    use: StoredFactor, arrays: Mapping[str, ArrayLayout], shape: tuple[int, ...]
) -> bool:
    """Whether the arrays of a factor exist with the sizes that a unit of this shape needs."""
    if not all(name in arrays for name in use.arrays):
        return False
    delta, size = arrays[use.delta], prod(shape)
    a, token = (arrays[name] if name else None for name in (use.a, use.token))
    first, end = use.columns or (0, delta.width)
    if delta.precision == "int32" or not 0 <= first < end <= delta.width:
        return False
    match use.kind:
        case "sum":
            return a is token is None and end - first == size
        case "scale":
            return token is None and end - first == size and same_size(a, delta, size)
        case "rows":
            wanted = ArrayLayout(delta.positions, 1, "int32")
            return a is None and token == wanted and len(shape) == 2 and end - first == shape[1]
        case "outer":
            rows, width = (shape[0], size // shape[0]) if shape else (1, 1)
            rows, width = (width, rows) if use.transposed else (rows, width)
            return token is None and end - first == rows and same_size(a, delta, width)


def same_size(a: ArrayLayout | None, delta: ArrayLayout, width: int) -> bool:
    """Whether ``a`` holds floats, has as many positions as δ, and has this width."""
    if a is None or a.precision == "int32":
        return False
    return (a.positions, a.width) == (delta.positions, width)
