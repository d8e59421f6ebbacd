"""Inner products of the gradients of single positions' losses, unit by unit.

The loss at position t of a window has the gradient Σ_s δ_s a_sᵀ in a linear layer, over all
positions s that t attends to. A batch holds one row for each position asked about, with the loss at
that position alone, so that ``Tape`` gives the factors of every position's gradient from one
backward pass. Inner products are Σ_{s,r} (a_s · a'_r)(δ_s · δ'_r), or those of dense gradients
where these are smaller than their factors.

Shapes: M position asked about, T position of its window, U unit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.run.names import nearest
from analysis.trajectory.observed.model import Observed
from capture.errors import ConfigError
from capture.gradients.factored_algebra import dense, inner_products
from capture.gradients.factors import Factor
from capture.gradients.tape import Tape

ROWS_AT_ONCE = 32
"""Positions of one backward pass."""


def compared_units(model: Observed, patterns: Sequence[str]) -> dict[str, Tensor]:
    """Return the parameters that match any pattern; by default the matrices of the layers.

    Raises ``ConfigError`` for a pattern that matches none, and for a model without matrices.
    """
    weights = model.weights
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in weights):
            problem = f"{pattern!r} matches no parameter"
            raise ConfigError("--units", problem, nearest(pattern, list(weights)))
    if patterns:
        return {n: w for n, w in weights.items() if any(fnmatchcase(n, p) for p in patterns)}
    inside = {id(weight) for block in model.blocks for weight in block.parameters()}
    found = {n: w for n, w in weights.items() if w.ndim > 1 and (id(w) in inside or not inside)}
    if not found:
        raise ConfigError("quanta", "the model has no layers with matrices", "Choose --units")
    return found


def position_grams(
    model: Observed,
    units: Mapping[str, Tensor],
    token_MT: Tensor,
    target_M: Tensor,
    place_M: Tensor,
) -> np.ndarray:
    """Return ⟨g, g'⟩ of each unit's gradients for all pairs of positions, float32 [U, M, M].

    ``place_M``: index of the position among those that the logits are for. Raises ``UnitError`` for
    a unit whose use cannot be split by row.
    """
    batches = list(position_factors(model, units, token_MT, target_M, place_M))
    count = len(token_MT)
    gram_UMM = np.empty((len(units), count, count), np.float32)
    starts = range(0, count, ROWS_AT_ONCE)
    for number, unit in enumerate(units):
        for i, first in enumerate(starts):
            for j, second in enumerate(starts[: i + 1]):
                block = inner_products(batches[i][unit], batches[j][unit]).cpu().numpy()
                rows = slice(first, first + len(block))
                columns = slice(second, second + block.shape[1])
                gram_UMM[number, rows, columns] = block
                gram_UMM[number, columns, rows] = block.T
    return gram_UMM


def position_factors(
    model: Observed,
    units: Mapping[str, Tensor],
    token_MT: Tensor,
    target_M: Tensor,
    place_M: Tensor,
) -> Iterator[dict[str, list[Factor]]]:
    """Yield the gradients of ``ROWS_AT_ONCE`` positions' losses at a time, by unit."""
    before = {name: weight.requires_grad for name, weight in units.items()}
    for weight in units.values():
        weight.requires_grad_(True)
    try:
        for first in range(0, len(token_MT), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            token_NT = token_MT[rows].to(model.device)
            with Tape(units, len(token_NT)) as tape:
                logits_NTV = model.network(token_NT)
            here = torch.arange(len(token_NT), device=logits_NTV.device)
            chosen_NV = logits_NTV[here, place_M[rows].to(here.device)].float()
            target_N = target_M[rows].to(here.device)
            loss = F.cross_entropy(chosen_NV, target_N, reduction="sum")
            # The gradients themselves are not used: this runs the hooks that collect δ.
            torch.autograd.grad(loss, list(units.values()), allow_unused=True)
            factors = tape.factors()
            yield {unit: smallest(factors[unit], units[unit].shape) for unit in units}
    finally:
        for name, weight in units.items():
            weight.requires_grad_(before[name])


def smallest(uses: list[Factor], shape: Sequence[int]) -> list[Factor]:
    """Return a unit's gradients as dense ones if these take no more memory than the factors."""
    detached = [use.map_tensors(lambda x: x.detach()) for use in uses]
    tensors = [x for use in detached for x in (use.delta_NTO, use.a_NTI) if x is not None]
    if math.prod(shape) > sum(x[0].numel() for x in tensors):
        return detached
    return [Factor("sum", dense(detached, shape).flatten(1)[:, None])]
