"""What a model gives out at a checkpoint: the loss of every held-out token, and sampled logits.

Logits lose their mean over the vocabulary, which a prediction does not depend on.

Shapes: N datum, T position, P position whose logits are kept, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch

from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import batches, cross_entropy
from analysis.trajectory.observed.text import Text

MOST_ENTRIES = 2**22
"""Logits kept of a checkpoint; 16 MiB."""
MOST_KEPT = 2**28
"""Logits kept of all checkpoints; 1 GiB."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of one checkpoint, float32."""

    loss_NT: np.ndarray
    logit_NE: np.ndarray
    """Sampled logits, of the first datums if not all fit; positions and vocabulary in one axis."""

    @property
    def are_finite(self) -> bool:
        """Whether losses and logits are all finite; training may have diverged."""
        return bool(np.isfinite(self.loss_NT).all() and np.isfinite(self.logit_NE).all())


def outputs_of(model: Observed, text: Text, checkpoints: int) -> Outputs:
    """Return the outputs on held-out text, with as many logits as fit for so many checkpoints."""
    assert text.held_out
    losses, kept, place_NP = [], [], None
    for batch in batches(text.held_out, text.num_tokens):
        logits_NTV = model.logits(torch.from_numpy(batch.token_NT))
        if place_NP is None:
            most = min(MOST_ENTRIES, MOST_KEPT // checkpoints) // logits_NTV.shape[2]
            count, positions = len(text.held_out.token_NT), logits_NTV.shape[1]
            place_NP = chosen_positions(count, positions, most, text.seed)
        done = sum(map(len, losses))
        losses.append(cross_entropy(logits_NTV, torch.from_numpy(batch.target_NT)))
        kept.append(centred(logits_NTV, place_NP[done : done + len(logits_NTV)]))
    return Outputs(np.concatenate(losses).astype(np.float32), np.concatenate(kept))


def chosen_positions(datums: int, positions: int, most: int, seed: int) -> np.ndarray:
    """Return as many random positions of each datum as ``most`` allows in all, int64 [N, P].

    If there is not one for each datum, the first datums have one.
    """
    each = int(np.clip(most // datums, 1, positions))
    every_NT = np.tile(np.arange(positions), (min(datums, max(1, most)), 1))
    return np.random.default_rng(seed).permuted(every_NT, axis=1)[:, :each]


def centred(logits_NTV: torch.Tensor, place_NP: np.ndarray) -> np.ndarray:
    """Return the logits at these positions without their mean, float32 [N, P · V]."""
    place = torch.from_numpy(place_NP).to(logits_NTV.device)
    row = torch.arange(len(place_NP), device=logits_NTV.device)[:, None]
    chosen_NPV = logits_NTV[row, place].float()
    return (chosen_NPV - chosen_NPV.mean(2, keepdim=True)).flatten(1).cpu().numpy()
