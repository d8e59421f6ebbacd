"""Law "split": a datum's captured gradient is that of a pass of this datum alone, or refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import TOP, uri
from split_models import (
    Balanced,
    ChosenTokens,
    Dropped,
    FirstRow,
    Fixed,
    LayerOnPositions,
    Loss,
    MaskFirst,
    N,
    Normalized,
    PairsOfPositions,
    Parts,
    Repeated,
    TimeFirst,
    batch_normalized,
    contrastive,
    next_token,
    tokens,
)
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.errors import RunError, SplitError, UnitError


def run_one_step(folder: Path, model: nn.Module, loss: Loss, units: list[str]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"outliers": TOP, "factors": FactorConfig(enabled=True)}
    with record(model, optimizer, run=uri(folder), units=units, datums=N, **options):
        loss(model, tokens()).backward()
        optimizer.step()


UNITS = ["embedding.*", "layer.*", "out.*"]
POSITIONS = [*UNITS, "positions.*"]
EXACT = {
    "repeated for the batch": (Repeated, POSITIONS),
    "the first of one row": (FirstRow, POSITIONS),
    "a layer on positions": (LayerOnPositions, POSITIONS),
    "pairs of positions": (PairsOfPositions, POSITIONS),
    "batch norm with running statistics": (Fixed, UNITS),
}


@pytest.mark.parametrize("kind", EXACT)
def test_each_datum_has_the_gradient_of_a_pass_of_its_own(tmp_path: Path, kind: str) -> None:
    make, units = EXACT[kind]
    run_one_step(tmp_path, make().train(), next_token, units)
    run = open_run(uri(tmp_path))
    for n in range(N):
        model = make().train()
        (next_token(model, tokens()[n : n + 1]) / N).backward()
        for unit in run.layout.shapes:
            wanted = model.get_parameter(unit).grad
            assert wanted is not None
            assert np.allclose(run.gradient(0, n, unit), wanted.numpy(), atol=1e-6), (n, unit)


@pytest.mark.parametrize("kind", EXACT)
def test_the_recorded_model_behaves_as_if_it_were_not_recorded(tmp_path: Path, kind: str) -> None:
    make, units = EXACT[kind]
    recorded, plain = make().train(), make().train()
    run_one_step(tmp_path, recorded, next_token, units)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    next_token(plain, tokens()).backward()
    optimizer.step()
    wanted = plain.state_dict()
    assert all(torch.equal(x, wanted[name]) for name, x in recorded.state_dict().items())


def test_a_check_changes_neither_random_numbers_nor_buffers(tmp_path: Path) -> None:
    class Both(Dropped, Fixed):
        def forward(self, token_NT: Tensor) -> Tensor:
            return Dropped.forward(self, token_NT)

    states = []
    for recording in (True, False):
        model = Both().train()
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if recording:
            with record(model, optimizer, run=uri(tmp_path), outliers=TOP, units=UNITS):
                for _ in range(3):
                    next_token(model, tokens()).backward()
                    optimizer.step()
                    optimizer.zero_grad()
        else:
            for _ in range(3):
                next_token(model, tokens()).backward()
                optimizer.step()
                optimizer.zero_grad()
        states.append((model.state_dict(), torch.get_rng_state()))
    (one, random), (other, plain) = states
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(random, plain)


class Counting(Dropped):
    """Counts its calls, remembers lengths, and caches what it makes first."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, {"lengths": [0]}

    def forward(self, token_NT: Tensor) -> Tensor:
        self.calls += 1
        self.seen["lengths"].append(len(token_NT))
        if not hasattr(self, "first"):
            self.first = len(token_NT)
        return super().forward(token_NT)


