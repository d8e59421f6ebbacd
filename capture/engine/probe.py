"""Sums of per-datum gradients seen through a few random vectors, at a fraction of a product's cost.

The audit compares two gradients of a unit, G = Σ_t l_t r_tᵀ from factors and autograd's. Forming
G costs as much as autograd did. Freivalds (1977, "Probabilistic machines can use less running
time") multiplies both sides by random vectors v_k instead: G v_k = Σ_t l_t (r_t · v_k). With K
independent vectors of standard normal numbers, Σ_k ‖E v_k‖² / K has the mean ‖E‖² (Frobenius) for
any difference E that does not depend on them. So the audit sees the very norm that its law names.

How likely is it that an error looks smaller than it is? An E of rank 1 is the worst case: its
estimate is ‖E‖² χ²_K / K. With K = 8, an error at the tolerance looks like a quarter of it, where
the audit passes it without a second look, with probability 1.4e-4; ten times the tolerance with
1.6e-12; a hundred times the tolerance, as of one wrong datum in a thousand, with 2e-20. Vectors are
drawn anew at every step, from the run's seed and the number of the step.

Shapes: N datum, T position, R row, C column of a unit, K probe, Q everything that is seen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from capture.gradients.dense import write_sum
from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.gradients.memo import Memo

PROBES = 8
"""K."""
LOOK_AGAIN = 0.25
"""Estimates above this share of the tolerance are checked by whole sums."""


@dataclass
class Probe:
    """Maps gradients of all units to one vector [Q] by a linear map that keeps norms on average."""

    layout: Layout
    seed: int
    step: int
    device: torch.device
    vectors: dict[int, Tensor] = field(default_factory=dict)
    """Number of columns → probes divided by √K, [K, C]."""

    def sees_whole(self, name: str) -> bool:
        """Return whether a unit is too small to be probed; all its entries are seen then."""
        shape = self.layout.shapes[name]
        return len(shape) < 2 or math.prod(shape[1:]) <= PROBES

    def vectors_of(self, columns: int) -> Tensor:
        """Return the probes of units with so many columns, [K, C]."""
        if columns not in self.vectors:
            draw = np.random.default_rng((self.seed, self.step, columns))
            probe_KC = draw.standard_normal((PROBES, columns), dtype=np.float32)
            self.vectors[columns] = torch.from_numpy(probe_KC / math.sqrt(PROBES)).to(self.device)
        return self.vectors[columns]

    def of_tensors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what is seen of one tensor per unit, [Q]."""
        return torch.cat([self.of_tensor(name, tensors[name]) for name in self.layout.names])

    def of_vector(self, value_P: Tensor) -> Tensor:
        """Return what is seen of one number per captured parameter, [Q]."""
        parts = zip(self.layout.names, value_P.split(self.layout.sizes), strict=True)
        return torch.cat([self.of_tensor(name, value_S) for name, value_S in parts])

    def of_tensor(self, name: str, value: Tensor) -> Tensor:
        if self.sees_whole(name):
            return value.detach().reshape(-1)
        value_RC = value.detach().reshape(self.layout.shapes[name][0], -1)
        return (self.vectors_of(value_RC.shape[1]) @ value_RC.T).reshape(-1)

    def of_factors(self, factors: Factors, scale: float) -> Tensor:
        """Return what is seen of ``scale`` times the sum over datums of all gradients, [Q]."""
        # Units that share an input share its products with the probes.
        project = Memo(lambda right_NTC: self.vectors_of(right_NTC.shape[-1]) @ flat(right_NTC).T)
        parts = []
        for name in self.layout.names:
            uses = factors[name]
            if not self.sees_whole(name) and all(use.kind in ("outer", "rows") for use in uses):
                parts.append(self.of_uses(uses, len_rows(self.layout, name), project))
            else:
                parts.append(self.of_tensor(name, whole_sum(uses, self.layout.shapes[name])))
        return torch.cat(parts) * scale

    def of_uses(self, uses: list[Factor], num_rows: int, project: Memo) -> Tensor:
        """Return the sum over datums and uses of a unit's gradients times the probes, [K · R]."""
        seen_KR = torch.zeros(PROBES, num_rows, device=self.device)
        for use in uses:
            if use.kind == "outer":
                left_NTR, right_NTC = use.sides
                seen_KR += project(right_NTC) @ flat(left_NTR)
            else:
                assert use.token_NT is not None
                seen_KR.index_add_(1, use.token_NT.reshape(-1), project(use.delta_NTO))
        return seen_KR.reshape(-1)


def flat(x_NTC: Tensor) -> Tensor:
    """Join the axes of datum and position."""
    return x_NTC.reshape(-1, x_NTC.shape[-1])


def len_rows(layout: Layout, name: str) -> int:
    return layout.shapes[name][0]


def whole_sum(uses: list[Factor], shape: tuple[int, ...]) -> Tensor:
    """Return the sum over datums of one unit's gradients, flattened."""
    out_S = uses[0].delta_NTO.new_empty(math.prod(shape))
    write_sum(uses, 1.0, out_S, None)
    return out_S
