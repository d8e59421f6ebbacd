"""What the model predicts with and without a subject: exactly what a naive forward pass would say.

Everything before the subject is computed once per datum for all subjects
(``analysis.ablation.propagation``), and most predictions are certain without all logits, which cost
most (``analysis.ablation.prediction``).

Shapes: N datum, T position, S subject, M position of any subject and datum, U distinct datum,
Q pair of a subject and a datum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from analysis.ablation.batches import Chunk, chunks
from analysis.ablation.prediction import Prediction
from analysis.ablation.propagation import Edit, ReachedStates, propagate, trace
from analysis.ablation.replacement import DATUMS_AT_ONCE, AblationPlan
from analysis.ablation.unembedding import Unembedding
from analysis.jobs.sweep import Sweep, in_turn
from capture.models.transformer import LanguageModel

Report = Callable[[int, int], None]
"""Told now and then: how much is done, of how much."""


class PredictionChanges(NamedTuple):
    """Predictions that differ once a subject is ablated; by subject, datum, position."""

    subject_M: np.ndarray
    """Place in the list of subjects that was asked about."""
    datum_M: np.ndarray
    position_M: np.ndarray
    after_M: np.ndarray
    """The token predicted without the subject."""


@dataclass(frozen=True, eq=False)
class AblatedPredictions:
    """Predictions of some datums, and those that ablation changed."""

    datum_U: np.ndarray
    """Distinct datums, ascending."""
    before_UT: np.ndarray
    """The token predicted at every position, nothing ablated, int32."""
    changes: PredictionChanges
    certified: float
    """Share of all positions, over all subjects, that went without all logits."""

    def before(self, datum_K: np.ndarray) -> np.ndarray:
        """Predictions for some of the datums, nothing ablated, [K, T]."""
        return self.before_UT[np.searchsorted(self.datum_U, datum_K)]


def ablated_predictions(
    model: LanguageModel,
    token_NT: np.ndarray,
    plan: AblationPlan,
    datums: Sequence[np.ndarray],
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> AblatedPredictions:
    """Ablate each subject of the plan, one at a time, on its own datums (distinct ones).

    The predictions equal those of a naive forward pass with the weights set to zero, but where two
    logits are nearer to each other than float32 tells apart. ``report`` is told of pairs of subject
    and datum.
    """
    found, before, num_full, done = [no_changes()], [], 0, 0
    items = list(chunks(datums, DATUMS_AT_ONCE))
    num_pairs = sum(map(len, datums))
    for chunk, silenced in zip(
        items, sweep(AblateChunk(model, plan, token_NT), items), strict=True
    ):
        before.append(silenced.before_UT)
        found.append(silenced.changes)
        num_full += silenced.num_full
        done += chunk.num_pairs
        if report:
            report(done, num_pairs)
    certified = 1 - num_full / (num_pairs * token_NT.shape[1])
    datum_U = np.unique(np.concatenate(datums))
    return AblatedPredictions(datum_U, np.concatenate(before), merge_sorted(found), certified)


class ChunkPredictions(NamedTuple):
    """A chunk: predictions of its datums, those that ablation changed, and what these cost."""

    before_UT: np.ndarray
    changes: PredictionChanges
    num_full: int
    """Positions that took the logits of the whole vocabulary."""


@dataclass(frozen=True, eq=False)
class AblateChunk:
    """The work over chunks."""

    model: LanguageModel
    plan: AblationPlan
    token_NT: np.ndarray

    def to(self, device: str) -> "AblateChunk":
        return AblateChunk(self.model.to(device), self.plan.to(device), self.token_NT)

    @cached_property
    def unembedding(self) -> Unembedding:
        return Unembedding(self.model.decoder)

    @torch.inference_mode()
    def __call__(self, chunk: Chunk) -> ChunkPredictions:
        clean = trace(self.model, self.token_NT[chunk.datum_U])
        prediction = Prediction.of(self.unembedding, clean.hidden_NTD.flatten(0, 1))
        before_UT = prediction.token_M.view(len(chunk.datum_U), -1).int().cpu().numpy()
        lender = self.plan.lender(self.model, self.token_NT, chunk.datum_U)
        found, num_full = [no_changes()], 0
        for group in self.plan.groups:
            for edit in group.edit(clean, lender, *chunk.pairs(group)).batches():
                moved = propagate(self.model, clean, edit)
                changes, full = prediction_changes(self.unembedding, prediction, edit, moved)
                found.append(changes._replace(datum_M=chunk.datum_U[changes.datum_M]))
                num_full += full
        return ChunkPredictions(
            before_UT, PredictionChanges(*map(np.concatenate, zip(*found, strict=True))), num_full
        )


def no_changes() -> PredictionChanges:
    return PredictionChanges(*(np.empty(0, np.int64) for _ in PredictionChanges._fields))


def prediction_changes(
    unembedding: Unembedding, prediction: Prediction, edit: Edit, moved: ReachedStates
) -> tuple[PredictionChanges, int]:
    """The edit's changed predictions, with places in the chunk for datums.

    And how many positions took the logits of the whole vocabulary.
    """
    positions = edit.change_QTB.shape[1]
    row_M = edit.row_Q[moved.pair_M]
    place_M = row_M * positions + moved.position_M
    after_M, num_full = prediction.after(unembedding, place_M, moved.hidden_MD)
    own_M = after_M != prediction.token_M[place_M]
    columns = (edit.subject_Q[moved.pair_M], row_M, moved.position_M, after_M)
    return PredictionChanges(*(column_M[own_M].cpu().numpy() for column_M in columns)), num_full


def merge_sorted(pieces: Sequence[PredictionChanges]) -> PredictionChanges:
    """All changes, by subject, datum and position."""
    whole = PredictionChanges(*map(np.concatenate, zip(*pieces, strict=True)))
    order_M = np.lexsort((whole.position_M, whole.datum_M, whole.subject_M))
    return PredictionChanges(*(column_M[order_M] for column_M in whole))
