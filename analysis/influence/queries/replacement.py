"""Ablation by other values than zero, as ``ontogeny ablate --value`` replaces them.

The values (the entry's mean over the training text, or its value at a random other position) are
those of the run's last model. They stay the same when the query is asked of other weights, as the
value 0 does.

Shapes: N datum of the split, K some of them, T position, B entry of a subject, C entry of a state.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.ablatable import require_subjects
from analysis.ablation.propagation import trace
from analysis.ablation.replacement import DATUMS_AT_ONCE, ResamplingSources, Value
from analysis.ablation.subjects import (
    Point,
    Subject,
    SubjectSite,
    entries_of,
    site_of,
)
from analysis.influence.queries.material import QueryMaterial
from analysis.influence.queries.query import Weights
from analysis.influence.queries.scored_text import Logits
from capture.errors import ConfigError, RunError
from capture.models.transformer import LanguageModel

End = Literal["input", "output"]
PLACES: Mapping[Point, tuple[str, End]] = {
    "attention_in": ("self_attn", "input"),
    "heads_out": ("self_attn.out_proj", "input"),
    "attention_out": ("self_attn.out_proj", "output"),
    "mlp_in": ("linear1", "input"),
    "before_relu": ("linear1", "output"),
    "after_relu": ("linear2", "input"),
    "mlp_out": ("linear2", "output"),
}
"""The module of a layer that has the state as its input or output; ``qkv`` has none."""
SEED = 0
"""Seed of resampling, the default of ``ontogeny ablate``."""


@dataclass(frozen=True, eq=False)
class Replacement:
    """Entries of a state, and what replaces them in each datum of a split."""

    material: QueryMaterial
    site: SubjectSite
    entries: range
    value_NTB: Tensor

    @classmethod
    def of(
        cls, material: QueryMaterial, subject: Subject, value: Value, token_NT: np.ndarray
    ) -> "Replacement":
        """Take the values of a subject for a split with these input tokens.

        Raises ``RunError`` for another model than Ontogeny's transformer, ``UnitError`` for a
        subject that it does not have, and ``ConfigError`` for a row of ``in_proj``.
        """
        model = material.model
        if not isinstance(model, LanguageModel):
            problem = (
                f"has another model; the value {value} is known only of Ontogeny's transformer"
            )
            raise RunError(material.run.uri, problem, "Leave out value: zero works for any model")
        require_subjects(model, [subject])
        site, entries = site_of(subject), entries_of(model, subject)
        if site.point not in PLACES:
            problem = f"got {value!r}, but rows of {subject.unit} can only be set to zero"
            raise ConfigError("effect.value", problem, "Leave out value, or ask for a neuron")
        if value == "mean":
            mean_B = material.means[site][entries.start : entries.stop]
            return cls(material, site, entries, mean_B.expand(*token_NT.shape, -1))
        return cls(material, site, entries, resampled_entries(model, token_NT, site, entries))

    def logits_of(self, datum_K: np.ndarray) -> Logits:
        """Return the ablated model as a function of weights and the input tokens of some datums."""
        return partial(self.logits, datum_K)

    def logits(self, datum_K: np.ndarray, weights: Weights, token_KT: Tensor) -> Tensor:
        value_KTB = self.value_NTB[torch.from_numpy(datum_K)]
        with replaced(self.material.model, self.site, self.entries, value_KTB):
            return self.material.logits(weights, token_KT)


@torch.no_grad()
def resampled_entries(
    model: LanguageModel, token_NT: np.ndarray, site: SubjectSite, entries: range
) -> Tensor:
    """Return each entry's value at a random position of another datum, [N, T, B]."""
    sources = ResamplingSources.draw(token_NT.shape, SEED)
    pieces = []
    for start in range(0, len(token_NT), DATUMS_AT_ONCE):
        own = slice(start, start + DATUMS_AT_ONCE)
        state_KTC = trace(model, token_NT[sources.datum_N[own]]).at(site)
        state_KTB = state_KTC[..., entries.start : entries.stop]
        position_KT = torch.from_numpy(sources.position_NT[own]).to(state_KTB.device)
        pieces.append(state_KTB.gather(1, position_KT[..., None].expand_as(state_KTB)))
    return torch.cat(pieces)


@contextmanager
def replaced(model: Any, site: SubjectSite, entries: range, value_KTB: Tensor) -> Iterator[None]:
    """Replace entries of a state in every forward pass within; differentiable in the others."""
    name, end = PLACES[site.point]
    module = model.get_submodule(f"layers.{site.layer}.{name}")

    def put(state_KTC: Tensor) -> Tensor:
        before, after = state_KTC[..., : entries.start], state_KTC[..., entries.stop :]
        return torch.cat([before, value_KTB.to(state_KTC), after], -1)

    if end == "input":
        handle = module.register_forward_pre_hook(lambda _, given: (put(given[0]), *given[1:]))
    else:
        handle = module.register_forward_hook(lambda _, given, out: put(out))
    try:
        yield
    finally:
        handle.remove()
