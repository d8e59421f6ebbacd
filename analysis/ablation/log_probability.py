"""What ablation costs the model: log-probabilities of the true next tokens, without and with it.

The clean pass is done once for all subjects. For each subject, only positions whose last hidden
state can have moved take logits at all; the others change by exactly 0.

Shapes: N datum, T position, S subject, V token of the vocabulary, U datum of a chunk,
M position of any pair of subject and datum, Z pair of subject and token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.batches import Chunk, chunks
from analysis.ablation.propagation import Edit, Trace, propagate, trace
from analysis.ablation.replacement import DATUMS_AT_ONCE, AblationPlan, Value
from analysis.ablation.subjects import Subject
from analysis.ablation.unembedding import Unembedding
from analysis.jobs.sweep import Sweep, in_turn
from capture.models.transformer import LanguageModel

Report = Callable[[int, int], None]
"""Told now and then: how much is done, of how much."""


class TokenChanges(NamedTuple):
    """Changes of log p(target), ablated - clean, by target token."""

    change_SV: np.ndarray
    """Their sum, nats, float64."""
    square_SV: np.ndarray
    """The sum of their squares, float64."""
    count_V: np.ndarray
    """Positions of each token, whether they change or not, int64."""


@torch.inference_mode()
def log_probability_changes(
    model: LanguageModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    subjects: Sequence[Subject],
    *,
    value: Value = "zero",
    num_tokens: int,
    mean_text_NT: np.ndarray | None = None,
    seed: int = 0,
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> TokenChanges:
    """What ablating each subject does to each token as a target, over a whole text.

    Means (``value="mean"``) are over
    ``mean_text_NT``, by default over ``token_NT`` itself. ``report`` is told of pairs of subject
    and datum. Raises ``UnitError`` for a subject that the model lacks.
    """
    text_NT = token_NT if mean_text_NT is None else mean_text_NT
    plan = AblationPlan.of(model, token_NT, subjects, value, text_NT, seed)
    datums = [np.arange(len(token_NT))] * len(subjects)
    change_Z, square_Z = np.zeros((2, len(subjects) * num_tokens))
    for piece in probability_changes(model, token_NT, target_NT, plan, datums, report, sweep):
        target_M = target_NT[piece.datum_M, piece.position_M]
        place_M = piece.subject_M.astype(np.int64) * num_tokens + target_M
        change_M = piece.change_M.astype(np.float64)
        np.add.at(change_Z, place_M, change_M)
        np.add.at(square_Z, place_M, change_M**2)
    change_SV, square_SV = (
        sum_Z.reshape(len(subjects), num_tokens) for sum_Z in (change_Z, square_Z)
    )
    return TokenChanges(change_SV, square_SV, np.bincount(target_NT.ravel(), minlength=num_tokens))


class ProbabilityChanges(NamedTuple):
    """Changes of log p(target), nats: ablated - clean. Positions that are missing have 0."""

    subject_M: np.ndarray
    """Place in the list of subjects, int32."""
    datum_M: np.ndarray
    """int32"""
    position_M: np.ndarray
    """int16"""
    change_M: np.ndarray
    """float32"""


def probability_changes(
    model: LanguageModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    plan: AblationPlan,
    datums: Sequence[np.ndarray],
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> Iterator[ProbabilityChanges]:
    """All changes, each subject of the plan ablated on its own datums; a piece a chunk of datums.

    A piece takes 14 bytes a position of a chunk's pairs of subject and datum, at most.
    """
    num_pairs, done = sum(map(len, datums)), 0
    items = list(chunks(datums, DATUMS_AT_ONCE))
    pieces = sweep(ScoreChunk(model, plan, token_NT, target_NT), items)
    for chunk, piece in zip(items, pieces, strict=True):
        yield piece
        done += chunk.num_pairs
        if report:
            report(done, num_pairs)


@dataclass(frozen=True, eq=False)
class ScoreChunk:
    """The work over chunks."""

    model: LanguageModel
    plan: AblationPlan
    token_NT: np.ndarray
    target_NT: np.ndarray

    def to(self, device: str) -> "ScoreChunk":
        model, plan = self.model.to(device), self.plan.to(device)
        return ScoreChunk(model, plan, self.token_NT, self.target_NT)

    @cached_property
    def unembedding(self) -> Unembedding:
        return Unembedding(self.model.decoder)

    @torch.inference_mode()
    def __call__(self, chunk: Chunk) -> ProbabilityChanges:
        token_UT, target_UT = self.token_NT[chunk.datum_U], self.target_NT[chunk.datum_U]
        clean = CleanProbability.of(self.model, self.unembedding, token_UT, target_UT)
        lender = self.plan.lender(self.model, self.token_NT, chunk.datum_U)
        found = [no_changes()]
        for group in self.plan.groups:
            edits = group.edit(clean.trace, lender, *chunk.pairs(group)).batches()
            found += [self.changes(clean, edit, chunk.datum_U) for edit in edits]
        return ProbabilityChanges(*map(np.concatenate, zip(*found, strict=True)))

    def changes(
        self, clean: "CleanProbability", edit: Edit, datum_U: np.ndarray
    ) -> ProbabilityChanges:
        """The changes that one edit makes."""
        moved = propagate(self.model, clean.trace, edit)
        row_M = edit.row_Q[moved.pair_M]
        where = (row_M, moved.position_M)
        after_M, _ = self.unembedding.log_probability(
            moved.hidden_MD, clean.target_UT[where], clean.normaliser_UT[where]
        )
        change_M = after_M - clean.chance_UT[where]
        tensors = (edit.subject_Q[moved.pair_M], row_M, moved.position_M, change_M)
        subject_M, row_M, position_M, change_M = (tensor.cpu().numpy() for tensor in tensors)
        columns = (subject_M, datum_U[row_M], position_M, change_M)
        pairs = zip(columns, COLUMN_TYPES, strict=True)
        return ProbabilityChanges(*(column_M.astype(kind) for column_M, kind in pairs))


def no_changes() -> ProbabilityChanges:
    return ProbabilityChanges(*(np.empty(0, kind) for kind in COLUMN_TYPES))


COLUMN_TYPES = (np.int32, np.int32, np.int16, np.float32)
"""Types of the columns of ``ProbabilityChanges``."""


class CleanProbability(NamedTuple):
    """Some datums, nothing ablated."""

    trace: Trace
    target_UT: Tensor
    chance_UT: Tensor
    """log p(target)."""
    normaliser_UT: Tensor
    """log Σ exp(logit)."""

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        unembedding: Unembedding,
        token_UT: np.ndarray,
        target_UT: np.ndarray,
    ) -> "CleanProbability":
        found = trace(model, token_UT)
        target = torch.from_numpy(target_UT).long().to(found.hidden_NTD.device)
        pair = unembedding.log_probability(found.hidden_NTD.flatten(0, 1), target.flatten())
        return cls(found, target, *(value_M.view(target.shape) for value_M in pair))
