"""Subjects of ablation: columns and rows of the layers' weights, and attention heads.

Every subject is a set of entries of one intermediate state of the model:

- Setting column n of a weight to zero sets entry n of the weight's input to zero.
- Setting row r of a weight to zero leaves only the bias in entry r of the weight's output.
- Ablating an attention head sets the head's entries of the input of ``out_proj`` to zero.

A subject is therefore located by its layer, a point within the layer, and entries at that point.

Shapes: B entry of a subject.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from capture.errors import ConfigError
from capture.models.transformer import LanguageModel, Layer

Level = Literal["neuron", "row", "head"]
LEVELS: tuple[Level, ...] = ("neuron", "row", "head")
Point = Literal[
    "attention_in",  # input of in_proj, [D]
    "qkv",  # output of in_proj, [3D]
    "heads_out",  # input of out_proj: the heads' outputs side by side, [D]
    "attention_out",  # output of out_proj, [D]
    "mlp_in",  # input of linear1, [D]
    "before_relu",  # output of linear1, [F]
    "after_relu",  # input of linear2, [F]
    "mlp_out",  # output of linear2, [D]
]
ENDS: Mapping[str, tuple[Point, Point]] = {
    "self_attn.in_proj_weight": ("attention_in", "qkv"),
    "self_attn.out_proj.weight": ("heads_out", "attention_out"),
    "linear1.weight": ("mlp_in", "before_relu"),
    "linear2.weight": ("after_relu", "mlp_out"),
}
"""The points at the input and at the output of each weight of a layer."""
MLP = ("linear1.weight", "linear2.weight")
ATTENTION = "self_attn"
NOUNS: Mapping[Level, str] = {"neuron": "neurons", "row": "rows", "head": "heads"}


@dataclass(frozen=True, order=True)
class Subject:
    """One column (``neuron``), row or head: the unit that holds it and its number there."""

    unit: str
    group: int
    level: Level = "neuron"

    def __str__(self) -> str:
        return f"{self.unit} {self.level} {self.group}"


@dataclass(frozen=True, order=True)
class SubjectSite:
    """An intermediate state of the model: a point within a layer."""

    layer: int
    point: Point


def site_of(subject: Subject) -> SubjectSite:
    """Return the state that holds the subject's entries."""
    _, layer, name = subject.unit.split(".", 2)
    point = "heads_out" if subject.level == "head" else ENDS[name][subject.level == "row"]
    return SubjectSite(int(layer), point)


def entries_of(model: LanguageModel, subject: Subject) -> range:
    """Return the subject's entries within the state at ``site_of(subject)``, [B]."""
    size = model.config.width // model.config.heads if subject.level == "head" else 1
    return range(subject.group * size, (subject.group + 1) * size)


def zero_ablation_value(model: LanguageModel, subject: Subject) -> float:
    """Return the value that zero weights leave in the entries: the bias for a row, else 0."""
    if subject.level != "row":
        return 0.0
    name = subject.unit.removesuffix("_weight").removesuffix(".weight")
    bias = f"{name}_bias" if subject.unit.endswith("_weight") else f"{name}.bias"
    value = dict(model.named_parameters()).get(bias)  # attention may have none
    return 0.0 if value is None else float(value[subject.group])


def units_of(model: LanguageModel, level: Level) -> dict[str, int]:
    """Return unit → number of its subjects for the level, in the model's order."""
    layers = range(len(model.layers))
    if level == "head":
        return {f"layers.{layer}.{ATTENTION}": model.config.heads for layer in layers}
    axis = 1 if level == "neuron" else 0
    ends = [name for name in ENDS if model.config.hidden or name not in MLP]
    names = [f"layers.{layer}.{name}" for layer in layers for name in ends]
    return {name: model.get_parameter(name).shape[axis] for name in names}


def parse_subjects(texts: Iterable[str], level: Level) -> list[Subject]:
    """Parse UNIT:N[,N…] into distinct subjects, in order.

    Raises ``ConfigError`` for any other format.
    """
    found: dict[Subject, None] = {}
    for text in texts:
        unit, colon, numbers = text.rpartition(":")
        parts = numbers.split(",")
        if not colon or not all(
            part.strip().isascii() and part.strip().isdigit() for part in parts
        ):
            wanted = "wanted UNIT:N[,N…]"
            remedy = "For example: layers.2.linear2.weight:17,80"
            raise ConfigError("ablation.only", f"got {text!r}, {wanted}", remedy)
        found |= dict.fromkeys(Subject(unit.strip(), int(part), level) for part in parts)
    return list(found)


def layers_of(model: LanguageModel) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer, Layer)]
