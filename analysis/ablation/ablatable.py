"""What ablation needs of a model: the study's transformer, or any model with known parts.

Both give the same answers. Passes of the study's transformer are written out and skip what a change
cannot reach; those of another model run its own code (``any_model``).

Shapes: N datum, T position, B entry of a subject.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from analysis.ablation import propagation, subjects
from analysis.ablation.any_model import passes as part_passes
from analysis.ablation.any_model import subjects as part_subjects
from analysis.ablation.edits import Edit, ReachedStates, Traced
from analysis.ablation.subjects import LEVELS, MLP, NOUNS, Level, Subject
from analysis.ablation.unembedding import Unembedding
from analysis.run.names import nearest
from capture.errors import UnitError
from capture.parts import KnownModel, Parted

# --- subjects -------------------------------------------------------------------------------------


def units_of(model: KnownModel, level: Level) -> dict[str, int]:
    """Return unit → number of its subjects for the level, in the model's order."""
    if isinstance(model, Parted):
        return part_subjects.units_of(model, level)
    return subjects.units_of(model, level)


def all_subjects(model: KnownModel, level: Level) -> list[Subject]:
    """Return every head, or every neuron or row of the MLP units; ``UnitError`` without any."""
    units = units_of(model, level)
    own = model.parts.mlp if isinstance(model, Parted) else [u for u in units if u.endswith(MLP)]
    found = [
        Subject(unit, group, level)
        for unit, number in units.items()
        if level == "head" or unit in own
        for group in range(number)
    ]
    if not found:
        what = NOUNS[level] if level == "head" else f"{NOUNS[level]} of MLPs"
        raise UnitError("--all", f"the model has no {what}", no_units(level))
    return found


def require_subjects(model: KnownModel, wanted: Iterable[Subject]) -> None:
    """Raise ``UnitError`` for the first subject that the model does not have."""
    units = {level: units_of(model, level) for level in LEVELS}
    for subject in wanted:
        known, nouns = units[subject.level], NOUNS[subject.level]
        if subject.unit not in known:
            hint = nearest(subject.unit, list(known)) if known else no_units(subject.level)
            raise UnitError(subject.unit, f"has no {nouns}", hint)
        if not 0 <= subject.group < known[subject.unit]:
            problem = f"does not exist: the unit's {nouns} are 0 to {known[subject.unit] - 1}"
            raise UnitError(str(subject), problem)


def no_units(level: Level) -> str:
    """Return what was looked for in a model that has no subjects of a level."""
    if level == "head":
        looked = "an attention module in each layer, its last weight, and a number of heads"
        return f"Looked for {looked}; say them: ModelParts(attention_out=…, heads=…)"
    looked = "weights with two axes that a pass uses once, on states [N, T, C]"
    return f"Looked for {looked}; those of MLPs are named mlp, linear1, linear2, or fit in pairs"


def place_of(model: KnownModel, subject: Subject) -> tuple[Any, range]:
    """Return the state that holds a subject, and its entries there, [B]."""
    if isinstance(model, Parted):
        return part_subjects.site_of(model, subject), part_subjects.entries_of(model, subject)
    return subjects.site_of(subject), subjects.entries_of(model, subject)


def zero_values(model: KnownModel, own: Sequence[Subject]) -> list[float]:
    """Return what zero weights leave in the entries of each subject: a row's bias, else 0."""
    if isinstance(model, Parted):
        return part_subjects.zero_values(model, own)
    return [subjects.zero_ablation_value(model, subject) for subject in own]


# --- passes ---------------------------------------------------------------------------------------


def trace(model: KnownModel, token_NT: np.ndarray, sites: Collection[Any]) -> Traced:
    """Run a forward pass and keep at least the states at the sites."""
    if isinstance(model, Parted):
        return part_passes.trace(model, token_NT, sites)
    return propagation.trace(model, token_NT)


def propagate(model: KnownModel, found: Any, edit: Edit[Any]) -> ReachedStates:
    """Return the last hidden states at every position that the edit can reach."""
    if isinstance(model, Parted):
        return part_passes.propagate(model, found, edit)
    return propagation.propagate(model, found, edit)


def unembedding_of(model: KnownModel) -> Unembedding:
    if isinstance(model, Parted):
        return Unembedding(*model.unembedding)
    return Unembedding(model.decoder.weight, model.decoder.bias)


def device_of(model: KnownModel) -> torch.device:
    return model.device if isinstance(model, Parted) else model.decoder.weight.device
