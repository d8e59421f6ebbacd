"""Modules that run again for each datum: passes, in-place changes, outputs that nothing uses."""

from functools import partial
from typing import Any

import pytest
import torch
from custom_loops import D, V, loss_of, tokens
from exact_loops import ADAMW, TOKENS, shares_of, train
from exact_modules import Recurrent
from loop_session import Session, Unrecorded
from torch import Tensor, nn

from capture.custom_loop.rerun.batch_axis import batch_axis, leaves_of, rows_of_datum
from capture.errors import ConfigError, UnitError


def lstm() -> nn.Module:
    return Recurrent(nn.LSTM, batch_first=True)


def both(loop: Any, tmp_path: Any) -> Session:
    """Run a loop with and without recording; return the session if both end at one place."""
    session, plain = Session(tmp_path), Unrecorded(tmp_path)
    loop(session)
    loop(plain)
    pairs = zip(session.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    return session


def micro_batches(session: Session) -> None:
    model = lstm()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        for pieces in ([[0, 1, 2], [3, 4, 5]], [[4, 5, 6], [1, 2, 3]]):
            shares = {}
            for ids in pieces:
                recorder.datums(ids)
                (loss_of(model, TOKENS[ids]) / 2).backward()
                shares |= {i: lambda i=i: loss_of(model, TOKENS[[i]]) / 6 for i in ids}
            session.expect(shares)
            optimizer.step()
            optimizer.zero_grad()


def two_backward_passes(session: Session) -> None:
    model = lstm()
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=12) as recorder:
        recorder.datums([0, 1, 2])
        loss = loss_of(model, TOKENS[:3])
        loss.backward(retain_graph=True)
        loss.backward()
        session.expect({i: lambda i=i: loss_of(model, TOKENS[[i]]) * 2 / 3 for i in range(3)})
        optimizer.step()


def evaluations_between(session: Session) -> None:
    model = lstm()
    train(
        session,
        model,
        ADAMW(model.parameters(), 0.01),
        before_step=lambda: loss_of(model, tokens()[8:]),
        after_step=lambda: loss_of(model, tokens()[8:]),
    )


class Twice(nn.Module):
    """Uses one module twice, and an output of it that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
        self.rnn = nn.GRU(D, D, batch_first=True)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD, state_1ND = self.rnn(self.embedding(token_NT))
        return self.out(self.rnn(x_NTD, state_1ND)[0])


def used_twice(session: Session) -> None:
    model = Twice()
    train(session, model, ADAMW(model.parameters(), 0.01))


def scaled(session: Session) -> None:
    model = lstm()
    optimizer, scaler = ADAMW(model.parameters(), 0.01), torch.amp.GradScaler("cpu")
    with session.record(model, optimizer, datums=12) as recorder:
        for ids in ([0, 1, 2], [3, 4]):
            recorder.datums(ids)
            scaler.scale(loss_of(model, TOKENS[ids])).backward()
            session.expect(shares_of(model, ids))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


LOOPS = {
    "micro-batches": micro_batches,
    "two backward passes": two_backward_passes,
    "evaluations with gradients": evaluations_between,
    "a module used twice": used_twice,
    "a gradient scaler": scaled,
}


@pytest.mark.parametrize("name", LOOPS)
def test_gradients_of_modules_that_run_again_are_those_of_one_datum(tmp_path, name):
    assert both(LOOPS[name], tmp_path).largest_error() < 1e-6


class Changed(Twice):
    """Changes the input of its module in place, after the call."""

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT) * 1.0
        y_NTD = self.rnn(x_NTD.detach())[0]
        with torch.no_grad():
            x_NTD += 1
        return self.out(y_NTD + x_NTD)


class Fixed(nn.Module):
    """Takes 4 rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(D, D))

    def forward(self, x_NTD: Tensor) -> Tensor:
        return torch.einsum("abc,cd->abd", x_NTD.reshape(4, -1, D), self.own)


class OfFour(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = Fixed()  # pyright: ignore

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.out(self.rnn(self.embedding(token_NT)))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Changed, "is used by gru; GRU has inputs that were changed in place before the step"),
        (OfFour, "is used by einsum; Fixed fails on the rows of one datum: shape"),
    ],
)
def test_modules_that_cannot_run_for_one_datum_are_refused_with_the_reason(tmp_path, model, reason):
    made = model()
    loop = partial(train, Session(tmp_path), made, ADAMW(made.parameters(), 0.01))
    with pytest.raises(UnitError, match=f"{reason}.* of the model") as raised:
        loop()
    assert "\n" not in str(raised.value)
    assert "fallback" not in str(raised.value)


def test_another_fallback_is_refused(tmp_path):
    made = lstm()
    with pytest.raises(ConfigError, match="fallback: got 'all', must be one of none, vmap"):
        train(Session(tmp_path), made, ADAMW(made.parameters()), fallback="all")


def test_buffers_and_random_states_are_put_back(tmp_path):
    """BatchNorm would count a batch for each datum that runs again."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = ADAMW(model.parameters(), 0.01)
    states = []

    def loop() -> None:
        with Session(tmp_path).record(model, optimizer):
            model(torch.randn(8, 3)).square().mean().backward()
            states.append(torch.get_rng_state())
            optimizer.step()

    with pytest.raises(UnitError):
        loop()
    assert model[1].num_batches_tracked == 1
    assert torch.equal(torch.get_rng_state(), states[0])


def test_places_and_axes_of_arguments_and_outputs():
    x = torch.zeros(6, 2)
    assert [place for place, _ in leaves_of((x, {"a": (x, 3)}))] == ["0", "1.a.0", "1.a.1"]
    rnn, attention = nn.LSTM(2, 2), nn.MultiheadAttention(2, 1, batch_first=True)
    found = [batch_axis(rnn, place, is_input=True) for place in ("0", "input", "1.0", "hx.1")]
    assert found == [1, 1, 1, 1]
    assert [batch_axis(attention, p, is_input=True) for p in ("0", "key", "attn_mask")] == [0] * 3
    assert batch_axis(nn.MultiheadAttention(2, 1), "0", is_input=False) == 1
    second = rows_of_datum(x, 0, 1, 3)
    assert second is not None
    assert second.shape == (2, 2)
    assert rows_of_datum(x, 0, 0, 4) is None
