"""Forward passes over many windows, a few at a time.

Shapes: N datum, T position, D width, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Windows
from capture.parts.parted import Parted

LOGITS_AT_ONCE = 2**24
"""Entries of the largest logits to hold; 64 MiB."""


def batches(windows: Windows, num_tokens: int) -> Iterator[Windows]:
    """Yield the windows in order, few enough at a time for their logits to fit in memory."""
    each = max(1, LOGITS_AT_ONCE // (windows.token_NT.shape[1] * num_tokens))
    for start in range(0, len(windows.token_NT), min(each, 64)):
        rows = slice(start, start + min(each, 64))
        yield Windows(windows.token_NT[rows], windows.target_NT[rows])


def losses(model: Observed, windows: Windows, num_tokens: int) -> np.ndarray:
    """Return the cross-entropy of every target, nats, float64 [N, T]."""
    found = []
    for batch in batches(windows, num_tokens):
        logits_NTV = model.logits(torch.from_numpy(batch.token_NT))
        found.append(cross_entropy(logits_NTV, torch.from_numpy(batch.target_NT)))
    return np.concatenate(found)


def unembedded(network: Parted, hidden_NTD: Tensor) -> Tensor:
    """Return the logits of what enters the unembedding, [N, T, V]."""
    weight_VD, bias_V, logit_map = network.unembedding
    return logit_map(hidden_NTD @ weight_VD.T + bias_V)


def cross_entropy(logits_NTV: Tensor, target_NT: Tensor) -> np.ndarray:
    """Return the cross-entropy of every target that the logits are for, nats, float64 [N, T].

    A model may give logits of the last positions only.
    """
    target_NT = target_NT[:, -logits_NTV.shape[1] :].to(logits_NTV.device)
    loss_NT = F.cross_entropy(logits_NTV.transpose(1, 2), target_NT, reduction="none")
    return loss_NT.double().cpu().numpy()
