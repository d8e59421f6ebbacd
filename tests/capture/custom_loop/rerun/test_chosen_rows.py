"""Law "split", where rows are not the datums, whatever their number is.

Datum 0 alone has the tokens that the expert gets, so rows cut into equal parts would be those of
other datums.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from custom_loops import D, V, loss_of
from exact_loops import ADAMW
from loop_session import Session
from torch import Tensor, nn

from capture.errors import SplitError, UnitError

N = 4
Route = Callable[[nn.Module, Tensor, Tensor], Tensor]


def by_index(expert: nn.Module, x_FD: Tensor, token_F: Tensor) -> Tensor:
    row_M = (token_F == 0).nonzero()[:, 0]
    return torch.zeros_like(x_FD).index_add(0, row_M, expert(x_FD[row_M]))


def by_mask(expert: nn.Module, x_FD: Tensor, token_F: Tensor) -> Tensor:
    y_FD, here_F = torch.zeros_like(x_FD), token_F == 0
    y_FD[here_F] = expert(x_FD[here_F])
    return y_FD


def by_select(expert: nn.Module, x_FD: Tensor, token_F: Tensor) -> Tensor:
    row_M = torch.where(token_F == 0)[0]
    return torch.zeros(x_FD.shape).index_copy(0, row_M, expert(x_FD.index_select(0, row_M)))


def by_sorting(expert: nn.Module, x_FD: Tensor, token_F: Tensor) -> Tensor:
    order_F = token_F.argsort(stable=True)
    mine_MD, rest_MD = x_FD[order_F].split([int((token_F == 0).sum()), int((token_F > 0).sum())])
    return torch.cat([expert(mine_MD), rest_MD])[order_F.argsort()]


class Pick(torch.autograd.Function):
    """Chooses rows where no torch function shows it."""

    @staticmethod
    def forward(ctx: Any, x_FD: Tensor, row_M: Tensor) -> Tensor:
        ctx.save_for_backward(x_FD, row_M)
        return x_FD[row_M]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x_FD, row_M = ctx.saved_tensors
        return torch.zeros_like(x_FD).index_add(0, row_M, grads[0]), None


def by_function(expert: nn.Module, x_FD: Tensor, token_F: Tensor) -> Tensor:
    row_M = (token_F == 0).nonzero()[:, 0]
    chosen_MD: Any = Pick.apply(x_FD, row_M)
    return torch.zeros_like(x_FD).index_add(0, row_M, expert(chosen_MD))


ROUTES: dict[str, Route] = {
    "index": by_index,
    "mask": by_mask,
    "index_select": by_select,
    "sorting": by_sorting,
    "a custom function": by_function,
}


class Routed(nn.Module):
    """Two layers that get the rows of token 0 only."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out, self.route = nn.Embedding(V, D), nn.Linear(D, V), route
        self.expert = nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, D))

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        y_FD = self.route(self.expert, x_NTD.flatten(0, 1), token_NT.flatten())
        return self.out(x_NTD + y_FD.view(x_NTD.shape))


class PositionsFirst(Routed):
    """A layer on positions and datums, flattened in this order."""

    def forward(self, token_NT: Tensor) -> Tensor:
        x_TND = self.embedding(token_NT).transpose(0, 1)
        y_FD = self.expert(x_TND.reshape(-1, D))
        return self.out((x_TND + y_FD.view(x_TND.shape)).transpose(0, 1))


def with_counts(*counts: int) -> Tensor:
    """Return tokens of N datums, of which each has so many inputs of token 0."""
    token_NT = torch.randint(1, V, (N, 9), generator=torch.Generator().manual_seed(0))
    for datum, count in enumerate(counts):
        token_NT[datum, :count] = 0
    return token_NT


def take_steps(session: Session, model: nn.Module, batches: list[Tensor], **more: object) -> None:
    optimizer = ADAMW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=N, **more) as recorder:
        for token_NT in batches:
            recorder.datums(range(N))
            loss_of(model, token_NT).backward()
            session.expect(
                {i: lambda i=i, x=token_NT: loss_of(model, x[[i]]) / N for i in range(N)}
            )
            optimizer.step()
            optimizer.zero_grad()


