"""The gradient that the optimizer is given, beside the sum of its datums' gradients.

At most steps both are seen through the random vectors of a ``Probe``, which costs a tenth of a sum
of products. Under bfloat16, where each entry has a bound of its own, they are whole.

Least squares (``update.gradient_multiplier``) finds the factor up to a rounding, because every
gradient has one of its own: 0.03 % for bfloat16 and a model of a hundred parameters. The audit
allows each entry its own rounding and nothing more, so an entry that was rounded nearly as far as
possible would miss its bound by the error of the factor. Hence under bfloat16 the factor is chosen
such that all entries keep their bounds, if there is one: an entry with ĝ = c · (S + e), |e| ≤ r,
says that 1 / c lies between (|S| − r) / |ĝ| and (|S| + r) / |ĝ|.

Shapes: P all captured parameters, Q what is seen of them (the same without a probe).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from capture.custom_loop.update import gradient_multiplier
from capture.engine.audit import bfloat16_allowance
from capture.engine.probe import Probe
from capture.gradients.dense import sum_shifts
from capture.gradients.factors import Factors
from capture.gradients.layout import Layout
from capture.optim.config import TrainingConfig
from capture.process_group import SINGLE_PROCESS


@dataclass(frozen=True)
class GradientSums:
    """Two gradients that are equal but for one factor, where a loop can be recorded."""

    given_Q: Tensor
    """Gradient that the optimizer is given."""
    summed_Q: Tensor
    """Sum of the gradients of this rank's datums."""
    probe: Probe | None
    """Through which they are seen; None: they are whole."""

    @classmethod
    def of(
        cls,
        grads: Mapping[str, Tensor],
        factors: Factors,
        layout: Layout,
        training: TrainingConfig,
        probe: Probe | None,
    ) -> "GradientSums":
        if probe is None or training.precision != "float32":
            return cls(layout.flatten(grads), sum_shifts(factors, layout, 1.0), None)
        return cls(probe.of_tensors(grads), probe.of_factors(factors, 1.0), probe)

    @property
    def size(self) -> float:
        """⟨ĝ, ĝ⟩ of the given gradient ĝ."""
        return float(self.given_Q.double().square().sum())

    @property
    def product(self) -> float:
        """⟨ĝ, S⟩ of the given gradient ĝ and this rank's sum S."""
        return float(self.given_Q.double() @ self.summed_Q.double())

    def multiplier(self, factors: Factors, layout: Layout, training: TrainingConfig) -> float:
        """Return the number by which a loop of one process has multiplied all gradients."""
        found = gradient_multiplier(self.given_Q, self.summed_Q)
        if training.precision == "float32":
            return found
        pieces, one = training.accumulate, SINGLE_PROCESS
        rounding = bfloat16_allowance(self.summed_Q, factors, 1.0, layout, pieces, one)
        return within_rounding(found, self.given_Q, self.summed_Q, rounding)


def within_rounding(found: float, given_P: Tensor, summed_P: Tensor, rounding_P: Tensor) -> float:
    """Return the multiplier nearest to ``found`` for which rounding explains all differences.

    It is 1.0 if that explains them, and ``found`` if no multiplier does: the audit says so.
    ``given_P``: gradients that the optimizer is given; ``summed_P``: sum of per-sample gradients;
    ``rounding_P``: bounds on the rounding of each before the multiplication.
    """
    sign = -1.0 if found < 0 else 1.0
    with_sign_P = given_P.double() * summed_P.double().sign() * sign
    bound_P = with_sign_P > 0  # entries of another sign are left to the audit
    if not bool(bound_P.any()):
        return found
    size_P, given_P = summed_P.double().abs()[bound_P], with_sign_P[bound_P]
    rounding_P = rounding_P.double()[bound_P]
    low = float(((size_P - rounding_P) / given_P).max())
    high = float(((size_P + rounding_P) / given_P).min())
    if low > high or high <= 0:
        return found
    if sign > 0 and low <= 1 <= high:
        return 1.0
    return sign / min(max(sign / found, low), high) if found else found
