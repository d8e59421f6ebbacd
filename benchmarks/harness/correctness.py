"""Every method is right before it is timed: all agree with a loop of one-datum passes on one batch.

Errors are relative to the largest entry of the tensor in question. Equal sums in another order
leave about 1e-7 of float32; the tolerance is far above that, and far below what a wrong mask, a
forgotten token or a factor of N would do.

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
    """What plain autograd says about one batch, and how far a method is from it."""

    def __init__(self, bench: Workbench, turn: PlannedStep) -> None:
        self.bench = bench
        self.turn = turn
        bench.engine.optimizer.zero_grad()
        self.by_datum = datum_by_datum(bench, turn)
        self.of_batch = batch_gradients(bench)

    def error(self, method: Method) -> float:
        """Of a method's per-datum gradients, and of the batch's gradient of the whole model."""
        self.bench.engine.optimizer.zero_grad()
        found = method(self.bench, self.turn)
        errors = [largest_error(batch_gradients(self.bench), self.of_batch)]
        return max(errors + ([largest_error(found, self.by_datum)] if found else []))

    def error_of_tokens(self) -> float:
        """Of the post's way, on the first datum."""
        first = {name: gradient[:1] for name, gradient in self.by_datum.items()}
        return largest_error(token_by_token(self.bench, self.turn), first)

    def error_of_torch(self, twin: TorchTwin) -> float:
        """Of the logits of torch's transformer, dropout off: its masks are its own."""
        token_NT, _ = self.bench.batch(self.turn)
        with torch.no_grad():
            wanted_NTV = self.bench.model(token_NT, Masks.none())
            found_NTV = twin.eval()(token_NT)
        twin.train()
        return relative(found_NTV, wanted_NTV)

    def error_of_capture(self) -> float:
        """Of the outliers: their shifts, and the least of them against a sort. Takes the step."""
        observed = observe(self.bench, self.turn)
        row, outliers = observed.row, observed.outliers
        assert outliers
        scale = -float(str(row["learning_rate"])) * float(str(row["clip"]))
        layout = self.bench.observer.layout
        shift_NP = scale * torch.cat([self.by_datum[n].flatten(1) for n in layout.names], 1)
        found_M, slot_M = outliers.shift_M, outliers.slot_M
        error = relative(found_M, shift_NP[slot_M, outliers.column_M])
        for slot, shift_P in enumerate(shift_NP):
            found_K = found_M[slot_M == slot].abs()
            wanted_K = shift_P.abs().topk(len(found_K)).values
            error = max(error, relative(found_K.sort(descending=True).values, wanted_K))
        assert len(found_M) == len(shift_NP) * self.bench.plan.config.capture.outliers.k
        return error


def batch_gradients(bench: Workbench) -> Gradients:
    """What the parameters hold, the whole model's."""
    return {
        name: parameter.grad.clone()
        for name, parameter in bench.model.named_parameters()
        if parameter.grad is not None
    }


def largest_error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(relative(found[name], wanted[name]) for name in wanted)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference, relative to the largest absolute entry."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def require(errors: Mapping[str, float]) -> None:
    """End the benchmark where a method is wrong."""
    wrong = [f"{name}: {error:.1e}" for name, error in errors.items() if not error < TOLERANCE]
    if wrong:
        raise SystemExit(f"Not timed, for these are wrong by more than {TOLERANCE}: {wrong}")
