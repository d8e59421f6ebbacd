"""Tallies: how much every token moved and used every neuron, over all datums and with no cut-off.

At position t a linear unit with input a and output gradient δ contributes δ_t a_tᵀ to a datum's
gradient, so its neuron n (an input) is moved there by a vector of length ‖δ_t‖ |a_tn|. Added up by
token, while training runs and without any dense gradient, that gives for every token and neuron

- *mass*: Σ lr · clip · ‖δ_t‖ · |a_tn|, the way that the neuron's weights were moved, in units of
  the weight (lengths are added up, whatever the direction; another optimizer than plain SGD moves
  the weight by something else, but mass stays the length of this, so that it can be added up);
- *use*: Σ -(N·T) · a_tn · (δ_t W)_n, the first-order increase of the loss, in nats, if the neuron
  were removed: positive where it helps (the attribution by gradient × input, as in Molchanov et
  al. 2017 and Nanda 2023, over training instead of at its end).

Each position counts for its target token and, in a tally of its own, for its input token. Sums are
kept by window of training (an epoch by default) and start at 0 in each. They are sums over
positions, so they merge over datums, workers and windows.

Shapes: N datum, T position, M = N·T positions of a batch, I input width, O output width,
V vocabulary, K = 2 Σ I (mass and use of every unit's neurons, in order).
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
from capture.process_group import ALONE, Group

By = Literal["target", "input"]
"""Which token of a position a tally counts it for."""
BYS: tuple[By, ...] = ("target", "input")


@dataclass(frozen=True, kw_only=True)
class TallyConfig:
    """What is added up for every neuron while training runs."""

    enabled: bool = True
    """Whether tallies are kept."""
    units: list[str] = field(default_factory=lambda: ["*.linear1.weight", "*.linear2.weight"])
    """Glob patterns; of the captured linear weights, those that match any have tallies."""
    window_steps: int | None = None
    """Steps per window of training; null: an epoch."""

    def __post_init__(self) -> None:
        if self.window_steps is not None and self.window_steps < 1:
            problem = f"got {self.window_steps}, must be at least 1, or null for an epoch"
            raise ConfigError("capture.tally.window_steps", problem)


@dataclass(frozen=True, eq=False)
class Sums:
    """The tallies of a window of training, on the CPU."""

    widths: dict[str, int]
    """Unit → its number of neurons I."""
    count_V: dict[By, Tensor]
    """Positions of each token, int64."""
    sum_VK: dict[By, Tensor]
    """Mass and use, float32."""

    def of(self, by: By, unit: str) -> tuple[Tensor, Tensor]:
        """Mass and use of one unit's neurons, both [V, I]."""
        start = 0
        for name, width in self.widths.items():
            if name == unit:
                pair_V2I = self.sum_VK[by][:, start : start + 2 * width].unflatten(1, (2, width))
                return pair_V2I[:, 0], pair_V2I[:, 1]
            start += 2 * width
        raise KeyError(unit)


def tallied_units(layout: Layout, config: TallyConfig) -> dict[str, int]:
    """Of the captured units, those with tallies, and their number of neurons."""
    return {
        name: layout.fan_in(name)
        for name, shape in layout.shapes.items()
        if config.enabled
        and len(shape) == 2
        and any(fnmatchcase(name, pattern) for pattern in config.units)
    }


class Tally:
    """Adds up the open window's tallies, where the model is."""

    def __init__(
        self,
        widths: dict[str, int],
        vocabulary: int,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        """``group``: the workers that add up the window together, each its own positions."""
        self.widths = widths
        self.vocabulary = vocabulary
        self.device = device
        self.group = group
        self.clear()

    def clear(self) -> None:
        """Begin a window."""
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
        """Add a step: its factors, the weights that it started from, and ``scale`` = -lr · clip.

        Raises ``ConfigError`` for a unit that has no neurons to count for.
        """
        for name in self.widths:
            require_inputs(name, factors[name], token_NT.numel())
        share_MK = shares(factors, weights, scale, self.widths, self.group.size)
        for by, token_M in zip(BYS, (target_NT.flatten(), token_NT.flatten()), strict=True):
            self.sum_VK[by].index_add_(0, token_M, share_MK)
            self.count_V[by].index_add_(0, token_M, torch.ones_like(token_M))

    def drain(self) -> Sums:
        """The open window's tallies, all workers' together; begins the next one."""
        self.group.sum_([*self.count_V.values(), *self.sum_VK.values()])
        count_V: dict[By, Tensor] = {by: self.count_V[by].cpu() for by in BYS}
        sum_VK: dict[By, Tensor] = {by: self.sum_VK[by].cpu() for by in BYS}
        sums = Sums(self.widths, count_V, sum_VK)
        self.clear()
        return sums


def require_inputs(name: str, uses: list[Factor], positions: int) -> None:
    """Raises ``ConfigError`` unless each use multiplies a unit with an input a position."""
    for use in uses:
        if use.kind != "outer" or use.delta_NTO.shape[:2].numel() != positions:
            problem = f"match {name}, which is not multiplied with an input at each position, or is"
            problem += " captured by vmap, so that no tallies can be kept of it"
            remedy = "Name other units, or set capture.tally.enabled=false"
            raise ConfigError("capture.tally.units", problem, remedy)


def shares(
    factors: Factors,
    weights: Mapping[str, Tensor],
    scale: float,
    widths: Mapping[str, int],
    workers: int = 1,
) -> Tensor:
    """Mass and use of every neuron at each position, [M, K].

    ``workers``: of how many equal parts of a batch these positions are one.

    A unit that is used several times in a forward pass has the sum over its uses.
    """
    first = next(factors[name][0] for name in widths)
    num_positions = first.delta_NTO.shape[0] * first.delta_NTO.shape[1]
    share_MK = first.delta_NTO.new_zeros(num_positions, 2 * sum(widths.values()))
    start = 0
    for name, width in widths.items():
        mass_MI, use_MI = share_MK[:, start : start + 2 * width].split(width, dim=1)
        for use in factors[name]:
            assert use.a_NTI is not None
            delta_MO, a_MI = use.delta_NTO.flatten(0, 1), use.a_NTI.flatten(0, 1)
            weight_OI = weights[name].T if use.transposed else weights[name]
            reach_M1 = delta_MO.norm(dim=1, keepdim=True).mul_(abs(scale))
            mass_MI.addcmul_(a_MI.abs(), reach_M1)
            use_MI.addcmul_(a_MI, delta_MO @ weight_OI, value=-num_positions * workers)
        start += 2 * width
    return share_MK
