"""Unsupported custom training loops are refused with a clear message and store no wrong rows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.custom_loop.recording import Recording
from capture.errors import AuditError, CaptureError, ConfigError, RunError, UnitError
from capture.shifts.outliers import OutlierConfig

SGD, ADAM = torch.optim.SGD, torch.optim.Adam


def recorded(
    folder: Path, model: nn.Module, loop: Callable[[Recording], object], **more: Any
) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, run=uri(folder), outliers=TOP, **more) as recorder:
        loop(recorder)


def step(recorder: Recording, loss: Tensor) -> None:
    loss.backward()
    recorder.optimizer.step()
    recorder.optimizer.zero_grad()


class Many(nn.Module):
    """A model with very many parameters, as a mixture of experts has."""

    def __init__(self) -> None:
        super().__init__()
        experts = (nn.Parameter(torch.zeros(1)) for _ in range(3000))
        self.of_a_mixture_with_a_long_name_of_its_own = nn.ParameterList(experts)


# --- refused at the start -------------------------------------------------------------------------

INVALID: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any], str]] = {
    "optimizer": (
        lambda m: torch.optim.Rprop(m.parameters()),
        {},
        "have changed (it trains 100.0% of the model). Use an optimizer of torch.optim, or give",
    ),
    "option": (
        lambda m: ADAM(m.parameters(), differentiable=True),
        {},
        "optimizer: is Adam with differentiable=True, whose updates cannot be decomposed (it "
        "trains 100.0% of the model). Set differentiable=False",
    ),
    "untrained": (
        lambda m: SGD(list(m.parameters())[1:], 0.1),
        {"units": ["*"]},
        "units: embedding.weight is not a parameter that the optimizer trains (Embedding emb",
    ),
    "pattern": (
        lambda m: SGD(m.parameters(), 0.1),
        {"units": ["*.kernel"]},
        "matches no parameter of the model",
    ),
    "thousands": (
        lambda m: SGD(m.parameters(), 0.1),
        {},
        "units: match 3,000 parameters, more than run.yaml can name",
    ),
    "text": (
        lambda m: SGD(m.parameters(), 0.1),
        {"units": "*.weight"},
        "units: got '*.weight', must be a list of patterns",
    ),
    "no pattern": (
        lambda m: SGD(m.parameters(), 0.1),
        {"units": []},
        "units: is empty, must hold at least one pattern",
    ),
    "k": (
        lambda m: SGD(m.parameters(), 0.1),
        {"outliers": OutlierConfig(k=9999)},
        "outliers.k: got 9999, must be at most 197, the number of captured parameters",
    ),
    "factors": (
        lambda m: SGD(m.parameters(), 0.1),
        {"factors": "all"},
        "factors: got 'all', must be a FactorConfig. Pass factors=ontogeny.FactorConfig(enabled=",
    ),
    "true": (
        lambda m: SGD(m.parameters(), 0.1),
        {"factors": True},
        "factors: got True, must be a FactorConfig. Pass factors=ontogeny.FactorConfig(enabled=",
    ),
    "outliers": (
        lambda m: SGD(m.parameters(), 0.1),
        {"outliers": {"k": 3}},
        "outliers: got {'k': 3}, must be an OutlierConfig. Pass outliers=ontogeny.OutlierConfig(k=",
    ),
    "none": (
        lambda m: SGD(m.parameters(), 0.1),
        {"outliers": False},
        "outliers: got False, must be an OutlierConfig. Pass outliers=ontogeny.OutlierConfig(k=",
    ),
    "tokens": (
        lambda m: SGD(m.parameters(), 0.1),
        {"datums": torch.zeros(3, 4, 5)},
        "datums: got float32 (3, 4, 5). Tokens must be integers",
    ),
    "vocabulary": (
        lambda m: SGD(m.parameters(), 0.1),
        {"datums": tokens(), "vocabulary": ["a", "b"]},
        "datums: has tokens 0 to 10, the vocabulary 0 to 1",
    ),
    "names": (
        lambda m: SGD(m.parameters(), 0.1),
        {"datums": []},
        "datums: is empty, must name at least one datum",
    ),
    "words": (
        lambda m: SGD(m.parameters(), 0.1),
        {"datums": ["a"], "vocabulary": ["a", "b"]},
        "vocabulary: was given without tokens",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_arguments_are_refused_before_anything_is_written(tmp_path, name):
    optimizer_of, more, text = INVALID[name]
    model = Many() if name == "thousands" else Small()
    recording = record(model, optimizer_of(model), run=uri(tmp_path), **more)
    with pytest.raises(ConfigError, match=re.escape(text)):
        recording.__enter__()
    assert not Path(uri(tmp_path)).exists()


def test_weights_that_are_not_float32_are_refused(tmp_path):
    model = Small().bfloat16()
    recording = record(model, SGD(model.parameters(), 0.1), run=uri(tmp_path))
    with pytest.raises(UnitError, match=r"embedding\.weight: is bfloat16, must be float32"):
        recording.__enter__()


# --- refused during training ----------------------------------------------------------------------


def no_backward(recorder: Recording) -> None:
    step(recorder, loss_of(recorder.model, tokens()))
    recorder.optimizer.step()


def with_an_empty_closure(recorder: Recording) -> None:
    recorder.optimizer.step(lambda: 0.0)


def with_an_unsupported_use(recorder: Recording) -> None:
    weight = recorder.units["layer.weight"]
    step(recorder, loss_of(recorder.model, tokens()) + weight.square().sum())


def with_unsupported_uses_everywhere(recorder: Recording) -> None:
    odd = sum(weight.square().sum() for weight in recorder.units.values())
    step(recorder, loss_of(recorder.model, tokens()) + odd)


def with_time_first(recorder: Recording) -> None:
    recorder.datums(range(12))
    loss_of(recorder.model, tokens().T)


def with_too_few_datums(recorder: Recording) -> None:
    recorder.datums(range(6))
    step(recorder, loss_of(recorder.model, tokens()))


def with_an_unknown_datum(recorder: Recording) -> None:
    recorder.datums([3, 12])


def with_ids_that_are_not_integers(recorder: Recording) -> None:
    recorder.datums([0.5])  # pyright: ignore[reportArgumentType]


def with_longer_datums(recorder: Recording) -> None:
    recorder.datums([1])
    step(recorder, loss_of(recorder.model, tokens().flatten()[None]))


def with_a_replaced_gradient(recorder: Recording) -> None:
    loss_of(recorder.model, tokens()).backward()
    layer = recorder.units["layer.weight"]
    assert layer.grad is not None
    layer.grad = layer.grad / 2  # another tensor, of which nothing is known
    recorder.optimizer.step()


def with_noise(recorder: Recording) -> None:
    loss_of(recorder.model, tokens()).backward()
    grad = recorder.units["out.weight"].grad
    assert grad is not None
    grad[0, 0] += 1e-3
    recorder.optimizer.step()


def with_a_multiplied_slice(recorder: Recording) -> None:
    loss_of(recorder.model, tokens()).backward()
    grad = recorder.units["out.weight"].grad
    assert grad is not None
    grad[0].mul_(0.5)
    recorder.optimizer.step()


def out_of_range(recorder: Recording) -> None:
    step(recorder, loss_of(recorder.model, tokens()) * torch.inf)


LOOPS: dict[Callable[[Recording], None], tuple[type[CaptureError], str]] = {
    no_backward: (
        RunError,
        "step 1: no backward pass has reached a unit since the last optimizer step",
    ),
    with_an_empty_closure: (RunError, "step 0: no backward pass has reached a unit since"),
    with_an_unsupported_use: (
        UnitError,
        "layer.weight: is used by square, which capture cannot split",
    ),
    with_unsupported_uses_everywhere: (UnitError, " of the model; with "),
    with_time_first: (UnitError, "model: got an input (6, 11) for 12 datums"),
    with_too_few_datums: (UnitError, "model: got an input (12, 5) for 6 datums. Give one id"),
    with_an_unknown_datum: (ConfigError, "got 3 to 12, the run's datums are 0 to 11. Call"),
    with_ids_that_are_not_integers: (
        ConfigError,
        "recorder.datums: got float64 (1,), must be the integer ids",
    ),
    with_longer_datums: (UnitError, "step 0: a shift is at position"),
    with_a_replaced_gradient: (AuditError, "step 0: shifts miss the applied change by"),
    with_noise: (AuditError, "change gradients only by multiplying or clamping them in place"),
    with_a_multiplied_slice: (AuditError, "each gradient as a whole: not p.grad[0].mul_, not by"),
    out_of_range: (AuditError, "step 0: training has diverged (gradients or weights out of range)"),
}


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_an_unsupported_loop_stops_at_its_first_unsupported_step(tmp_path, loop):
    kind, text = LOOPS[loop]
    with pytest.raises(kind, match=re.escape(text)):
        recorded(tmp_path, Small(), loop, datums=tokens())
    assert open_run(uri(tmp_path)).steps_done == 0


def test_a_loop_that_ignores_the_error_records_nothing_more(tmp_path):
    def ignores_the_error(recorder: Recording) -> None:
        for text in ("shifts miss the applied change", "recording ended before step 0"):
            with pytest.raises(CaptureError, match=text):
                with_a_replaced_gradient(recorder)
            recorder.optimizer.zero_grad()

    with pytest.raises(AuditError, match="shifts miss the applied change"):
        recorded(tmp_path, Small(), ignores_the_error, segment_steps=1)
    assert open_run(uri(tmp_path)).steps_done == 0


def test_an_unsupported_use_without_gradient_is_accepted(tmp_path):
    def looks_at_weights(recorder: Recording) -> None:
        for _ in range(2):
            size = recorder.units["layer.weight"].square().sum()
            step(recorder, loss_of(recorder.model, tokens()) / float(size.detach()))

    recorded(tmp_path, Small(), looks_at_weights)
    assert open_run(uri(tmp_path)).steps_done == 2


def test_a_group_with_learning_rate_0_has_no_shifts(tmp_path):
    model = Small()
    groups = [{"params": model.layer.parameters(), "lr": 0.0}]
    others = [p for name, p in model.named_parameters() if not name.startswith("layer")]
    optimizer = ADAM([*groups, {"params": others}], lr=0.01)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP):
        for _ in range(2):
            F.cross_entropy(model(tokens())[:, 0], tokens()[:, 1]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not set(open_run(uri(tmp_path)).shifts()["unit"]) & {"layer.weight", "layer.bias"}
