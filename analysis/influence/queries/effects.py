"""Queries about the effect of a neuron, a row or an attention head on a token.

The effect is the mean fall of the token's log-probability when the subject is ablated, as
``ontogeny ablate`` measures it: its weights are set to zero in the same forward pass (a row keeps
its bias), or its entries are replaced by their mean or by resampled values (``replacement``). It is
positive if the subject makes the token more probable. Both log-probabilities depend on the weights,
and so does the query's gradient.

Shapes: N datum, T position, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast, get_args

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.ablatable import place_of, require_subjects
from analysis.ablation.replacement import VALUES, Value
from analysis.ablation.subjects import Level, Subject, entries_of
from analysis.influence.queries.material import QueryMaterial, as_tokens
from analysis.influence.queries.query import Query, Weights
from analysis.influence.queries.replacement import Replacement
from analysis.influence.queries.scored_text import (
    DATUMS_AT_ONCE,
    Logits,
    ScoredText,
    log_probabilities,
)
from analysis.influence.queries.specification import Specification, chosen_split
from analysis.influence.queries.texts import require_positions
from analysis.run.names import nearest
from analysis.run.stored_run import Split
from capture.errors import ConfigError, UnitError, at_least
from capture.models.transformer import LanguageModel

LEVELS: tuple[Level, ...] = get_args(Level)
LEAST_POSITIONS = 10
"""Positions where the strongest token must come next, if any token has as many."""
MOST_DATUMS = 100
AblatedModel = Callable[[np.ndarray], Logits]
"""Datums of a split in, the ablated model as a function of weights and their input tokens out."""


@dataclass(frozen=True)
class WeightMask:
    """A subject as entries of one weight that ablation sets to zero."""

    unit: str
    axis: int
    entries: range
    """Indices along the axis."""

    def ablate(self, weights: Weights) -> dict[str, Tensor]:
        """Return the weights with these entries 0, differentiable in the others."""
        whole = weights[self.unit]
        kept = torch.ones(whole.shape[self.axis], dtype=whole.dtype, device=whole.device)
        kept[self.entries.start : self.entries.stop] = 0
        shape = [-1 if axis == self.axis else 1 for axis in range(whole.dim())]
        return {**weights, self.unit: whole * kept.view(shape)}


@dataclass(frozen=True, kw_only=True)
class EffectQuery(Specification):
    """Mean fall of a token's log-probability on held-out text when a subject is ablated."""

    kind: ClassVar[str] = "effect"
    level: str
    """neuron (an input of a weight: a column), row (an output) or head."""
    unit: str
    number: int
    value: str = "zero"
    """What replaces the subject: zero weights, its mean over the training text, or a resampled
    value."""
    token: str | None = None
    """Token to predict; default: that whose log-probability falls most in the run's last model."""
    split: str = ""
    """Default: validation, else test, else train."""
    max_datums: int = MOST_DATUMS
    """Datums of the split, from the first, among which the token is looked for."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError("effect.level", f"got {self.level!r}, wanted {', '.join(LEVELS)}")
        if self.value not in VALUES:
            raise ConfigError("effect.value", f"got {self.value!r}, wanted {', '.join(VALUES)}")
        at_least("effect.max_datums", self.max_datums, 1)

    def title(self) -> str:
        how = "" if self.value == "zero" else f" ({self.value})"
        on = f" on {self.token}" if self.token else ""
        return f"{self.level} {self.unit}:{self.number}{how}{on}"

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``UnitError`` or ``ConfigError`` for a subject or token that does not exist."""
        split = chosen_split(material, self.split)
        text, ablated = material.text(split), ablated_model(material, self, split)
        token = self.token
        if token is None:
            token = strongest_token(material, self, ablated)
        wanted = material.token(token)
        scored_NT = material.scored_NT(text.target_NT) & (text.target_NT == wanted)
        scored_NT[np.flatnonzero(scored_NT.any(1))[self.max_datums :]] = False
        require_positions(material, token, split, scored_NT)
        parts = ScoredText.mean(text.token_NT, text.target_NT, scored_NT).parts(material)
        used = np.flatnonzero(scored_NT.any(1))
        for start in range(0, len(used), DATUMS_AT_ONCE):
            own = used[start : start + DATUMS_AT_ONCE]
            weight_NT = torch.from_numpy(-1.0 * scored_NT[own] / scored_NT.sum())
            piece = as_tokens(text.token_NT[own]), as_tokens(text.target_NT[own])
            parts += ScoredText(*piece, weight_NT).parts(material, ablated(own))
        named = EffectQuery(**{**vars(self), "token": token, "split": split})
        return named.query(parts, "higher")