def test_a_check_leaves_no_trace_in_python_attributes(tmp_path: Path) -> None:
    model = Counting().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lengths = model.seen["lengths"]
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP, units=UNITS):
        for _ in range(3):
            next_token(model, tokens()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert model.calls == 3
    assert model.seen["lengths"] is lengths
    assert lengths == [0, N, N, N]
    assert model.first == N


REFUSED = {
    "time first": (TimeFirst, next_token, "the first axis of its input is not the datum"),
    "chosen tokens": (ChosenTokens, next_token, "selects rows|differs by"),
    "batch norm": (Normalized, next_token, "norm \\(BatchNorm1d\\) normalizes over the batch"),
    "gates over the batch": (Balanced, next_token, "datums interact in the model"),
    "contrastive loss": (Repeated, contrastive, "datums interact in the loss"),
    "loss normalized over the batch": (Repeated, batch_normalized, "datums interact in the loss"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_wrong_split_is_refused_before_anything_is_stored(tmp_path: Path, kind: str) -> None:
    make, loss, cause = REFUSED[kind]
    with pytest.raises((SplitError, UnitError), match=cause) as caught:
        run_one_step(tmp_path, make().train(), loss, UNITS)
    assert "\n" not in str(caught.value)
    assert open_run(uri(tmp_path)).steps_done == 0


@pytest.mark.parametrize("kind", ["time first", "chosen tokens"])
def test_the_audit_alone_would_accept_them(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is what finds these: without it they are recorded with a green audit."""
    make, loss, _ = REFUSED[kind]
    monkeypatch.setattr(
        "capture.custom_loop.checks.split_guard.SplitGuard.check", lambda *given: None
    )
    run_one_step(tmp_path, make().train(), loss, UNITS)
    assert open_run(uri(tmp_path)).steps()["audit_error"].max() < 1e-5


def test_dropout_is_split_rightly_though_its_mask_cannot_be_drawn_again(tmp_path: Path) -> None:
    run_one_step(tmp_path, Dropped().train(), next_token, UNITS)
    assert open_run(uri(tmp_path)).steps_done == 1


def test_a_refused_recording_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    with pytest.raises((SplitError, UnitError)):
        run_one_step(tmp_path, TimeFirst(), next_token, UNITS)
    run_one_step(tmp_path, Repeated(), next_token, UNITS)
    assert open_run(uri(tmp_path)).steps_done == 1
    with pytest.raises(RunError, match="Add resume=True to go on with it or overwrite=True"):
        run_one_step(tmp_path, Repeated(), next_token, UNITS)


class Scaled(Parts):
    def forward(self, token_NT: Tensor, scale_N11: Tensor) -> Tensor:
        return self.out(self.body(self.embedding(token_NT)) * scale_N11)


def test_steps_that_could_not_be_checked_are_counted_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop writes over an input before the step, so the model cannot be run on it again."""
    model, token_NT, scale_N11 = Scaled(), tokens(), torch.ones(N, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, run=uri(tmp_path), units=UNITS, datums=N, outliers=TOP):
        logits_NTV = model(token_NT[:, :-1], scale_N11)
        F.cross_entropy(logits_NTV.flatten(0, 1), token_NT[:, 1:].flatten()).backward()
        scale_N11.zero_()
        optimizer.step()
    said = [entry.getMessage() for entry in caplog.records]
    assert any(
        "1 steps in which the split by datum could not be checked: an input" in text
        for text in said
    ), said


@pytest.mark.parametrize("length", [2, N, 5])
def test_a_mask_before_the_tokens_is_not_the_batch(tmp_path: Path, length: int) -> None:
    token_NT, mask_TT = tokens()[:, : length + 1], torch.ones(length, length).tril()

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        logits_NTV = model(mask_TT, token_NT[:, :-1])
        return F.cross_entropy(logits_NTV.flatten(0, 1), token_NT[:, 1:].flatten())

    model = MaskFirst()
    loss(model, token_NT[1:2]).backward()
    alone = {name: p.grad.clone() / N for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"outliers": TOP, "factors": FactorConfig(enabled=True)}
    with record(model, optimizer, run=uri(tmp_path), units=UNITS, **options):
        loss(model, token_NT).backward()
        optimizer.step()
    run = open_run(uri(tmp_path))
    assert len(run.steps()["datums"][0]) == N
    for unit in run.layout.names:
        np.testing.assert_allclose(run.gradient(0, 1, unit), alone[unit], rtol=1e-4, atol=1e-7)


def record_steps(folder: Path, losses: list[Loss]) -> None:
    """Record one step of each loss."""
    model = Repeated()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"units": UNITS, "datums": N, "outliers": TOP}
    with record(model, optimizer, run=uri(folder), **options) as recorder:
        for loss in losses:
            recorder.datums(range(N))
            loss(model, tokens()).backward()
            optimizer.step()
            optimizer.zero_grad()


def test_a_split_that_breaks_later_is_found_at_a_step_drawn_from_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [*[next_token] * 3, *[contrastive] * 30]
    record_steps(tmp_path / "rarely", losses)  # one step in 200 is drawn: none of these
    monkeypatch.setattr("capture.engine.split.EVERY", 4)
    with pytest.raises(SplitError, match="datums interact in the loss"):
        record_steps(tmp_path / "often", losses)
