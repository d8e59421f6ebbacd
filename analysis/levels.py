"""Levels of analysis: how captured parameters are grouped into neurons, rows, heads or units.

A level divides the captured parameters into groups, and the groups into families of comparable
groups: those of the same unit, the heads of the same layer, or all units of the model. A group is
compared with the rest of its family.

- *neuron*: a column (input) of an MLP unit. *row*: a row (output) of any unit with two axes. Where
  a weight is stored [I, O], as in Hugging Face's Conv1D, the inputs are its rows.
- *head*: head h of an attention layer, with E = width / heads: rows h·E to (h+1)·E of each of the
  q, k and v thirds of ``in_proj_weight``, and columns h·E to (h+1)·E of ``out_proj.weight``. Its
  unit is called ``layers.L.self_attn``. Of another model: its inputs of the weight that mixes the
  heads, and its outputs of weights for queries, keys and values that it does not share, whichever
  way they are ordered (``capture.parts.head_rows``).
- *unit*: a parameter tensor of any shape.
- *parameter*: selected single weights. All others of the unit form one unnamed group, so that a
  family always covers the whole unit.

Shapes: P captured parameter, G group, S entries of a unit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import pandas as pd

from capture.errors import RunError
from capture.gradients.layout import Layout
from capture.models.mlp import mlp_weights
from capture.parts.found_parts import HeadBlocks

Level = Literal["parameter", "neuron", "row", "unit", "head"]
LEVELS: tuple[Level, ...] = get_args(Level)
MLP_UNITS = ("linear1.weight", "linear2.weight")
"""Endings of units whose inputs are neurons, beside those that ``mlp_weights`` finds."""
IN_PROJECTION, OUT_PROJECTION = "self_attn.in_proj_weight", "self_attn.out_proj.weight"
NO_BLOCKS: Mapping[str, HeadBlocks] = MappingProxyType({})
REQUIREMENTS = {
    "parameter": "weights (units with two axes)",
    "neuron": "neurons (inputs of MLP weights, such as linear1.weight or mlp.c_fc.weight)",
    "row": "rows (of units with two axes)",
    "unit": "units",
    "head": "attention heads (self_attn.in_proj_weight or self_attn.out_proj.weight, or in another "
    "model the weight that mixes them)",
}
"""What a level needs, for error messages."""
HEADS_UNKNOWN = (
    "Say where the heads are: give the model by --model MODULE:FUNCTION or open_run(…, model=…), "
    "and if they are not found in it, ontogeny.ModelParts(heads=…, attention_out=…) beside it"
)


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of a level. Those from ``num_named`` on are unnamed and only complete a family."""

    level: Level
    units: list[str]
    """Unit of each named group."""
    number_G: np.ndarray
    """Number of each named group within its unit: column, row, head or flat index; -1 for a whole
    unit, int32."""
    family_G: np.ndarray
    """Family of every group, from 0, int64."""
    group_P: np.ndarray
    """Group of each captured parameter, -1 for none, int32."""

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
        """Columns level, unit and group, one row per named group."""
        return pd.DataFrame({"level": self.level, "unit": self.units, "group": self.number_G})


@dataclass(frozen=True, eq=False)
class UnitPart:
    """Division of one unit's entries among the groups of a family."""

    family: str
    number_S: np.ndarray
    """Number, within the family, of the group of each entry; -1 for none."""


