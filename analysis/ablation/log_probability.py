"""Changes of the true next tokens' log-probabilities under ablation.

The clean forward pass of a datum runs once for all subjects. For each subject, only positions whose
last hidden state can change need logits; every other position changes by exactly 0.

Shapes: N datum, T position, S subject, V token of the vocabulary, U datum of a chunk,
M position of any (subject, datum) pair, Z (subject, token) pair.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.ablation.ablatable import propagate, trace, unembedding_of
from analysis.ablation.batches import Chunk, chunks
from analysis.ablation.edits import Edit, Traced
from analysis.ablation.replacement import DATUMS_AT_ONCE, AblationPlan, Value
from analysis.ablation.subjects import Subject
from analysis.ablation.unembedding import Unembedding
from analysis.jobs.sweep import Sweep, in_turn
from capture.parts import KnownModel

REPORTS = 32
"""Number of chunks of a text that is large enough, and so of reports of progress."""
MIN_DATUMS = 8
"""Smallest number of datums in a chunk, because each chunk takes a forward pass of its own."""

Report = Callable[[int, int], None]
"""Called from time to time with the amount done and the total."""


class TokenChanges(NamedTuple):
    """Changes of log p(target), ablated − clean, summed by target token."""

    change_SV: np.ndarray
    """Sum of the changes, nats, float64."""
    square_SV: np.ndarray
    """Sum of their squares, nats², float64."""
    count_V: np.ndarray
    """Number of positions with each token as target, changed or not, int64."""


@torch.inference_mode()
def log_probability_changes(
    model: KnownModel,
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
    """Ablate each subject on a whole text and sum log p(target) changes by target token.

    ``num_tokens`` is the size of the vocabulary. Means (``value="mean"``) are over
    ``mean_text_NT``, by default over ``token_NT``. ``report`` is called with the number of
    (subject, datum) pairs done and their total. Raises ``UnitError`` for a subject that the model
    does not have.
    """
    text_NT = token_NT if mean_text_NT is None else mean_text_NT
    plan = AblationPlan.of(model, token_NT, subjects, value, text_NT, seed)
    (found,) = changes_by_label(
        model, token_NT, target_NT, plan, [target_NT], num_tokens, report, sweep
    )
    return found


@torch.inference_mode()
def changes_by_label(
    model: KnownModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    plan: AblationPlan,
    labels: Sequence[np.ndarray],
    num_tokens: int,
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> list[TokenChanges]:
    """Ablate each subject on a whole text once and sum log p(target) changes by several labels.

    Each of ``labels`` is a token id for every position, [N, T]: the targets themselves, or a
    permutation of them as a null. Returns one result per entry of ``labels``.
    """
    num_subjects = sum(len(group.subject_G) for group in plan.groups)
    datums = [np.arange(len(token_NT))] * num_subjects
    sums = [np.zeros((2, num_subjects * num_tokens)) for _ in labels]
    for piece in probability_changes(model, token_NT, target_NT, plan, datums, report, sweep):
        change_M = piece.change_M.astype(np.float64)
        for label_NT, (change_Z, square_Z) in zip(labels, sums, strict=True):
            label_M = label_NT[piece.datum_M, piece.position_M]
            index_M = piece.subject_M.astype(np.int64) * num_tokens + label_M
            np.add.at(change_Z, index_M, change_M)
            np.add.at(square_Z, index_M, change_M**2)
    return [
        TokenChanges(
            change_Z.reshape(num_subjects, num_tokens),
            square_Z.reshape(num_subjects, num_tokens),
            np.bincount(label_NT.ravel(), minlength=num_tokens),
        )
        for label_NT, (change_Z, square_Z) in zip(labels, sums, strict=True)
    ]


class ProbabilityChanges(NamedTuple):
    """Changes of log p(target), ablated − clean, nats; 0 at positions that are not listed."""

    subject_M: np.ndarray
    """Index into the list of subjects, int32."""
    datum_M: np.ndarray
    """int32"""
    position_M: np.ndarray
    """int16"""
    change_M: np.ndarray
    """float32"""


def probability_changes(
    model: KnownModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    plan: AblationPlan,
    datums: Sequence[np.ndarray],
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> Iterator[ProbabilityChanges]:
    """Ablate each subject of the plan on its own datums; yield the changes chunk by chunk.

    ``datums`` lists the datums of each subject. A piece takes at most 14 bytes per position of the
    chunk's (subject, datum) pairs.
    """
    num_pairs, done = sum(map(len, datums)), 0
    items = list(chunks(datums, datums_per_chunk(len(token_NT))))
    pieces = sweep(ScoreChunk(model, plan, token_NT, target_NT), items)
    for chunk, piece in zip(items, pieces, strict=True):
        yield piece
        done += chunk.num_pairs
        if report:
            report(done, num_pairs)


def datums_per_chunk(num_datums: int) -> int:
    """Return a chunk's number of datums: small enough that progress is reported ``REPORTS`` times.

    All subjects go through a chunk together, so even a few datums fill the batches.
    """
    return min(DATUMS_AT_ONCE, max(MIN_DATUMS, -(-num_datums // REPORTS)))


@dataclass(frozen=True, eq=False)
class ScoreChunk:
    """Sweep work: the log-probability changes of every subject on its datums of a chunk."""

    model: KnownModel
    plan: AblationPlan
    token_NT: np.ndarray
    target_NT: np.ndarray

    def to(self, device: str) -> "ScoreChunk":
        model, plan = self.model.to(device), self.plan.to(device)
        return ScoreChunk(model, plan, self.token_NT, self.target_NT)

    @cached_property
    def unembedding(self) -> Unembedding:
        return unembedding_of(self.model)

    @torch.inference_mode()
    def __call__(self, chunk: Chunk) -> ProbabilityChanges:
        token_UT, target_UT = self.token_NT[chunk.datum_U], self.target_NT[chunk.datum_U]
        found = trace(self.model, token_UT, self.plan.sites)
        clean = CleanProbability.of(found, self.unembedding, target_UT)
        resampled = self.plan.resampled_states(self.model, self.token_NT, chunk.datum_U)
        pieces, most = [no_changes()], found.positions_at_once
        for group in self.plan.groups:
            edits = group.edit(found, resampled, *chunk.pairs(group)).batches(most)
            pieces += [self.changes(clean, edit, chunk.datum_U) for edit in edits]
        return ProbabilityChanges(*map(np.concatenate, zip(*pieces, strict=True)))

    def changes(
        self, clean: "CleanProbability", edit: Edit, datum_U: np.ndarray
    ) -> ProbabilityChanges:
        """Return the changes that one edit makes; ``datum_U`` holds the chunk's datums."""
        reached = propagate(self.model, clean.trace, edit)
        row_M = edit.row_Q[reached.pair_M]
        where = (row_M, reached.position_M)
        # The clean normaliser is a good guess of the ablated one and saves a pass over the logits.
        after_M, _ = self.unembedding.log_probability(
            reached.hidden_MD, clean.target_UT[where], clean.normaliser_UT[where]
        )
        change_M = after_M - clean.log_p_UT[where]
        tensors = (edit.subject_Q[reached.pair_M], row_M, reached.position_M, change_M)
        subject_M, row_M, position_M, change_M = (tensor.cpu().numpy() for tensor in tensors)
        columns = (subject_M, datum_U[row_M], position_M, change_M)
        pairs = zip(columns, COLUMN_TYPES, strict=True)
        return ProbabilityChanges(*(column_M.astype(kind) for column_M, kind in pairs))


def no_changes() -> ProbabilityChanges:
    return ProbabilityChanges(*(np.empty(0, kind) for kind in COLUMN_TYPES))


COLUMN_TYPES = (np.int32, np.int32, np.int16, np.float32)
"""Types of the columns of ``ProbabilityChanges``."""


class CleanProbability(NamedTuple):
    """The clean forward pass of some datums and the log-probabilities of their targets."""

    trace: Traced
    target_UT: Tensor
    log_p_UT: Tensor
    """log p(target), nats."""
    normaliser_UT: Tensor
    """log Σ exp(logit), nats."""

    @classmethod
    def of(
        cls, found: Traced, unembedding: Unembedding, target_UT: np.ndarray
    ) -> "CleanProbability":
        target = torch.from_numpy(target_UT).long().to(found.hidden_NTD.device)
        pair = unembedding.log_probability(found.hidden_NTD.flatten(0, 1), target.flatten())
        return cls(found, target, *(value_M.view(target.shape) for value_M in pair))
