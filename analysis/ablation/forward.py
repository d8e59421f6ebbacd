"""Predictions with and without each subject, equal to those of a naive forward pass.

The clean forward pass of a datum runs once for all subjects. Each ablation then resumes from the
edited state (``analysis.ablation.propagation``). Logits of the whole vocabulary cost the most;
bounds make most of them unnecessary (``analysis.ablation.prediction``).

Shapes: N datum, T position, M changed prediction of any subject and datum, U distinct datum,
K datum of a subject, Q (subject, datum) pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from analysis.ablation.ablatable import propagate, trace, unembedding_of
from analysis.ablation.batches import Chunk, chunks
from analysis.ablation.edits import Edit, ReachedStates
from analysis.ablation.prediction import Prediction
from analysis.ablation.replacement import DATUMS_AT_ONCE, AblationPlan
from analysis.ablation.unembedding import Unembedding
from analysis.jobs.sweep import Sweep, in_turn
from capture.parts import KnownModel

Report = Callable[[int, int], None]
"""Called from time to time with the amount done and the total."""


class PredictionChanges(NamedTuple):
    """Predictions that ablation changes, sorted by subject, datum, position."""

    subject_M: np.ndarray
    """Index into the list of subjects."""
    datum_M: np.ndarray
    position_M: np.ndarray
    after_M: np.ndarray
    """Token predicted with the subject ablated."""


@dataclass(frozen=True, eq=False)
class AblatedPredictions:
    """Clean predictions of some datums, and the predictions that ablation changes."""

    datum_U: np.ndarray
    """Distinct datums, ascending."""
    before_UT: np.ndarray
    """Token that the clean model predicts at every position, int32."""
    changes: PredictionChanges
    certified: float
    """Share of all (subject, position) pairs that were decided without all logits."""

    def before(self, datum_K: np.ndarray) -> np.ndarray:
        """Return the clean predictions of some of the datums, [K, T]."""
        return self.before_UT[np.searchsorted(self.datum_U, datum_K)]


def ablated_predictions(
    model: KnownModel,
    token_NT: np.ndarray,
    plan: AblationPlan,
    datums: Sequence[np.ndarray],
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> AblatedPredictions:
    """Ablate each subject of the plan by itself, on its own datums.

    ``datums`` lists the distinct datums of each subject. The predictions equal those of a naive
    forward pass, unless two logits differ by less than float32 can resolve. ``report`` is called
    with the number of (subject, datum) pairs done and their total.
    """
    found, before, num_full, done = [no_changes()], [], 0, 0
    items = list(chunks(datums, DATUMS_AT_ONCE))
    num_pairs = sum(map(len, datums))
    results = sweep(AblateChunk(model, plan, token_NT), items)
    for chunk, ablated in zip(items, results, strict=True):
        before.append(ablated.before_UT)
        found.append(ablated.changes)
        num_full += ablated.num_full
        done += chunk.num_pairs
        if report:
            report(done, num_pairs)
    certified = 1 - num_full / (num_pairs * token_NT.shape[1])
    datum_U = np.unique(np.concatenate(datums))
    return AblatedPredictions(datum_U, np.concatenate(before), merge_sorted(found), certified)


class ChunkPredictions(NamedTuple):
    """Results of one chunk of datums."""

    before_UT: np.ndarray
    changes: PredictionChanges
    num_full: int
    """Number of positions that took the logits of the whole vocabulary."""


@dataclass(frozen=True, eq=False)
class AblateChunk:
    """Sweep work: ablate every subject on its datums of a chunk."""

    model: KnownModel
    plan: AblationPlan
    token_NT: np.ndarray

    def to(self, device: str) -> "AblateChunk":
        return AblateChunk(self.model.to(device), self.plan.to(device), self.token_NT)

    @cached_property
    def unembedding(self) -> Unembedding:
        return unembedding_of(self.model)

    @torch.inference_mode()
    def __call__(self, chunk: Chunk) -> ChunkPredictions:
        clean = trace(self.model, self.token_NT[chunk.datum_U], self.plan.sites)
        prediction = Prediction.of(self.unembedding, clean.hidden_NTD.flatten(0, 1))
        before_UT = prediction.token_M.view(len(chunk.datum_U), -1).int().cpu().numpy()
        resampled = self.plan.resampled_states(self.model, self.token_NT, chunk.datum_U)
        found, num_full, most = [no_changes()], 0, clean.positions_at_once
        for group in self.plan.groups:
            for edit in group.edit(clean, resampled, *chunk.pairs(group)).batches(most):
                reached = propagate(self.model, clean, edit)
                changes, full = prediction_changes(self.unembedding, prediction, edit, reached)
                found.append(changes._replace(datum_M=chunk.datum_U[changes.datum_M]))
                num_full += full
        changes = PredictionChanges(*map(np.concatenate, zip(*found, strict=True)))
        return ChunkPredictions(before_UT, changes, num_full)


def no_changes() -> PredictionChanges:
    return PredictionChanges(*(np.empty(0, np.int64) for _ in PredictionChanges._fields))


def prediction_changes(
    unembedding: Unembedding, prediction: Prediction, edit: Edit, reached: ReachedStates
) -> tuple[PredictionChanges, int]:
    """Return the predictions that an edit changes, and how many positions took all logits.

    ``datum_M`` of the result holds indices into the chunk.
    """
    positions = edit.change_QTB.shape[1]
    row_M = edit.row_Q[reached.pair_M]
    index_M = row_M * positions + reached.position_M
    after_M, num_full = prediction.after(unembedding, index_M, reached.hidden_MD)
    own_M = after_M != prediction.token_M[index_M]
    columns = (edit.subject_Q[reached.pair_M], row_M, reached.position_M, after_M)
    return PredictionChanges(*(column_M[own_M].cpu().numpy() for column_M in columns)), num_full


def merge_sorted(pieces: Sequence[PredictionChanges]) -> PredictionChanges:
    """Return the changes of all pieces, sorted by subject, datum and position."""
    whole = PredictionChanges(*map(np.concatenate, zip(*pieces, strict=True)))
    order_M = np.lexsort((whole.position_M, whole.datum_M, whole.subject_M))
    return PredictionChanges(*(column_M[order_M] for column_M in whole))
