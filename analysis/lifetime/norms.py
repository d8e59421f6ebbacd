"""Update norms of lifetime shifts, by token and neuron: sums over all positions, with no cut-off.

At position t, a linear unit with input a and output gradient δ contributes δ_t a_tᵀ to a gradient.
With the multipliers C from gradient to lifetime shift, the position's lifetime shift of neuron n,
the n-th input, is C_on δ_to a_tn over the outputs o. Its norm is |a_tn| · √(Σ_o δ_to² C_on²). For
SGD, C is one number, and this is |C| · ‖δ_t‖ · |a_tn|: the update norm of tallies
(``capture.shifts.tallies``), with C in place of lr · clip.

Windows of training and kinds of token are those of the run's tallies.

Shapes: N datum, T position, M = N·T positions of a batch, I input width, O output width,
V vocabulary, K = Σ I, R token that occurs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from analysis.lifetime.backward import BackwardStep
from analysis.lifetime.tables import UPDATE_NORMS
from analysis.run.run import Run
from analysis.run.tallies import tally_units, tally_windows
from capture.format.tally_tables import round_to_bits
from capture.gradients.factors import Factor
from capture.optim.lifetime import Coefficient
from capture.shifts.tallies import BYS, By


@dataclass(eq=False)
class NormSums:
    """Sums of the window of training that is being read."""

    run: Run
    widths: Mapping[str, int]
    """Unit → its number of neurons I."""
    windows: pd.DataFrame
    """window, first_step, end_step"""
    sum_VK: dict[By, Tensor] = field(default_factory=dict)
    count_V: dict[By, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> "NormSums":
        """Return sums for the tallies of a run; without tallies, there are no windows."""
        if not run.shards("tallies"):
            return cls(run, {}, pd.DataFrame({"window": [], "first_step": [], "end_step": []}))
        return cls(run, tally_units(run), tally_windows(run))

    def add(self, step: BackwardStep) -> Iterator[tuple[int, pa.Table]]:
        """Add a step, the last one first; yield a window that is complete, and its table."""
        starts, ends = (self.windows[name].to_numpy() for name in ("first_step", "end_step"))
        inside = np.flatnonzero((starts <= step.step) & (step.step < ends))
        if not len(inside):
            return
        (place,) = inside
        share_MK = position_norms(step, self.widths)
        if not self.sum_VK:
            self.clear(share_MK)
        positions = len(share_MK) // len(step.datum_N)
        tokens: dict[By, np.ndarray] = {"target": self.run.target_NT, "input": self.run.token_NT}
        for by, token_NT in tokens.items():
            token_M = token_NT[step.datum_N, -positions:].ravel().astype(np.int64)
            index_M = torch.from_numpy(token_M).to(share_MK.device)
            self.sum_VK[by].index_add_(0, index_M, share_MK)
            self.count_V[by] += np.bincount(token_M, minlength=self.run.num_tokens)
        if step.step == starts[place]:
            yield int(self.windows["window"].iloc[place]), self.table()
            self.sum_VK = {}

    def clear(self, like: Tensor) -> None:
        size = (self.run.num_tokens, like.shape[1])
        self.sum_VK = {by: like.new_zeros(size) for by in BYS}
        self.count_V = {by: np.zeros(size[0], np.int64) for by in BYS}

    def table(self) -> pa.Table:
        """Return ``UPDATE_NORMS`` of the window, with the precision of stored tallies."""
        pieces = [UPDATE_NORMS.empty_table()]
        start = 0
        for unit, width in self.widths.items():
            for by in BYS:
                token_R = self.count_V[by].nonzero()[0]
                norm_RI = self.sum_VK[by][:, start : start + width].cpu().numpy()[token_R]
                flat = pa.array(round_to_bits(norm_RI).ravel(), pa.float32())
                ends = pa.array(np.arange(len(token_R) + 1) * width, pa.int32())
                columns = [
                    pa.array([unit] * len(token_R)),
                    pa.array([by] * len(token_R)),
                    pa.array(token_R, pa.int32()),
                    pa.ListArray.from_arrays(ends, flat),
                ]
                pieces.append(pa.table(columns, names=UPDATE_NORMS.names).cast(UPDATE_NORMS))
            start += width
        return pa.concat_tables(pieces)


def position_norms(step: BackwardStep, widths: Mapping[str, int]) -> Tensor:
    """Return the norm of each position's lifetime shift of every neuron, float32 [M, K].

    A unit that is called several times in a forward pass gets the sum over its calls, as tallies.
    """
    return torch.cat([unit_norms(step.factors[n], step.coefficients[n]) for n in widths], 1)


def unit_norms(uses: Sequence[Factor], coefficient: Coefficient) -> Tensor:
    """Like ``position_norms``, for the neurons of one unit, [M, I]."""
    total_MI = None
    for use in uses:
        assert use.kind == "outer"
        assert use.a_NTI is not None
        delta_MO, a_MI = use.delta_NTO.flatten(0, 1).float(), use.a_NTI.flatten(0, 1).float()
        if isinstance(coefficient, Tensor):
            by_OI = coefficient.T if use.transposed else coefficient
            square_OI = by_OI.square().to(delta_MO)
            norm_MI = (delta_MO.square() @ square_OI).sqrt_().mul_(a_MI.abs())
        else:
            norm_MI = a_MI.abs() * delta_MO.norm(dim=1, keepdim=True).mul_(abs(coefficient))
        total_MI = norm_MI if total_MI is None else total_MI.add_(norm_MI)
    assert total_MI is not None
    return total_MI
