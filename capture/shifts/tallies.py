"""Tallies: sums over all positions of what each token does to each neuron, with no cut-off.

At position t, a linear unit with input a, output gradient δ and weight W contributes δ_t a_tᵀ to a
datum's gradient. Neuron n, the n-th input of the unit, owns column n of this product, a vector of
length ‖δ_t‖ |a_tn|. Two quantities are added up for every token and neuron while training runs;
neither needs a dense gradient:

- *update_norm*: Σ lr · clip · ‖δ_t‖ · |a_tn|, the norm of the update that the position contributes
  to the neuron's weights, in units of the weight. Norms are summed, so directions do not cancel.
  With momentum or Adam it is still the norm of lr · clip times the gradient: a preconditioner
  differs from entry to entry, so the norm would no longer factor into ‖δ_t‖ and |a_tn|.
- *ablation_estimate*: Σ -(N·T) · a_tn · (δ_t W)_n = Σ -a_tn · ∂loss_t/∂a_tn, the first-order
  estimate of the increase in loss, in nats, if the neuron were set to zero; positive where the
  neuron helps. This is attribution patching towards zero, or gradient × input (Molchanov et al.
  2017, Nanda 2023), summed over training instead of evaluated at its end. The factor N·T is there
  because δ is the gradient of the mean loss over the N·T positions of the batch.

Each position counts for its target token and, in a separate tally, for its input token. Tallies
are kept per window of training (an epoch by default) and start at 0 in each. They are sums over
positions, so they can be added over datums, workers and windows.

Shapes: N datum, T position, M = N·T positions of a batch, I input width, O output width,
V vocabulary, K = 2 Σ I (for each unit in order, its update norms and then its ablation estimates).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from capture.errors import ConfigError
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.process_group import SINGLE_PROCESS, Group

By = Literal["target", "input"]
"""Whether a position counts for the token to be predicted or for the token at the position."""
BYS: tuple[By, ...] = ("target", "input")


@dataclass(frozen=True, kw_only=True)
class TallyConfig:
    """Which tallies are recorded while training runs."""

    enabled: bool = True
    """Whether tallies are recorded."""
    units: list[str] = field(default_factory=lambda: ["*.linear1.weight", "*.linear2.weight"])
    """Glob patterns. Captured linear weights that match any of them have tallies."""
    window_steps: int | None = None
    """Steps per window of training; null means one epoch."""

    def __post_init__(self) -> None:
        if self.window_steps is not None and self.window_steps < 1:
            problem = f"got {self.window_steps}, must be at least 1, or null for an epoch"
            raise ConfigError("capture.tally.window_steps", problem)


@dataclass(frozen=True, eq=False)
class TallySums:
    """Tallies of one window of training, on the CPU."""

    widths: dict[str, int]
    """Unit → its number of neurons I."""
    count_V: dict[By, Tensor]
    """Number of positions of each token, int64."""
    sum_VK: dict[By, Tensor]
    """Update norms and ablation estimates, float32."""

    def of(self, by: By, unit: str) -> tuple[Tensor, Tensor]:
        """Return update norms and ablation estimates of a unit's neurons, each [V, I]."""
        start = 0
        for name, width in self.widths.items():
            if name == unit:
                pair_V2I = self.sum_VK[by][:, start : start + 2 * width].unflatten(1, (2, width))
                return pair_V2I[:, 0], pair_V2I[:, 1]
            start += 2 * width
        raise KeyError(unit)


def tallied_units(layout: Layout, config: TallyConfig) -> dict[str, int]:
    """Return the captured units that have tallies, each with its number of neurons."""
    return {
        name: layout.fan_in(name)
        for name, shape in layout.shapes.items()
        if config.enabled
        and len(shape) == 2
        and any(fnmatchcase(name, pattern) for pattern in config.units)
    }


