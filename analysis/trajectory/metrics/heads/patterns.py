"""Where attention heads look, on random tokens in which a block of random length occurs twice.

Definitions: Olsson et al. 2022, "In-context learning and induction heads" (prefix matching);
Wang et al. 2022 (duplicate token heads). Shapes: N sequence, T position, S source, H head.
"""

from collections.abc import Iterator

import numpy as np
import torch

from analysis.trajectory.metrics.row import Row, head_name, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Repeated, Text

SEQUENCES_AT_ONCE = 32
PATTERNS = ("previous_token", "duplicate_token", "induction")


def attention_patterns(model: Observed, text: Text) -> Iterator[Row]:
    """Mean attention of each head to one place, over the second occurrence of a random block.

    ``previous_token``: to the token before. ``duplicate_token``: to the same token in the first
    block. ``induction``: to the token after that one. Null: uniform attention to all tokens so far.
    """
    shares = {name: [] for name in PATTERNS}
    repeated = text.repeated
    for start in range(0, len(repeated.token_NT), SEQUENCES_AT_ONCE):
        rows = slice(start, start + SEQUENCES_AT_ONCE)
        part = Repeated(repeated.token_NT[rows], repeated.length_N[rows])
        layers = [each.double().cpu() for each in model.attention(torch.from_numpy(part.token_NT))]
        for name in PATTERNS:
            shares[name].append([share_at(layer.numpy(), part, name) for layer in layers])
    null = uniform_share(repeated)
    for name in PATTERNS:
        for layer, parts in enumerate(zip(*shares[name], strict=True)):
            share_NH = np.concatenate(parts)
            for head, share_N in enumerate(share_NH.T):
                yield mean_row(name, head_name(layer, head), share_N, null)


def share_at(weight_NHTS: np.ndarray, repeated: Repeated, pattern: str) -> np.ndarray:
    """Return the mean attention of each sequence and head to the pattern's place, [N, H]."""
    window = weight_NHTS.shape[2]
    found = []
    for weight_HTS, length in zip(weight_NHTS, repeated.length_N, strict=True):
        t = np.arange(window - length, window)
        back = {"previous_token": 1, "duplicate_token": length, "induction": length - 1}[pattern]
        found.append(weight_HTS[:, t, t - back].mean(1))
    return np.array(found)


def uniform_share(repeated: Repeated) -> float:
    """Return the mean of 1 / (t + 1) over the same positions."""
    window = repeated.token_NT.shape[1]
    means = [
        np.mean(1 / np.arange(window - length + 1, window + 1)) for length in repeated.length_N
    ]
    return float(np.mean(means))
