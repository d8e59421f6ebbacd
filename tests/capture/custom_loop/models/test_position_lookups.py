"""Embeddings of 0, 1, 2, … in a custom training loop: of positions, or one id for each datum."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import TOP, uri
from torch import Tensor, nn

from analysis.run.run import Run, open_run
from capture.custom_loop.record import record
from capture.errors import UnitError

N, T, D = 6, 6, 4
"""As many datums as positions: only the origin of the ids distinguishes the two."""
UNKNOWN = "is used by embedding of 0, 1, 2, …, which may be positions"


class Factorised(nn.Module):
    """Embeddings of users and items; a datum is one user and one item."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item = nn.Embedding(9, D), nn.Embedding(9, D)

    def forward(self, user_N: Tensor, item_N: Tensor) -> Tensor:
        return (self.user(user_N) * self.item(item_N)).sum(1)


class Paired(Factorised):
    """Like ``Factorised``, with both ids in one tensor [N, 2]."""

    def forward(self, pair_N2: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(*pair_N2.unbind(1))


class Copied(Factorised):
    """Like ``Factorised``, but converts the type of its ids, which copies them."""

    def forward(self, user_N: Tensor, item_N: Tensor) -> Tensor:
        return super().forward(user_N.long(), item_N)


class Placed(nn.Module):
    """Embeddings of tokens and of positions, which come from ``arange`` or from a buffer."""

    def __init__(self, *, buffered: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.position = nn.Embedding(9, D), nn.Embedding(T, D)
        self.out = nn.Linear(D, 1)
        self.buffered = buffered
        self.register_buffer("count_T", torch.arange(T))

    def forward(self, token_NT: Tensor) -> Tensor:
        length = token_NT.shape[1]
        count_T = self.get_buffer("count_T")[:length] if self.buffered else torch.arange(length)
        return self.out(self.token(token_NT) + self.position(count_T)).square()


def one_step(
    folder: Path, model: nn.Module, forward: Callable[[], Tensor], units: Sequence[str] = ("*",)
) -> tuple[Run, Tensor]:
    """Record one step on the sum of a forward pass; returns the run and the output of the pass."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, run=uri(folder), units=units, outliers=TOP):
        given = forward()
        given.sum().backward()
        optimizer.step()
    return open_run(uri(folder)), given.detach()


IDS = torch.arange(N), torch.tensor([3, 1, 4, 1, 5, 8])


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [(Factorised, IDS), (Factorised, IDS[::-1]), (Paired, [torch.stack(IDS, 1)])],
)
def test_ids_that_are_an_input_belong_to_datums(tmp_path, kind, inputs):
    model = kind()
    wanted = model(*inputs).detach()
    before = model.user.weight.detach().clone()
    run, found = one_step(tmp_path, model, lambda: model(*inputs))
    assert torch.equal(found, wanted)
    assert len(run.steps()["datums"][0]) == N
    change = (model.user.weight.detach() - before).numpy()
    shifts = run.shifts(unit="user.weight").query("diff != 0")
    row = shifts["index"] // D
    assert (row == inputs[0].reshape(N, -1)[:, 0].numpy()[shifts["datum_id"]]).all()
    total = shifts.groupby("index")["diff"].sum()
    np.testing.assert_allclose(total, change.flat[total.index], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("num_datums", [1, 2, N])
def test_ids_that_the_model_makes_are_positions(tmp_path, buffered, num_datums):
    model = Placed(buffered=buffered)
    token_NT = torch.randint(9, (num_datums, T), generator=torch.Generator().manual_seed(1))
    wanted = model(token_NT).detach()
    run, found = one_step(tmp_path, model, lambda: model(token_NT))
    assert torch.equal(found, wanted)
    assert len(run.steps()["datums"][0]) == num_datums
    shifts = run.shifts(unit="position.weight")
    assert (shifts["index"] // D == shifts["position"]).all()


@pytest.mark.parametrize("cause", ["copied", "part"])
def test_ambiguous_ids_leave_the_output_unchanged_and_stop_the_step(tmp_path, cause):
    """Ids that were copied, and a part of the model that is called by itself."""
    model = Copied()
    ids = (IDS[0].int(), IDS[1])

    def forward() -> Tensor:
        return model(*ids) if cause == "copied" else model.user(IDS[0])

    wanted = forward().detach()
    outputs = []

    def recorded() -> Tensor:
        outputs.append(forward())
        return outputs[0]

    with pytest.raises(UnitError, match=re.escape(f"user.weight: {UNKNOWN}")):
        one_step(tmp_path, model, recorded, units=["user.*"])
    assert torch.equal(outputs[0], wanted)
    assert open_run(uri(tmp_path)).steps_done == 0


def test_a_part_called_after_the_model_keeps_its_output_shape(tmp_path):
    """It has fewer rows than the last batch; they are not repeated for the datums of that batch."""
    model = Placed(buffered=False)
    token_NT = torch.randint(9, (N, T))
    x_1D, few = torch.randn(1, D), torch.arange(3)
    wanted = model.out(x_1D).shape, model.token(few).shape
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP):
        for _ in range(2):
            model(token_NT).sum().backward()
            assert (model.out(x_1D).shape, model.token(few).shape) == wanted
            optimizer.step()
            optimizer.zero_grad()
    assert open_run(uri(tmp_path)).steps_done == 2