class Tally:
    """Accumulates the tallies of the current window, on the model's device."""

    def __init__(
        self,
        widths: dict[str, int],
        vocabulary: int,
        device: torch.device,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        """``group``: the workers whose positions together make up the window."""
        self.widths = widths
        self.vocabulary = vocabulary
        self.device = device
        self.group = group
        self.clear()

    def clear(self) -> None:
        """Start a window with all sums at 0."""
        size = (self.vocabulary, 2 * sum(self.widths.values()))
        zeros = partial(torch.zeros, device=self.device)
        self.sum_VK: dict[By, Tensor] = {by: zeros(size) for by in BYS}
        self.count_V: dict[By, Tensor] = {by: zeros(size[0], dtype=torch.int64) for by in BYS}

    def add(
        self,
        factors: Factors,
        weights: Mapping[str, Tensor],
        scale: float,
        token_NT: Tensor,
        target_NT: Tensor,
    ) -> None:
        """Add one step.

        ``weights`` are those before the update; ``scale`` is -lr · clip. Raises ``ConfigError`` for
        a unit that is not multiplied with an input at every position.
        """
        for name in self.widths:
            require_inputs(name, factors[name], token_NT.numel())
        share_MK = position_tallies(factors, weights, scale, self.widths, self.group.size)
        for by, token_M in zip(BYS, (target_NT.flatten(), token_NT.flatten()), strict=True):
            self.sum_VK[by].index_add_(0, token_M, share_MK)
            self.count_V[by].index_add_(0, token_M, torch.ones_like(token_M))

    def state(self) -> dict[str, Tensor]:
        """Copy this worker's sums of the open window to the CPU, for ``load_state``.

        By kind of token: ids of the tokens that occurred [R], their counts [R] and sums [R, K].
        """
        found = {}
        for by in BYS:
            token_R = self.count_V[by].nonzero().flatten()
            found[f"{by}/token"] = token_R.cpu()
            found[f"{by}/count"] = self.count_V[by][token_R].cpu()
            found[f"{by}/sum"] = self.sum_VK[by][token_R].cpu()
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the sums to those of ``state``, bit by bit.

        Raises ``KeyError`` or ``ValueError`` if they are of other units or another vocabulary.
        """
        for by in BYS:
            token_R, sum_RK = state[f"{by}/token"], state[f"{by}/sum"]
            fits = sum_RK.shape == (len(token_R), self.sum_VK[by].shape[1])
            if not fits or (len(token_R) and int(token_R.max()) >= self.vocabulary):
                raise ValueError("are sums of other tallies")
        self.clear()
        for by in BYS:
            token_R = state[f"{by}/token"].to(self.device)
            self.count_V[by][token_R] = state[f"{by}/count"].to(self.device)
            self.sum_VK[by][token_R] = state[f"{by}/sum"].to(self.device)

    def drain(self) -> TallySums:
        """Return the current window's tallies, summed over workers, and start the next window."""
        self.group.all_reduce([*self.count_V.values(), *self.sum_VK.values()])
        count_V: dict[By, Tensor] = {by: self.count_V[by].cpu() for by in BYS}
        sum_VK: dict[By, Tensor] = {by: self.sum_VK[by].cpu() for by in BYS}
        sums = TallySums(self.widths, count_V, sum_VK)
        self.clear()
        return sums


def require_inputs(name: str, uses: list[Factor], positions: int) -> None:
    """Raise ``ConfigError`` unless every use multiplies the unit with one input per position."""
    for use in uses:
        if use.kind != "outer" or use.delta_NTO.shape[:2].numel() != positions:
            problem = f"match {name}, which is not multiplied with an input at each position, or is"
            problem += " captured by vmap, so it cannot have tallies"
            remedy = "Name other units, or set capture.tally.enabled=false"
            raise ConfigError("capture.tally.units", problem, remedy)


def position_tallies(
    factors: Factors,
    weights: Mapping[str, Tensor],
    scale: float,
    widths: Mapping[str, int],
    workers: int = 1,
) -> Tensor:
    """Return update norm and ablation estimate of every neuron at each position, [M, K].

    ``workers``: number of equal parts into which the batch is split; these positions are one part.
    A unit that is called several times in a forward pass gets the sum over its calls.
    """
    first = next(factors[name][0] for name in widths)
    num_positions = first.delta_NTO.shape[0] * first.delta_NTO.shape[1]
    share_MK = first.delta_NTO.new_zeros(num_positions, 2 * sum(widths.values()))
    start = 0
    for name, width in widths.items():
        own_MK = share_MK[:, start : start + 2 * width]
        update_norm_MI, ablation_estimate_MI = own_MK.split(width, dim=1)
        for use in factors[name]:
            assert use.a_NTI is not None
            delta_MO, a_MI = use.delta_NTO.flatten(0, 1), use.a_NTI.flatten(0, 1)
            weight_OI = weights[name].T if use.transposed else weights[name]
            norm_M1 = delta_MO.norm(dim=1, keepdim=True).mul_(abs(scale))
            update_norm_MI.addcmul_(a_MI.abs(), norm_M1)
            # δ is the gradient of a mean: times all positions of the batch, it is that of a sum.
            input_grad_MI = delta_MO @ weight_OI
            ablation_estimate_MI.addcmul_(a_MI, input_grad_MI, value=-num_positions * workers)
        start += 2 * width
    return share_MK
