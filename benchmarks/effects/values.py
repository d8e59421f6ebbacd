"""The effects of many neurons and heads at many weights, faster than one query at a time.

The log-probabilities of the whole model are shared by all queries, and those of an ablated model
are computed for the datums and positions that a query scores. Values are those of the queries.

Shapes: N datum, T position, V vocabulary, Q query, M model, P scored position.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.influence.queries.effects import EffectQuery, weight_mask
from analysis.influence.queries.material import QueryMaterial, as_tokens
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel

DATUMS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Effects:
    """Zero-ablation effects of a run's queries on one held-out split."""

    run: Run
    queries: Sequence[Query]

    @cached_property
    def material(self) -> QueryMaterial:
        return QueryMaterial(self.run)

    @cached_property
    def model(self) -> LanguageModel:
        found = self.run.network()
        assert isinstance(found, LanguageModel)
        return found

    @cached_property
    def asked(self) -> list[EffectQuery]:
        keys = [{k: v for k, v in q.description.items() if k != "kind"} for q in self.queries]
        return [EffectQuery(**own) for own in keys]

    @cached_property
    def text(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the split, [N, T]."""
        (split,) = {own.split for own in self.asked}
        found = self.material.text(split)  # pyright: ignore[reportArgumentType]
        return as_tokens(found.token_NT), as_tokens(found.target_NT)

    @cached_property
    def scored(self) -> list[Tensor]:
        """Positions that each query scores, bool [N, T]."""
        found = []
        for own in self.asked:
            scored_NT = self.text[1] == self.material.token(own.token or "")
            used = torch.where(scored_NT.any(1))[0]
            scored_NT[used[own.max_datums :]] = False
            found.append(scored_NT)
        return found

    @torch.no_grad()
    def values(self, weights: Mapping[str, Tensor]) -> np.ndarray:
        """Return the value of each query at these weights, [Q]."""
        everything = torch.ones_like(self.text[1], dtype=torch.bool)
        clean_NT = torch.full(self.text[1].shape, torch.nan)
        clean_NT[everything] = self.log_probabilities(weights, everything)
        found = []
        for own, scored_NT in zip(self.asked, self.scored, strict=True):
            ablated = weight_mask(self.material, own).ablate(weights)
            changed_P = self.log_probabilities(ablated, scored_NT)
            found.append(float((clean_NT[scored_NT] - changed_P).double().mean()))
        return np.array(found)

    def log_probabilities(self, weights: Mapping[str, Tensor], scored_NT: Tensor) -> Tensor:
        """Return log p of the targets at the scored positions, in order, [P]."""
        self.model.load_state_dict(dict(weights))
        token_NT, target_NT = self.text
        used, parts = torch.where(scored_NT.any(1))[0], []
        for datum_N in used.split(DATUMS_AT_ONCE):
            hidden_NTD = self.model.hidden(token_NT[datum_N], Masks.none())
            own_NT = scored_NT[datum_N]
            logit_PV = self.model.decoder(hidden_NTD[own_NT])
            parts.append(-F.cross_entropy(logit_PV, target_NT[datum_N][own_NT], reduction="none"))
        return torch.cat(parts)

    def at(self, models: Iterable[Mapping[str, Tensor]]) -> np.ndarray:
        """Return the values at several weights, [M, Q]."""
        return np.stack([self.values(weights) for weights in models])
