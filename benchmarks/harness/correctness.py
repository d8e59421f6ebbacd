"""Check every method against a loop of one-datum passes on one batch, before anything is timed.

Errors are relative to the largest absolute entry of the reference tensor. Adding the same float32
numbers in another order changes a sum by about 1e-7. The tolerance is far above that, and far
below the effect of a wrong mask, a missing token or a factor of N.

Shapes: N datum, T position, V vocabulary, P captured parameter, M outlier, K outlier of one datum.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.harness.methods import Gradients, Method, datum_by_datum, token_by_token
from benchmarks.harness.peers import TorchTwin
from benchmarks.harness.recording import observe
from benchmarks.harness.workbench import Workbench
from capture.engine.step_plan import PlannedStep
from capture.models.dropout import Masks

TOLERANCE = 1e-4


class Reference:
    """The gradients of one batch by plain autograd; computes the errors of methods against them."""

    def __init__(self, bench: Workbench, planned: PlannedStep) -> None:
        self.bench = bench
        self.planned = planned
        bench.engine.optimizer.zero_grad()
        self.by_datum = datum_by_datum(bench, planned)
        self.of_batch = batch_gradients(bench)

    def error(self, method: Method) -> float:
        """Return the largest error of a method.

        Covers its per-datum gradients and its batch gradient of the whole model.
        """
        self.bench.engine.optimizer.zero_grad()
        found = method(self.bench, self.planned)
        errors = [largest_error(batch_gradients(self.bench), self.of_batch)]
        return max(errors + ([largest_error(found, self.by_datum)] if found else []))

    def error_of_tokens(self) -> float:
        """Return the error of the study's method, on the first datum."""
        first = {name: gradient[:1] for name, gradient in self.by_datum.items()}
        return largest_error(token_by_token(self.bench, self.planned), first)

    def error_of_torch(self, twin: TorchTwin) -> float:
        """Return the error of the logits of torch's transformer, with dropout off.

        Gradients with dropout cannot be compared, because torch draws other masks.
        """
        token_NT, _ = self.bench.batch(self.planned)
        with torch.no_grad():
            wanted_NTV = self.bench.model(token_NT, Masks.none())
            found_NTV = twin.eval()(token_NT)
        twin.train()
        return relative(found_NTV, wanted_NTV)

    def error_of_capture(self) -> float:
        """Return the error of the recorded outliers; takes the training step.

        Compares their shifts with the reference, and the selection with a full ``topk``.
        """
        observed = observe(self.bench, self.planned)
        row, outliers = observed.row, observed.outliers
        assert outliers
        scale = -float(str(row["learning_rate"])) * float(str(row["clip"]))
        layout = self.bench.observer.layout
        shift_NP = scale * torch.cat([self.by_datum[n].flatten(1) for n in layout.names], 1)
        found_M, slot_M = outliers.shift_M, outliers.slot_M
        error = relative(found_M, shift_NP[slot_M, outliers.column_M])
        # Compare sorted magnitudes, not indices: rounding may swap two nearly equal shifts.
        for slot, shift_P in enumerate(shift_NP):
            found_K = found_M[slot_M == slot].abs()
            wanted_K = shift_P.abs().topk(len(found_K)).values
            error = max(error, relative(found_K.sort(descending=True).values, wanted_K))
        assert len(found_M) == len(shift_NP) * self.bench.plan.config.capture.outliers.k
        return error


def batch_gradients(bench: Workbench) -> Gradients:
    """Return copies of the ``grad`` of all parameters of the model, by name."""
    return {
        name: parameter.grad.clone()
        for name, parameter in bench.model.named_parameters()
        if parameter.grad is not None
    }


def largest_error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(relative(found[name], wanted[name]) for name in wanted)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the largest absolute difference over the largest absolute entry of ``wanted``."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def require(errors: Mapping[str, float]) -> None:
    """Raise ``SystemExit`` if the error of any method exceeds the tolerance."""
    wrong = [f"{name}: {error:.1e}" for name, error in errors.items() if not error < TOLERANCE]
    if wrong:
        raise SystemExit(f"Nothing was timed: errors of more than {TOLERANCE} in {wrong}")
