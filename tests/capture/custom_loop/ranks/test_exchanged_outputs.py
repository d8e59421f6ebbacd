"""A loss of outputs that processes have exchanged is refused, whatever exchanged them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed._functional_collectives as functional
import torch.distributed.nn as differentiable
from custom_loops import TOP, Small, loss_of, tokens, uri
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.custom_loop.checks.exchanges import METHODS
from capture.custom_loop.record import record
from capture.errors import SplitError

TOKENS = tokens()
Exchange = Callable[[Tensor], Tensor]
Loss = Callable[[nn.Module, Tensor], Tensor]
pytestmark = [
    pytest.mark.usefixtures("one_process"),
    pytest.mark.filterwarnings("ignore"),  # of functional collectives about themselves
]


def recorded(folder: Path, loss: Loss, after: Callable[[Tensor], object] = id) -> dict[str, int]:
    """Record a step; returns what the run says was not checked."""
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with record(model, optimizer, run=uri(folder), datums=TOKENS, outliers=TOP):
        found = loss(model, TOKENS[:4])
        found.backward()
        after(found)
        optimizer.step()
    return open_run(uri(folder)).segments[0].unchecked


# --- refused --------------------------------------------------------------------------------------


def gathered(x: Tensor) -> Tensor:
    parts = [torch.zeros_like(x)]
    distributed.all_gather(parts, x.detach())
    return torch.cat(parts)


def gathered_with_own(x: Tensor) -> Tensor:
    """Gather outputs as CLIP does: the gradient comes back through the process's own rows alone."""
    parts = [torch.zeros(x.shape)]
    distributed.all_gather(parts, x.detach())
    parts[distributed.get_rank()] = x + 0 * parts[0]
    return torch.cat(parts)


def gathered_into(x: Tensor) -> Tensor:
    out = torch.empty(x.shape)
    distributed.all_gather_into_tensor(out, x.detach())
    return out


def reduced(x: Tensor) -> Tensor:
    total = x.detach().clone()
    distributed.all_reduce(total)
    return total


EXCHANGES: dict[str, tuple[Exchange, str]] = {
    "all_gather": (gathered, "all_gather"),
    "all_gather with own rows": (gathered_with_own, "all_gather"),
    "all_gather_into_tensor": (gathered_into, "all_gather_into_tensor"),
    "all_reduce": (reduced, "all_reduce"),
    "nn.all_gather": (lambda x: torch.cat(differentiable.all_gather(x)), "all_gather"),  # pyright: ignore
    "nn.all_reduce": (differentiable.all_reduce, "all_reduce"),  # pyright: ignore
    "functional": (
        lambda x: functional.all_gather_tensor_autograd(x, 0, distributed.group.WORLD),  # pyright: ignore
        "all_gather_into_tensor",
    ),
}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_a_loss_of_exchanged_outputs_is_refused(tmp_path: Path, kind: str) -> None:
    exchange, name = EXCHANGES[kind]

    def contrastive(model: nn.Module, token_NT: Tensor) -> Tensor:
        x_NV = model(token_NT[:, :-1])[:, 0]
        return F.cross_entropy(x_NV @ exchange(x_NV).T, torch.arange(len(x_NV)))

    wanted = f"step 0: datums of all processes interact in the loss, which uses {name} of the model"
    with pytest.raises(SplitError, match=wanted):
        recorded(tmp_path, contrastive)
    assert open_run(uri(tmp_path)).steps_done == 0


def test_a_backward_pass_of_an_exchange_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="which uses all_reduce of"):
        recorded(tmp_path, lambda m, x: differentiable.all_reduce(loss_of(m, x)))  # pyright: ignore


def test_an_exchange_within_a_loss_started_by_autograd_is_refused(tmp_path: Path) -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def loop() -> None:
        with record(model, optimizer, run=uri(tmp_path), datums=TOKENS, outliers=TOP):
            loss = loss_of(model, TOKENS[:4])
            torch.autograd.backward(loss / reduced(loss))
            optimizer.step()

    with pytest.raises(SplitError, match="which uses all_reduce of"):
        loop()


# --- let through ----------------------------------------------------------------------------------


def for_a_log(model: nn.Module, token_NT: Tensor) -> Tensor:
    loss = loss_of(model, token_NT)
    mean = loss.detach().clone()
    distributed.all_reduce(mean)
    differentiable.all_reduce(loss)  # pyright: ignore
    return loss


def by_all_tokens(model: nn.Module, token_NT: Tensor) -> Tensor:
    loss = loss_of(model, token_NT)
    count = loss.new_tensor(token_NT.numel())
    distributed.all_reduce(count)
    return loss * token_NT.numel() / count.clone()


def averaged_afterwards(loss: Tensor) -> None:
    distributed.all_reduce(loss)
    with torch.no_grad():
        loss /= distributed.get_world_size()


def test_exchanges_that_no_gradient_depends_on_are_let_through(tmp_path: Path) -> None:
    assert recorded(tmp_path / "log", for_a_log) == {}
    assert recorded(tmp_path / "count", by_all_tokens) == {}
    assert recorded(tmp_path / "after", loss_of, averaged_afterwards) == {}


def test_torch_is_as_before_when_the_recording_ends(tmp_path: Path) -> None:
    before = {name: vars(distributed.ProcessGroup).get(name) for name in METHODS}
    recorded(tmp_path, for_a_log)
    after = {name: vars(distributed.ProcessGroup).get(name) for name in METHODS}
    assert all(after[name] is before[name] for name in METHODS)
    assert torch.equal(reduced(torch.ones(2)), torch.ones(2))
    assert torch.equal(gathered(torch.ones(2)), torch.ones(2))
