"""In how few directions the weights of a network, and the gradients of its training, lie.

Source: a comment on "Performing an SVD on a time-series matrix of gradient updates", which says
that parts of a network for modular addition "have low-rank approximations that capture >99% of the
variance". Shapes: S step, P entry of the weights, K direction, N datum, T position, V token.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from analysis.spectra.concentration import numbers_of
from benchmarks.studies.study import Results
from ontogeny import Run

HELD = 0.99
"""Share of the squared singular values that an approximation has to hold."""


def low_ranks(weights: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the fewest directions that hold 99 % of each matrix's squares, and its full rank."""
    return {
        name: [fewest(np.linalg.svd(matrix.double().numpy(), compute_uv=False)), min(matrix.shape)]
        for name, matrix in weights.items()
        if matrix.ndim == 2
    }


def fewest(value_K: np.ndarray) -> int:
    """Return how many singular values, the largest first, hold 99 % of the squares."""
    held_K = np.cumsum(value_K**2) / (value_K**2).sum()
    return int(np.searchsorted(held_K, HELD * (1 - 1e-12))) + 1


def gradient_values(run: Run, steps: Sequence[int]) -> Results:
    """Return how many singular values of the full-batch gradients at these steps exceed 10 % of the
    largest: as they are, and at unit length."""
    rows = run.datums("train")
    token_NT = torch.tensor(np.stack(rows["tokens"].to_list())).long()
    target_N = torch.tensor(rows["last_target"].to_numpy()).long()
    model = run.model()
    gradient_SP = np.stack(
        [gradient(model, run.checkpoint(step), token_NT, target_N) for step in steps]
    )
    unit_SP = gradient_SP / np.linalg.norm(gradient_SP, axis=1, keepdims=True)
    counts = {
        name: int(numbers_of(np.linalg.svd(row_SP, compute_uv=False)).over_cutoff)
        for name, row_SP in (("as_they_are", gradient_SP), ("unit_length", unit_SP))
    }
    return {"steps": len(steps), **counts}


def gradient(
    model: torch.nn.Module, stored: Mapping[str, Tensor], token_NT: Tensor, target_N: Tensor
) -> np.ndarray:
    """Return the gradient of the mean loss at the last position, in order of the parameters."""
    weights = {
        name: stored[name].detach().clone().requires_grad_() for name, _ in model.named_parameters()
    }
    logit_NV = functional_call(model, weights, (token_NT,))[:, -1]
    found = torch.autograd.grad(F.cross_entropy(logit_NV, target_N), list(weights.values()))
    return torch.cat([part.flatten() for part in found]).double().numpy()
