"""Positions of a custom loop are places in the window, whatever axes lie beside it, or refused."""

from pathlib import Path

import pytest
import torch
from custom_loops import V, uri
from tiny import read_outliers
from torch import Tensor, nn

from analysis.run.run import Run, open_run
from capture.custom_loop.record import record
from capture.errors import UnitError
from capture.shifts.outliers import OutlierConfig

N, E = 4, 3


class Heads(nn.Module):
    """Scales the features of each head, which stand before or after the positions."""

    def __init__(self, heads: int, *, first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.first = heads, first
        self.embedding, self.scale = nn.Embedding(V, heads * E), nn.LayerNorm(E)

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTHE = self.embedding(token_NT).unflatten(2, (self.heads, E))
        if self.first:
            return self.scale(x_NTHE.transpose(1, 2)).transpose(1, 2)
        return self.scale(x_NTHE)


def tokens(window: int) -> Tensor:
    return torch.randint(V, (N, window + 1), generator=torch.Generator().manual_seed(1))


def recorded(folder: Path, model: Heads, token_NT: Tensor, *, described: bool = True) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(
        model,
        optimizer,
        run=uri(folder),
        units=["scale.*"],
        datums=token_NT if described else None,
        outliers=OutlierConfig(k=2 * E),
    ):
        model(token_NT[:, :-1]).pow(3).sum().backward()
        optimizer.step()
    return open_run(uri(folder))


def strongest_by_hand(model: Heads, token_NT: Tensor) -> dict[tuple[int, str, int], int]:
    """Return the position with the largest contribution by datum, unit and entry."""
    x_NTHE = model.embedding(token_NT[:, :-1]).unflatten(2, (model.heads, E))
    scaled = model.scale(x_NTHE).detach().requires_grad_()
    scaled.pow(3).sum().backward()
    assert scaled.grad is not None
    normed = (scaled - model.scale.bias) / model.scale.weight
    shares = {"scale.weight": scaled.grad * normed, "scale.bias": scaled.grad}
    return {
        (n, unit, e): int(share.sum(2)[n, :, e].abs().argmax())
        for unit, share in shares.items()
        for n in range(N)
        for e in range(E)
    }


@pytest.mark.parametrize("first", [False, True], ids=["positions first", "heads first"])
@pytest.mark.parametrize("described", [True, False], ids=["with tokens", "without"])
def test_the_recorded_position_is_the_one_of_the_window_that_contributes_most(
    tmp_path, first, described
):
    model, token_NT = Heads(5, first=first), tokens(7)
    wanted = strongest_by_hand(model, token_NT)
    recorded(tmp_path, model, token_NT, described=described)
    columns = read_outliers(uri(tmp_path)).select(["slot", "unit", "index", "position"])
    found = zip(*(column.to_pylist() for column in columns), strict=True)
    assert {(n, unit, index): position for n, unit, index, position in found} == wanted


def test_as_many_heads_as_positions_are_refused_by_name(tmp_path):
    problem = (
        r"scale\.weight: is used by a call on \(1, 7, 7\) entries of a datum, of which any of "
        "several axes may be the window of 7 tokens"
    )
    with pytest.raises(UnitError, match=problem):
        recorded(tmp_path, Heads(7, first=False), tokens(7))
    assert open_run(uri(tmp_path)).segments == ()


def test_an_axis_that_is_no_window_is_refused_by_name(tmp_path):
    class Chosen(Heads):
        def forward(self, token_NT: Tensor) -> Tensor:
            return super().forward(token_NT[:, ::2])

    with pytest.raises(UnitError, match="of which none of the axes may be the window of 7 tokens"):
        recorded(tmp_path, Chosen(5, first=False), tokens(7))
