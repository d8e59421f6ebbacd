"""What the columns of a table of factors are, and which of them make which unit's gradient.

A row of the table is a datum in a step. Of each *distinct* array that its factors consist of there
is one value a row: an input that several layers share is there once, a bias uses the δ of its
weight. Where a unit's gradient itself is smaller than the arrays that only it needs, as for a
LayerNorm, the gradient is there in their place; all such units lie side by side in one array.

The layout stands as JSON in the metadata of each table. Tables may come from anyone, so every part
of it is checked when it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal, get_args

from capture.gradients.factors import Kind

Precision = Literal["float32", "float16", "int32"]
KEY = b"ontogeny.factors"
MOST_NUMBERS = 2**31 - 1


@dataclass(frozen=True)
class Array:
    """One value of every row: numbers [positions, width], flattened."""

    positions: int
    width: int
    precision: Precision
    """int32: tokens."""

    @property
    def size(self) -> int:
        return self.positions * self.width


@dataclass(frozen=True)
class StoredUse:
    """A ``Factor`` whose tensors are arrays of the table, by name."""

    kind: Kind
    delta: str
    a: str | None = None
    token: str | None = None
    transposed: bool = False
    columns: tuple[int, int] | None = None
    """Of δ, those that are this unit's; None: all."""

    @property
    def arrays(self) -> list[str]:
        return [name for name in (self.delta, self.a, self.token) if name is not None]


@dataclass(frozen=True)
class FactorLayout:
    """The arrays of a table of factors, by name, and each unit's uses of them."""

    arrays: dict[str, Array]
    uses: dict[str, tuple[StoredUse, ...]]
    preconditioned: bool = False
    """Whether a shift is more than the gradient times the scale, as with Adam."""

    @property
    def row_bytes(self) -> int:
        """Of one datum's numbers before they are packed."""
        return sum(array.size * (2 if array.precision == "float16" else 4) for array in self.all)

    @property
    def all(self) -> list[Array]:
        return list(self.arrays.values())

    def arrays_of(self, unit: str) -> dict[str, Array]:
        """What a unit's gradient is made of."""
        names = dict.fromkeys(name for use in self.uses[unit] for name in use.arrays)
        return {name: self.arrays[name] for name in names}

    def encode(self) -> str:
        arrays = {name: [a.positions, a.width, a.precision] for name, a in self.arrays.items()}
        uses = {unit: [said(use) for use in uses] for unit, uses in self.uses.items()}
        values = {"arrays": arrays, "uses": uses}
        return json.dumps(values | ({"preconditioned": True} if self.preconditioned else {}))


def said(use: StoredUse) -> dict[str, Any]:
    """The fields of a use that are not as usual."""
    return {name: value for name, value in asdict(use).items() if value not in (None, False)}


def decode(text: bytes, shapes: Mapping[str, tuple[int, ...]]) -> FactorLayout:
    """The layout that was encoded; raises ``ValueError`` unless it fits units of these shapes."""
    try:
        values = json.loads(text)
        arrays = {str(name): array_of(*array) for name, array in values["arrays"].items()}
        uses = {
            str(unit): tuple(use_of(**use) for use in uses) for unit, uses in values["uses"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("its layout of factors is not readable") from error
    layout = FactorLayout(arrays, uses, values.get("preconditioned") is True)
    for unit in uses:
        if unit not in shapes or not uses[unit]:
            raise ValueError(f"it has factors of {unit[:80]}, which was not captured")
        for use in uses[unit]:
            if not fits(use, arrays, shapes[unit]):
                raise ValueError(f"its factors do not make a gradient of {unit}")
    return layout


def array_of(positions: object, width: object, precision: Any) -> Array:
    if precision not in get_args(Precision):
        raise ValueError("no such precision")
    array = Array(whole(positions), whole(width), precision)
    if not 0 < array.size <= MOST_NUMBERS:
        raise ValueError("no such size")
    return array


def use_of(
    kind: Any,
    delta: object,
    a: object = None,
    token: object = None,
    transposed: object = False,
    columns: Any = None,
) -> StoredUse:
    if kind not in get_args(Kind) or not isinstance(transposed, bool):
        raise ValueError("no such use")
    if columns is not None:
        first, end = (whole(column) for column in columns)
        columns = (first, end)
    a, token = (None if name is None else str(name) for name in (a, token))
    return StoredUse(kind, str(delta), a, token, transposed, columns)


def whole(number: object) -> int:
    if type(number) is not int or not 0 <= number <= MOST_NUMBERS:
        raise ValueError("no such number")
    return number


def fits(use: StoredUse, arrays: Mapping[str, Array], shape: tuple[int, ...]) -> bool:
    """Whether the arrays of a use are there, and of the sizes that a unit of this shape needs."""
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
            return token is None and end - first == size and alike(a, delta, size)
        case "rows":
            wanted = Array(delta.positions, 1, "int32")
            return a is None and token == wanted and len(shape) == 2 and end - first == shape[1]
        case "outer":
            rows, width = (shape[0], size // shape[0]) if shape else (1, 1)
            rows, width = (width, rows) if use.transposed else (rows, width)
            return token is None and end - first == rows and alike(a, delta, width)


def alike(a: Array | None, delta: Array, width: int) -> bool:
    if a is None or a.precision == "int32":
        return False
    return (a.positions, a.width) == (delta.positions, width)
