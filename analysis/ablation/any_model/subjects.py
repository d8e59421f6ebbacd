"""Subjects of any model with known parts: columns and rows of its weights, and attention heads.

Units have the model's own parameter names, and heads are numbered in their attention module, as in
``transformer.h.0.attn``. Neuron N of layer L in TransformerLens is input N of the layer's last MLP
weight; head H is head H of the layer's attention.
"""

from collections.abc import Sequence
from typing import Literal

from analysis.ablation.subjects import Level, Subject
from capture.parts import Parted
from capture.parts.found_parts import PartSite


def units_of(model: Parted, level: Level) -> dict[str, int]:
    """Return unit → number of its subjects for the level, in the model's order."""
    if level == "head":
        return {own.name: own.heads for own in model.parts.attention if own}
    size: Literal["inputs", "outputs"] = "inputs" if level == "neuron" else "outputs"
    return {name: getattr(use, size) for name, use in model.parts.uses.items()}


def site_of(model: Parted, subject: Subject) -> PartSite:
    """Return the state that holds the subject's entries."""
    head = subject.level == "head"
    weight = model.parts.attention_called(subject.unit).out if head else subject.unit
    end = "output" if subject.level == "row" else "input"
    return PartSite(model.parts.uses[weight].layer, weight, end)


def entries_of(model: Parted, subject: Subject) -> range:
    """Return the subject's entries within the state at ``site_of``, [B]."""
    size = 1
    if subject.level == "head":
        attention = model.parts.attention_called(subject.unit)
        size = model.parts.uses[attention.out].inputs // attention.heads
    return range(subject.group * size, (subject.group + 1) * size)


def zero_values(model: Parted, subjects: Sequence[Subject]) -> list[float]:
    """Return what zero weights leave in the entries of each subject: the bias of a row, else 0."""
    units = {subject.unit for subject in subjects if subject.level == "row"}
    rest = model.at_zero(units) if units else {}
    return [
        float(rest[subject.unit][subject.group]) if subject.level == "row" else 0.0
        for subject in subjects
    ]
