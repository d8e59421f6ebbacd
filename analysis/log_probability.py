"""What ablation costs the model: log-probabilities of the true next tokens, without and with it.

The clean pass is done once for all subjects. For each subject, only positions whose last hidden
state can have moved take logits at all; the others change by exactly 0.

Shapes: N datum, T position, S subject, V token of the vocabulary, K datum of a chunk,
M position of any pair of subject and datum.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.replacement import DATUMS_AT_ONCE, Group, Lender, Plan, Value
from analysis.subjects import Subject, require_subjects
from analysis.tracing import Edit, Trace, go_on, trace
from analysis.unembedding import Unembedding
from capture.model import LanguageModel

PAIRS_AT_ONCE = 64
"""Pairs of subject and datum that are carried through the rest of the model at once."""

Report = Callable[[int, int], None]
"""Told now and then: how much is done, of how much."""


class Shift(NamedTuple):
    """Changes of log p(target), nats: ablated minus clean. Positions that are missing have 0."""

    subject_M: Tensor
    """Place in the list of subjects."""
    row_M: Tensor
    """Place in the chunk."""
    position_M: Tensor
    change_M: Tensor


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
) -> tuple[np.ndarray, np.ndarray]:
    """What ablating each subject does to each token as a target.

    Returns change_SV, float64: the sum of log p(target) ablated - clean, nats, over the positions
    with that target; and count_V, int64: how many these are. Means (``value="mean"``) are over
    ``mean_text_NT``, by default over ``token_NT`` itself. ``report`` is told of datums. Raises
    ``UnitError`` for a subject that the model lacks.
    """
    require_subjects(model, subjects)
    text_NT = token_NT if mean_text_NT is None else mean_text_NT
    plan = Plan.of(model, token_NT, subjects, value, text_NT, seed)
    unembedding = Unembedding(model.decoder)
    device = model.decoder.weight.device
    change_Z = torch.zeros(len(subjects) * num_tokens, dtype=torch.float64, device=device)
    for start in range(0, len(token_NT), DATUMS_AT_ONCE):
        datum_K = np.arange(start, min(start + DATUMS_AT_ONCE, len(token_NT)))
        clean = CleanProbability.of(model, unembedding, token_NT[datum_K], target_NT[datum_K])
        lender = plan.lender(model, token_NT, datum_K)
        for group in plan.groups:
            for found in shifts_of(model, unembedding, clean, group, lender):
                target_M = clean.target_KT[found.row_M, found.position_M]
                place_M = found.subject_M * num_tokens + target_M
                change_Z.index_add_(0, place_M, found.change_M.double())
        if report:
            report(start + len(datum_K), len(token_NT))
    count_V = np.bincount(target_NT.ravel(), minlength=num_tokens)
    return change_Z.view(len(subjects), num_tokens).cpu().numpy(), count_V


class CleanProbability(NamedTuple):
    """Some datums, nothing ablated."""

    trace: Trace
    target_KT: Tensor
    chance_KT: Tensor
    """log p(target)."""
    normaliser_KT: Tensor

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        unembedding: Unembedding,
        token_KT: np.ndarray,
        target_KT: np.ndarray,
    ) -> "CleanProbability":
        found = trace(model, token_KT)
        target = torch.from_numpy(target_KT).long().to(found.hidden_NTD.device)
        pair = unembedding.log_probability(found.hidden_NTD.flatten(0, 1), target.flatten())
        return cls(found, target, *(value_M.view(target.shape) for value_M in pair))


def shifts_of(
    model: LanguageModel,
    unembedding: Unembedding,
    clean: CleanProbability,
    group: Group,
    lender: Lender | None,
) -> Iterator[Shift]:
    """All changes of the subjects of one place, on every datum of the chunk, piece by piece."""
    num_datums, device = len(clean.target_KT), clean.target_KT.device
    pair_Q = torch.arange(len(group.subject_G) * num_datums, device=device)
    edit = group.edit(clean.trace, lender, pair_Q // num_datums, pair_Q % num_datums)
    for piece in edit.batches(PAIRS_AT_ONCE):
        yield shift_of(model, unembedding, clean, piece)


def shift_of(
    model: LanguageModel, unembedding: Unembedding, clean: CleanProbability, edit: Edit
) -> Shift:
    """The changes that one edit makes."""
    moved = go_on(model, clean.trace, edit)
    row_M = edit.row_Q[moved.pair_M]
    where = (row_M, moved.position_M)
    after_M, _ = unembedding.log_probability(
        moved.hidden_MD, clean.target_KT[where], clean.normaliser_KT[where]
    )
    change_M = after_M - clean.chance_KT[where]
    return Shift(edit.subject_Q[moved.pair_M], *where, change_M)