def ablated_model(material: QueryMaterial, subject: EffectQuery, split: Split) -> AblatedModel:
    """Return a run's model in which a subject is ablated.

    Raises ``UnitError`` for a subject that does not exist, and what ``Replacement.of`` raises.
    """
    mask = weight_mask(material, subject)
    if subject.value != "zero":
        # __post_init__ has checked both words.
        level, value = cast(Level, subject.level), cast(Value, subject.value)
        token_NT = material.text(split).token_NT
        own = Subject(subject.unit, subject.number, level)
        return Replacement.of(material, own, value, token_NT).logits_of
    return lambda _: lambda weights, token_NT: material.logits(mask.ablate(weights), token_NT)


def weight_mask(material: QueryMaterial, subject: EffectQuery) -> WeightMask:
    """Return the weights of a subject; raise ``UnitError`` if the model does not have it."""
    if subject.level == "head":
        return head_mask(material, subject)
    shapes = {name: shape for name, shape in material.shapes.items() if len(shape) == 2}
    if subject.unit not in shapes:
        hint = nearest(subject.unit, list(shapes))
        raise UnitError(subject.unit, f"has no {subject.level}s", hint)
    inputs = 0 if subject.unit in material.transposed else 1
    axis = inputs if subject.level == "neuron" else 1 - inputs
    size = shapes[subject.unit][axis]
    require_number(subject, size)
    return WeightMask(subject.unit, axis, range(subject.number, subject.number + 1))


def head_mask(material: QueryMaterial, subject: EffectQuery) -> WeightMask:
    """Return the inputs that read a head, of the weight that mixes the heads.

    Raises ``RunError`` for a perceptron, ``ConfigError`` if the model's parts are not found.
    """
    model = material.parted
    own = Subject(subject.unit, subject.number, "head")
    require_subjects(model, [own])
    if isinstance(model, LanguageModel):
        return WeightMask(f"{subject.unit}.out_proj.weight", 1, entries_of(model, own))
    weight = model.parts.attention_called(subject.unit).out
    axis = 0 if model.parts.uses[weight].transposed else 1
    return WeightMask(weight, axis, place_of(model, own)[1])


def require_number(subject: EffectQuery, size: int) -> None:
    """Raise ``UnitError`` unless the subject's number exists."""
    if not 0 <= subject.number < size:
        problem = f"does not exist: the unit's {subject.level}s are 0 to {size - 1}"
        raise UnitError(f"{subject.unit} {subject.level} {subject.number}", problem)


@torch.no_grad()
def strongest_token(material: QueryMaterial, subject: EffectQuery, ablated: AblatedModel) -> str:
    """Return the token whose mean log-probability falls most when the subject is ablated.

    Measured in the run's last model on the first ``max_datums`` datums of the split. A token must
    come next at ``LEAST_POSITIONS`` positions, or as often as the most frequent one.
    """
    weights = dict(material.model.named_parameters())
    text = material.text(chosen_split(material, subject.split))
    token_NT = as_tokens(text.token_NT[: subject.max_datums])
    num_scored = int(material.scored_NT(text.target_NT[:1]).sum())
    target_NT = as_tokens(text.target_NT[: subject.max_datums, -num_scored:])
    sum_V = torch.zeros(len(material.run.tokens), dtype=torch.float64)
    for datum_N in np.array_split(np.arange(len(token_NT)), -(-len(token_NT) // DATUMS_AT_ONCE)):
        token, target = token_NT[datum_N], target_NT[datum_N]
        clean, changed = (
            log_probabilities(model(weights, token), target)
            for model in (material.logits, ablated(datum_N))
        )
        sum_V.index_add_(0, target.flatten(), (clean - changed).flatten().double().cpu())
    count_V = torch.bincount(target_NT.flatten(), minlength=len(sum_V))
    least = min(LEAST_POSITIONS, int(count_V.max()))
    mean_V = (sum_V / count_V.clamp(min=1)).masked_fill(count_V < least, -torch.inf)
    return material.run.tokens[int(mean_V.argmax())]