# One row, as many as datums, a multiple of them, none; beginning with either.
COUNTS = [(1,), (4,), (8,), (3, 2), (0,), (5, 3), (4,), (2, 1, 1)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("counts", [COUNTS, COUNTS[3:] + COUNTS[:3]], ids=["even", "odd"])
def test_chosen_rows_are_never_taken_for_the_datums(tmp_path, route, counts, caplog):
    session = Session(tmp_path)
    with caplog.at_level(logging.WARNING):
        batches = [with_counts(*each) for each in counts]
        take_steps(session, Routed(ROUTES[route]), batches, fallback="vmap")
    assert session.largest_error() < 1e-6
    assert "could not be checked" not in caplog.text


def test_positions_that_come_first_are_seen_where_they_are_a_multiple_of_the_datums(tmp_path):
    session = Session(tmp_path)
    take_steps(session, PositionsFirst(by_index), [with_counts(3, 2)] * 2, fallback="vmap")
    assert session.largest_error() < 1e-6


def test_one_chosen_row_is_refused_for_its_own_reason(tmp_path):
    with pytest.raises(UnitError, match=r'one row.*pass fallback="vmap"') as raised:
        take_steps(Session(tmp_path), Routed(by_index), [with_counts(1)])
    assert "heckpoint" not in str(raised.value)


def test_a_split_that_fails_names_the_fallback(tmp_path):
    with pytest.raises(SplitError, match=r'puts positions first, pass fallback="vmap"\.$'):
        take_steps(Session(tmp_path), PositionsFirst(by_index), [with_counts(3, 2)])


class Cells(nn.Module):
    """An LSTM cell in a loop; its state c leads to h, and both to the next position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out, self.cell = nn.Embedding(V, D), nn.Linear(D, V), nn.LSTMCell(D, D)

    def forward(self, token_NT: Tensor) -> Tensor:
        state, found = None, []
        for x_ND in self.embedding(token_NT).unbind(1):
            state = self.cell(x_ND, state)
            found.append(state[0])
        return self.out(torch.stack(found, 1))


class Outputs(nn.Module):
    """Returns what leads to its other output, that output twice, and its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(D))

    def forward(self, x_NTD: Tensor) -> tuple[Tensor, ...]:
        y_NTD = torch.einsum("ntd,de->nte", x_NTD, self.weight)
        z_NTD = y_NTD.tanh()
        return y_NTD, z_NTD, z_NTD, x_NTD


class OfSeveral(Cells):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Outputs()  # pyright: ignore

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.out(sum(self.cell(self.embedding(token_NT)), torch.zeros(())))


@pytest.mark.parametrize("make", [Cells, OfSeveral])
@pytest.mark.parametrize("fallback", ["none", "vmap"])
def test_outputs_that_lead_to_others_count_once(tmp_path, make, fallback):
    session = Session(tmp_path)
    take_steps(session, make(), [with_counts(3)] * 2, fallback=fallback)
    assert session.largest_error() < 1e-6


class Block(nn.Module):
    """Routes rows; the innermost module around the expert that has rows of each datum."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.expert, self.route = nn.Sequential(nn.Linear(D, 6), nn.Linear(6, D)), route

    def forward(self, x_NTD: Tensor, token_NT: Tensor) -> Tensor:
        y_FD = self.route(self.expert, x_NTD.flatten(0, 1), token_NT.flatten())
        return x_NTD + y_FD.view(x_NTD.shape)


class Dropping(nn.Module):
    """Dropout outside of the block that runs again."""

    def __init__(self, route: Route = by_index, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(V, D), nn.Linear(D, V)
        self.block, self.drop = Block(route), nn.Dropout(dropout)

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.out(self.drop(self.block(self.embedding(token_NT), token_NT)))


def test_dropout_beside_chosen_rows_is_checked(tmp_path, caplog):
    """The check runs batch and datum without dropout."""
    model = Dropping()
    optimizer = ADAMW(model.parameters(), 0.01)
    with (
        caplog.at_level(logging.WARNING),
        Session(tmp_path).record(model, optimizer, datums=N, fallback="vmap") as recorder,
    ):
        for count in (4, 3, 8):
            recorder.datums(range(N))
            loss_of(model, with_counts(count)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "could not be checked" not in caplog.text


def test_a_module_that_sorts_rows_and_puts_them_back_runs_again_by_itself(tmp_path):
    """The layers around it are split as they are."""
    session = Session(tmp_path)
    take_steps(
        session, Dropping(by_sorting, 0.0), [with_counts(4), with_counts(3, 2)], fallback="vmap"
    )
    assert session.largest_error() < 1e-6
