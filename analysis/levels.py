"""What a question can be about: parameters, neurons, rows, units, attention heads.

A level divides the captured parameters into groups, and the groups into families of comparable
ones: those of the same unit, the heads of the same layer, all units of the model. What sets a group
apart is told by comparison with the rest of its family.

- *neuron*: a column (input) of an MLP unit; *row*: a row (output) of any unit with two axes; where
  a weight is stored [I, O], as in Hugging Face's Conv1D, inputs are its rows
- *head*: head h of an attention layer, its rows h·E to (h+1)·E of each of the q, k and v thirds of
  ``in_proj_weight`` and its columns of ``out_proj.weight``, with E = width / heads; its unit is
  called ``layers.L.self_attn``
- *unit*: a parameter tensor, whatever its shape
- *parameter*: chosen single weights; all others of the unit make one unnamed group of the family,
  so that a family is always whole

Shapes: P captured parameter, G group, S entries of a unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from capture.errors import RunError
from capture.gradients.layout import Layout

Level = Literal["parameter", "neuron", "row", "unit", "head"]
LEVELS: tuple[Level, ...] = get_args(Level)
MLP_UNITS = ("linear1.weight", "linear2.weight")
"""Endings of the units whose columns are neurons; of Hugging Face's, all with mlp in the name."""
IN_PROJECTION, OUT_PROJECTION = "self_attn.in_proj_weight", "self_attn.out_proj.weight"
WANTING = {
    "parameter": "weights (units with two axes)",
    "neuron": "neurons (columns of linear1.weight or linear2.weight)",
    "row": "rows (of units with two axes)",
    "unit": "units",
    "head": "attention heads (self_attn.in_proj_weight or self_attn.out_proj.weight)",
}
"""What a level needs, for messages."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a level; those from ``num_named`` on only complete their families."""

    level: Level
    units: list[str]
    """Of each named group."""
    number_G: np.ndarray
    """What a group is called within its unit: column, row, head, flat index; -1 for a whole unit,
    int32; of named groups only."""
    family_G: np.ndarray
    """Of every group, from 0, int64."""
    group_P: np.ndarray
    """The group of each captured parameter, -1 for none, int32."""

    @property
    def num_named(self) -> int:
        return len(self.units)

    @property
    def num_groups(self) -> int:
        return len(self.family_G)

    @property
    def num_families(self) -> int:
        return int(self.family_G.max()) + 1

    @property
    def frame(self) -> pd.DataFrame:
        """level, unit and group of each named group, in order."""
        return pd.DataFrame({"level": self.level, "unit": self.units, "group": self.number_G})


@dataclass(frozen=True, eq=False)
class Part:
    """How one unit's entries belong to the groups of a family."""

    family: str
    number_S: np.ndarray
    """Number of the group of each entry."""


def groups_at(level: Level, layout: Layout, *, heads: int) -> Groups:
    """All groups of a level but *parameter*; raises ``RunError`` where the run captured none."""
    dividing: dict[str, Callable[[str, Layout, int], Part | None]] = {
        "neuron": inputs_of_mlp,
        "row": outputs_of_weight,
        "head": heads_of_attention,
        "unit": whole_unit,
    }
    parts = [dividing[level](name, layout, heads) for name in layout.names]
    families = list(dict.fromkeys(part.family for part in parts if part))
    if not families:
        remedy = "Choose another --level, or capture them with capture.units"
        raise RunError(f"level {level}", f"the run captured no {WANTING[level]}", remedy)
    sizes = [
        1 + max(int(part.number_S.max()) for part in parts if part and part.family == family)
        for family in families
    ]
    first = dict(zip(families, np.cumsum([0, *sizes]), strict=False))
    group_P = np.full(layout.size, -1, np.int32)
    for part, start, size in zip(parts, layout.offsets, layout.sizes, strict=False):
        if part:
            group_P[start : start + size] = first[part.family] + part.number_S
    number_G = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    family_G = np.repeat(np.arange(len(families)), sizes)
    if level == "unit":  # all units are one family
        number_G, family_G = np.full_like(number_G, -1), np.zeros_like(family_G)
    return Groups(level, np.repeat(families, sizes).tolist(), number_G, family_G, group_P)


def inputs_of_mlp(name: str, layout: Layout, heads: int) -> Part | None:
    return Part(name, entries(name, layout, inputs=True)) if is_mlp(name, layout) else None


def outputs_of_weight(name: str, layout: Layout, heads: int) -> Part | None:
    if len(layout.shapes[name]) != 2:
        return None
    return Part(name, entries(name, layout, inputs=False))


def is_mlp(name: str, layout: Layout) -> bool:
    """Whether a unit's inputs are neurons."""
    of_library = ".mlp." in name and len(layout.shapes[name]) == 2
    return name.endswith(MLP_UNITS) or of_library


def entries(name: str, layout: Layout, *, inputs: bool) -> np.ndarray:
    """The input (or output) of each entry of a unit with two axes, [S]."""
    rows, columns = layout.shapes[name]
    if inputs == (name in layout.transposed):
        return np.repeat(np.arange(rows), columns)
    return np.tile(np.arange(columns), rows)


def whole_unit(name: str, layout: Layout, heads: int) -> Part | None:
    return Part(name, np.zeros(np.prod(layout.shapes[name]), np.int64))


def heads_of_attention(name: str, layout: Layout, heads: int) -> Part | None:
    if not name.endswith((IN_PROJECTION, OUT_PROJECTION)):
        return None
    rows, width = layout.shapes[name]
    family = name.removesuffix(IN_PROJECTION).removesuffix(OUT_PROJECTION) + "self_attn"
    head_D = np.arange(width) // (width // heads)
    if name.endswith(OUT_PROJECTION):
        return Part(family, np.tile(head_D, rows))
    return Part(family, np.repeat(np.tile(head_D, rows // width), width))


def parameters_at(place_G: np.ndarray, layout: Layout) -> Groups:
    """Single weights as groups, in the order given; the rest of each two-axis unit is unnamed."""
    unit_G = np.searchsorted(layout.offsets, place_G, side="right") - 1
    units_present = np.unique(unit_G)
    group_P = np.full(layout.size, -1, np.int32)
    for family, unit in enumerate(units_present):
        rest = len(place_G) + family
        group_P[layout.offsets[unit] : layout.offsets[unit + 1]] = rest
    group_P[place_G] = np.arange(len(place_G))
    families = np.arange(len(units_present))
    return Groups(
        level="parameter",
        units=np.array(layout.names, object)[unit_G].tolist(),
        number_G=(place_G - np.array(layout.offsets)[unit_G]).astype(np.int32),
        family_G=np.concatenate([np.searchsorted(units_present, unit_G), families]),
        group_P=group_P,
    )


def is_weight(layout: Layout) -> np.ndarray:
    """Whether each captured parameter belongs to a unit with two axes, [P]."""
    return np.repeat([len(shape) == 2 for shape in layout.shapes.values()], layout.sizes)
