"""What ablation costs the model: log-probabilities of the true next tokens, without and with it.

The clean pass is done once for all subjects. For each subject, only positions whose last hidden
state can have moved take logits at all; the others change by exactly 0.

Shapes: N datum, T position, S subject, V token of the vocabulary, U datum of a chunk,
M position of any pair of subject and datum, Z pair of subject and token.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.chunks import chunks
from analysis.replacement import DATUMS_AT_ONCE, Plan, Value
from analysis.subjects import Subject
from analysis.tracing import Edit, Trace, go_on, trace
from analysis.unembedding import Unembedding
from capture.model import LanguageModel

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
) -> TokenChanges:
    """What ablating each subject does to each token as a target, over a whole text.

    Means (``value="mean"``) are over
    ``mean_text_NT``, by default over ``token_NT`` itself. ``report`` is told of pairs of subject
    and datum. Raises ``UnitError`` for a subject that the model lacks.
    """
    text_NT = token_NT if mean_text_NT is None else mean_text_NT
    plan = Plan.of(model, token_NT, subjects, value, text_NT, seed)
    datums = [np.arange(len(token_NT))] * len(subjects)
    target = torch.from_numpy(target_NT).to(model.decoder.weight.device)
    shape = 2, len(subjects) * num_tokens
    change_Z, square_Z = torch.zeros(shape, dtype=torch.float64, device=target.device)
    for piece in changes_in_pieces(model, token_NT, target_NT, plan, datums, report):
        target_M = target[piece.datum_M, piece.position_M]
        place_M, change_M = piece.subject_M * num_tokens + target_M, piece.change_M.double()
        change_Z.index_add_(0, place_M, change_M)
        square_Z.index_add_(0, place_M, change_M.square())
    change_SV, square_SV = (
        sum_Z.view(len(subjects), num_tokens).cpu().numpy() for sum_Z in (change_Z, square_Z)
    )
    return TokenChanges(change_SV, square_SV, np.bincount(target_NT.ravel(), minlength=num_tokens))


class ProbabilityChanges(NamedTuple):
    """Changes of log p(target), nats: ablated - clean. Positions that are missing have 0."""

    subject_M: Tensor
    """Place in the list of subjects."""
    datum_M: Tensor
    position_M: Tensor
    change_M: Tensor


@torch.inference_mode()
def changes_in_pieces(
    model: LanguageModel,
    token_NT: np.ndarray,
    target_NT: np.ndarray,
    plan: Plan,
    datums: Sequence[np.ndarray],
    report: Report | None = None,
) -> Iterator[ProbabilityChanges]:
    """All changes, each subject of the plan ablated on its own datums, in no special order."""
    unembedding = Unembedding(model.decoder)
    num_pairs, done = sum(map(len, datums)), 0
    for chunk in chunks(datums, DATUMS_AT_ONCE):
        token_UT, target_UT = token_NT[chunk.datum_U], target_NT[chunk.datum_U]
        clean = CleanProbability.of(model, unembedding, token_UT, target_UT)
        lender = plan.lender(model, token_NT, chunk.datum_U)
        datum_U = torch.from_numpy(chunk.datum_U).to(clean.target_UT.device)
        for group in plan.groups:
            for edit in group.edit(clean.trace, lender, *chunk.pairs(group)).batches():
                yield changes_of(model, unembedding, clean, edit, datum_U)
        done += chunk.num_pairs
        if report:
            report(done, num_pairs)


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


def changes_of(
    model: LanguageModel,
    unembedding: Unembedding,
    clean: CleanProbability,
    edit: Edit,
    datum_U: Tensor,
) -> ProbabilityChanges:
    """The changes that one edit makes."""
    moved = go_on(model, clean.trace, edit)
    row_M = edit.row_Q[moved.pair_M]
    where = (row_M, moved.position_M)
    after_M, _ = unembedding.log_probability(
        moved.hidden_MD, clean.target_UT[where], clean.normaliser_UT[where]
    )
    change_M = after_M - clean.chance_UT[where]
    return ProbabilityChanges(
        edit.subject_Q[moved.pair_M], datum_U[row_M], moved.position_M, change_M
    )