def groups_at(
    level: Level, layout: Layout, *, heads: int | None, blocks: Mapping[str, HeadBlocks] = NO_BLOCKS
) -> Groups:
    """Return all groups of a level other than *parameter*; raise ``RunError`` if there are none.

    ``heads`` is for the study's transformer, None if unknown; ``blocks`` has the heads of another
    model.
    """
    dividing: dict[str, Callable[[str, Layout, int | None], UnitPart | None]] = {
        "neuron": inputs_of_mlp,
        "row": outputs_of_weight,
        "head": partial(heads_of_blocks, blocks) if blocks else heads_of_attention,
        "unit": whole_unit,
    }
    parts = [dividing[level](name, layout, heads) for name in layout.names]
    families = list(dict.fromkeys(part.family for part in parts if part))
    if not families:
        remedy = "Choose another --level, or capture them with capture.units"
        if level == "head" and heads is None:
            remedy = HEADS_UNKNOWN
        raise RunError(f"level {level}", f"the run captured no {REQUIREMENTS[level]}", remedy)
    sizes = [
        1 + max(int(part.number_S.max()) for part in parts if part and part.family == family)
        for family in families
    ]
    first = dict(zip(families, np.cumsum([0, *sizes]), strict=False))
    group_P = np.full(layout.size, -1, np.int32)
    for part, start, size in zip(parts, layout.offsets, layout.sizes, strict=False):
        if part:
            named_S = part.number_S >= 0
            group_P[start : start + size] = np.where(
                named_S, first[part.family] + part.number_S, -1
            )
    number_G = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    family_G = np.repeat(np.arange(len(families)), sizes)
    if level == "unit":  # all units are one family
        number_G, family_G = np.full_like(number_G, -1), np.zeros_like(family_G)
    return Groups(level, np.repeat(families, sizes).tolist(), number_G, family_G, group_P)


def inputs_of_mlp(name: str, layout: Layout, heads: int | None) -> UnitPart | None:
    return UnitPart(name, entries(name, layout, inputs=True)) if is_mlp(name, layout) else None


def outputs_of_weight(name: str, layout: Layout, heads: int | None) -> UnitPart | None:
    if len(layout.shapes[name]) != 2:
        return None
    return UnitPart(name, entries(name, layout, inputs=False))


def is_mlp(name: str, layout: Layout) -> bool:
    """Return whether a unit's inputs are neurons."""
    return name.endswith(MLP_UNITS) or name in mlp_weights(layout.shapes)


def entries(name: str, layout: Layout, *, inputs: bool) -> np.ndarray:
    """Return the input (or output) number of each entry of a unit with two axes, [S]."""
    rows, columns = layout.shapes[name]
    # Inputs are columns, or rows where the weight is stored transposed.
    if inputs == (name in layout.transposed):
        return np.repeat(np.arange(rows), columns)
    return np.tile(np.arange(columns), rows)


def whole_unit(name: str, layout: Layout, heads: int | None) -> UnitPart | None:
    return UnitPart(name, np.zeros(np.prod(layout.shapes[name]), np.int64))


def heads_of_attention(name: str, layout: Layout, heads: int | None) -> UnitPart | None:
    if heads is None or not name.endswith((IN_PROJECTION, OUT_PROJECTION)):
        return None
    rows, width = layout.shapes[name]
    family = name.removesuffix(IN_PROJECTION).removesuffix(OUT_PROJECTION) + "self_attn"
    head_D = np.arange(width) // (width // heads)
    if name.endswith(OUT_PROJECTION):
        return UnitPart(family, np.tile(head_D, rows))
    return UnitPart(family, np.repeat(np.tile(head_D, rows // width), width))


def heads_of_blocks(
    blocks: Mapping[str, HeadBlocks], name: str, layout: Layout, heads: int | None
) -> UnitPart | None:
    if name not in blocks:
        return None
    own = blocks[name]
    number_S = entries(name, layout, inputs=own.inputs)
    return UnitPart(own.name, np.array(own.head)[number_S])


def parameters_at(place_G: np.ndarray, layout: Layout) -> Groups:
    """Return single weights as groups, in the given order; the rest of each unit is unnamed.

    ``place_G`` is the position of each weight among all captured parameters.
    """
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
    """Return whether each captured parameter belongs to a unit with two axes, [P]."""
    return np.repeat([len(shape) == 2 for shape in layout.shapes.values()], layout.sizes)
