"""What each token contributed to the change of a neuron over the run, along that change.

Let D_n be the change of neuron n's weights over the run and u_n = D_n / ‖D_n‖. A position whose
lifetime shift of the neuron is s contributes ⟨s, u_n⟩, in units of the weight; below zero, it moved
the neuron against its change. Lifetime shifts and the decay of the initial weights sum to D_n (the
law Lifetime), so the contributions of all positions and ⟨decay, u_n⟩ sum to ‖D_n‖.

For y = xWᵀ with inputs a, output gradients δ and multipliers C, this is a_tn Σ_o δ_to C_on u_on.

Shapes: M position of a batch, I input width, O output width, V vocabulary, R token that occurs.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from analysis.levels import is_mlp
from analysis.lifetime.backward import BackwardStep
from analysis.lifetime.tables import CONTRIBUTIONS, NEURONS
from analysis.run.run import Run
from capture.gradients.factors import Factor
from capture.shifts.tallies import BYS, By

MAX_BYTES = 4 * 2**30
"""Bound on the memory for sums by token and neuron."""
LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class ContributionSums:
    """Sums over the steps that were added."""

    run: Run
    direction: Mapping[str, Tensor]
    """MLP unit → u of each of its neurons, in the unit's shape, float64."""
    sum_VI: dict[tuple[str, By], Tensor] = field(default_factory=dict)
    occurs_V: dict[By, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> "ContributionSums":
        """Return sums for all MLP units; for none if datums of the run have no tokens.

        Units whose sums do not fit into ``MAX_BYTES`` are left out, which is logged.
        """
        if run.has_numbered_datums:
            return cls(run, {})
        initial, last, layout = run.checkpoint(0), run.checkpoint(), run.layout
        found = {}
        for name in affordable(run, [name for name in layout.names if is_mlp(name, layout)]):
            change = last[name].double() - initial[name].double()
            size = change.norm(dim=axis_of_outputs(run, name), keepdim=True)
            found[name] = torch.where(size > 0, change / size, torch.zeros_like(change))
        return cls(run, found)

    def add(self, step: BackwardStep) -> None:
        """Add the contributions of a step's positions.

        Units that are not multiplied with an input at each position are left out altogether.
        """
        window = self.run.token_NT.shape[1] if self.direction else 0
        self.direction = {
            name: own
            for name, own in self.direction.items()
            if all(has_positions(use, window) for use in step.factors[name])
        }
        tokens: dict[By, np.ndarray] = {}
        if self.direction:
            tokens = {"target": self.run.target_NT, "input": self.run.token_NT}
        for unit in self.direction:
            part_MI = self.position_contributions(step, unit)
            positions = len(part_MI) // len(step.datum_N)
            # A loop of one's own may cut windows short; a perceptron has one position, the last.
            own = np.s_[:positions] if self.run.from_custom_loop else np.s_[-positions:]
            for by, token_NT in tokens.items():
                token_M = token_NT[step.datum_N][:, own].ravel().astype(np.int64)
                index_M = torch.from_numpy(token_M).to(part_MI.device)
                self.sums_of(unit, by, part_MI).index_add_(0, index_M, part_MI)
                self.occurs_V[by][token_M] = True

    def sums_of(self, unit: str, by: By, like: Tensor) -> Tensor:
        """Return the sums of a unit, [V, I], 0 at first."""
        num_tokens = self.run.num_tokens
        if (unit, by) not in self.sum_VI:
            self.sum_VI[unit, by] = like.new_zeros(num_tokens, like.shape[1])
        self.occurs_V.setdefault(by, np.zeros(num_tokens, bool))
        return self.sum_VI[unit, by]

    def position_contributions(self, step: BackwardStep, unit: str) -> Tensor:
        """Return what each position contributes to each neuron of a unit, float32 [M, I]."""
        by = torch.as_tensor(step.coefficients[unit], dtype=torch.float64)
        direction = self.direction[unit].to(by.device) * by
        total_MI = None
        for use in step.factors[unit]:
            assert use.a_NTI is not None
            delta_MO, a_MI = use.delta_NTO.flatten(0, 1).float(), use.a_NTI.flatten(0, 1).float()
            direction_OI = (direction.T if use.transposed else direction).to(delta_MO)
            part_MI = a_MI * (delta_MO @ direction_OI)
            part_MI = part_MI.unflatten(0, (-1, use.per_position)).sum(1)
            total_MI = part_MI if total_MI is None else total_MI + part_MI
        assert total_MI is not None
        return total_MI

    def table(self) -> pa.Table:
        """Return ``CONTRIBUTIONS``."""
        pieces = [CONTRIBUTIONS.empty_table()]
        for unit in self.direction:
            for by in BYS:
                token_R = self.occurs_V[by].nonzero()[0]
                part_RI = self.sum_VI[unit, by].cpu().numpy()[token_R]
                ends = pa.array(np.arange(len(token_R) + 1) * part_RI.shape[1], pa.int32())
                columns = [
                    pa.array([unit] * len(token_R), pa.string()),
                    pa.array([by] * len(token_R), pa.string()),
                    pa.array(token_R, pa.int32()),
                    pa.ListArray.from_arrays(ends, pa.array(part_RI.ravel(), pa.float32())),
                ]
                pieces.append(pa.table(columns, names=CONTRIBUTIONS.names).cast(CONTRIBUTIONS))
        return pa.concat_tables(pieces)

    def neuron_table(self, shifts: Mapping[str, Tensor], decay: Mapping[str, Tensor]) -> pa.Table:
        """Return ``NEURONS``; ``shifts`` and ``decay``: the terms of the law, by unit, float64."""
        initial, last = self.run.checkpoint(0), self.run.checkpoint()
        pieces = [NEURONS.empty_table()]
        for unit, direction in self.direction.items():
            outputs, width = axis_of_outputs(self.run, unit), self.run.layout.fan_in(unit)
            change = last[unit].double() - initial[unit].double()
            along = [(own * direction).sum(outputs) for own in (change, shifts[unit], decay[unit])]
            columns = [pa.array([unit] * width, pa.string()), pa.array(range(width), pa.int32())]
            columns += [pa.array(own_I.numpy()) for own_I in along]
            pieces.append(pa.table(columns, names=NEURONS.names).cast(NEURONS))
        return pa.concat_tables(pieces)


def affordable(run: Run, units: list[str]) -> list[str]:
    """Return the first units whose sums fit into ``MAX_BYTES`` together; logs the number left."""
    each = [4 * len(BYS) * run.num_tokens * run.layout.fan_in(unit) for unit in units]
    kept = int((np.cumsum(each) <= MAX_BYTES).sum())
    if kept < len(units):
        text = "%s: contributions of tokens are left out for %d of %d MLP units, from %s on: they "
        text += "need %d bytes, allowed are %d"
        LOG.warning(text, run.uri, len(units) - kept, len(units), units[kept], sum(each), MAX_BYTES)
    return units[:kept]


def axis_of_outputs(run: Run, unit: str) -> int:
    """Return the axis of a weight that its neurons, the inputs, do not number."""
    return 1 if unit in run.layout.transposed else 0


def has_positions(use: Factor, window: int) -> bool:
    """Return whether a use multiplies the unit with an input at each position of the window."""
    return use.kind == "outer" and use.delta_NTO.shape[1] // use.per_position <= window
