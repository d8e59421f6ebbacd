"""What can be ablated: columns and rows of the layers' weights, and attention heads.

Every one of them is some entries of one inner state of the model. To set ``weight[:, n] = 0`` is
to set entry n of what enters the weight to 0, to set ``weight[r, :] = 0`` is to leave only the bias
in entry r of what comes out of it, and to silence a head is to set its part of what enters
``out_proj`` to 0. So a subject is told by the layer, the point within it, and the entries there.

Shapes: B entry of a subject.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from analysis.run.names import nearest
from capture.errors import ConfigError, UnitError
from capture.models.transformer import LanguageModel, Layer

Level = Literal["neuron", "row", "head"]
LEVELS: tuple[Level, ...] = ("neuron", "row", "head")
Point = Literal[
    "attention_in",  # what enters in_proj, [D]
    "qkv",  # what leaves it, [3D]
    "mixed",  # what enters out_proj: the heads side by side, [D]
    "attended",  # what leaves it, [D]
    "mlp_in",  # what enters linear1, [D]
    "before_relu",  # what leaves it, [F]
    "inner",  # what enters linear2, [F]
    "mlp_out",  # what leaves it, [D]
]
ENDS: Mapping[str, tuple[Point, Point]] = {
    "self_attn.in_proj_weight": ("attention_in", "qkv"),
    "self_attn.out_proj.weight": ("mixed", "attended"),
    "linear1.weight": ("mlp_in", "before_relu"),
    "linear2.weight": ("inner", "mlp_out"),
}
"""What enters and what leaves each weight of a layer."""
MLP = ("linear1.weight", "linear2.weight")
ATTENTION = "self_attn"
NOUNS: Mapping[Level, str] = {"neuron": "neurons", "row": "rows", "head": "heads"}


@dataclass(frozen=True, order=True)
class Subject:
    """One thing that is ablated: a column (``neuron``), a row or a head, and which one."""

    unit: str
    group: int
    level: Level = "neuron"

    def __str__(self) -> str:
        return f"{self.unit} {self.level} {self.group}"


@dataclass(frozen=True, order=True)
class SubjectSite:
    """An inner state of the model."""

    layer: int
    point: Point


def site_of(subject: Subject) -> SubjectSite:
    """The state whose entries the subject is."""
    _, layer, name = subject.unit.split(".", 2)
    point = "mixed" if subject.level == "head" else ENDS[name][subject.level == "row"]
    return SubjectSite(int(layer), point)


def entries_of(model: LanguageModel, subject: Subject) -> range:
    """Which entries of that state."""
    size = model.config.width // model.config.heads if subject.level == "head" else 1
    return range(subject.group * size, (subject.group + 1) * size)


def zero_ablation_value(model: LanguageModel, subject: Subject) -> float:
    """What zero weights leave in these entries: the bias for a row, else 0."""
    if subject.level != "row":
        return 0.0
    name = subject.unit.removesuffix("_weight").removesuffix(".weight")
    bias = f"{name}_bias" if subject.unit.endswith("_weight") else f"{name}.bias"
    return float(model.get_parameter(bias)[subject.group])


def units_of(model: LanguageModel, level: Level) -> dict[str, int]:
    """Every unit that has subjects of this level, and how many; in the model's order."""
    layers = range(len(model.layers))
    if level == "head":
        return {f"layers.{place}.{ATTENTION}": model.config.heads for place in layers}
    axis = 1 if level == "neuron" else 0
    names = [f"layers.{place}.{name}" for place in layers for name in ENDS]
    return {name: model.get_parameter(name).shape[axis] for name in names}


def all_subjects(model: LanguageModel, level: Level) -> list[Subject]:
    """Every head, or every neuron or row of the MLP units."""
    units = units_of(model, level).items()
    return [
        Subject(unit, group, level)
        for unit, number in units
        if level == "head" or unit.endswith(MLP)
        for group in range(number)
    ]


def require_subjects(model: LanguageModel, subjects: Iterable[Subject]) -> None:
    """Raises ``UnitError`` for the first that the model does not have."""
    units = {level: units_of(model, level) for level in LEVELS}
    for subject in subjects:
        known, nouns = units[subject.level], NOUNS[subject.level]
        if subject.unit not in known:
            hint = nearest(subject.unit, list(known))
            raise UnitError(subject.unit, f"has no {nouns}", hint)
        if not 0 <= subject.group < known[subject.unit]:
            problem = f"does not exist: the unit's {nouns} are 0 to {known[subject.unit] - 1}"
            raise UnitError(str(subject), problem)


def parse_subjects(texts: Iterable[str], level: Level) -> list[Subject]:
    """Subjects from UNIT:NUMBER[,NUMBER…], each once; raises ``ConfigError`` for anything else."""
    found: dict[Subject, None] = {}
    for text in texts:
        unit, colon, numbers = text.rpartition(":")
        parts = numbers.split(",")
        if not colon or not all(
            part.strip().isascii() and part.strip().isdigit() for part in parts
        ):
            wanted = "wanted UNIT:NUMBER[,NUMBER…]"
            remedy = "For example: layers.2.linear2.weight:17,80"
            raise ConfigError("ablation.only", f"got {text!r}, {wanted}", remedy)
        found |= dict.fromkeys(Subject(unit.strip(), int(part), level) for part in parts)
    return list(found)


def layers_of(model: LanguageModel) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer, Layer)]
