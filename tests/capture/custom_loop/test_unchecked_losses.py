"""Losses that cannot be followed are named: at the end, in the run and in ``ontogeny info``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.custom_loop.checks.split_guard import MOST_TRIES
from capture.custom_loop.record import record
from capture.format.markers import Marker, encode, marker_of
from cluster.cli import main

TOKENS = tokens()
Loss = Callable[[nn.Module, Tensor], Tensor]


def recorded(
    folder: Path, loss: Loss, steps: int = 1, after: Callable[[], object] = lambda: None
) -> dict[str, int]:
    """Record steps of one batch; returns what the run says was not checked."""
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with record(model, optimizer, run=uri(folder), datums=TOKENS, outliers=TOP):
        for _ in range(steps):
            loss(model, TOKENS[:4]).backward()
            after()
            optimizer.step()
            optimizer.zero_grad()
    return open_run(uri(folder)).segments[0].unchecked


def by_numpy(model: nn.Module, token_NT: Tensor) -> Tensor:
    logit_NTV = model(token_NT[:, :-1])
    return (logit_NTV / torch.from_numpy(logit_NTV.detach().numpy().std(0))).sum()


def by_vmap(model: nn.Module, token_NT: Tensor) -> Tensor:
    return torch.func.vmap(lambda x: x.square().sum())(model(token_NT[:, :-1])).sum()


UNFOLLOWED = {
    "numpy": (by_numpy, "numbers that left torch (numpy)"),
    "vmap": (by_vmap, "operations that are not plain torch functions"),
}


@pytest.mark.parametrize("kind", UNFOLLOWED)
def test_a_loss_that_cannot_be_followed_is_named(
    tmp_path: Path,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loss, reason = UNFOLLOWED[kind]
    said = (
        "steps in which the split by datum could not be checked: whether datums interact in the "
        f"loss is unknown because of {reason}"
    )
    assert recorded(tmp_path, loss, steps=3) == {said: 3}
    assert f"{uri(tmp_path)}: 3 {said}" in caplog.text
    assert main(["info", uri(tmp_path)]) == 0
    assert f"3 {said}" in " ".join(capsys.readouterr().out.split())


def test_a_check_is_tried_again_a_few_times(tmp_path: Path) -> None:
    found = recorded(tmp_path, by_numpy, steps=MOST_TRIES + 3)
    assert list(found.values()) == [MOST_TRIES]


def test_tensors_that_the_loop_overwrites_are_named(tmp_path: Path) -> None:
    label_NT = torch.zeros(4, 5, dtype=torch.int64)

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        label_NT.copy_(token_NT[:, 1:])
        return F.cross_entropy(model(token_NT[:, :-1]).flatten(0, 1), label_NT.flatten())

    (reason,) = recorded(tmp_path / "a", loss, after=label_NT.zero_)
    assert reason.endswith("a tensor that was changed before the optimizer's step")
    assert recorded(tmp_path / "b", loss) == {}


def with_noise(model: nn.Module, token_NT: Tensor) -> Tensor:
    logit_NTV = model(token_NT[:, :-1])
    return (F.dropout(logit_NTV, 0.5) + torch.randn_like(logit_NTV)).square().mean()


def with_metrics(model: nn.Module, token_NT: Tensor) -> Tensor:
    loss = loss_of(model, token_NT)
    loss.register_hook(lambda delta: None)
    return loss


@pytest.mark.parametrize("loss", [with_noise, with_metrics, loss_of], ids=lambda f: f.__name__)
def test_losses_that_do_not_mix_datums_are_checked_and_accepted(tmp_path: Path, loss: Loss) -> None:
    assert recorded(tmp_path, loss, steps=2) == {}


def test_a_marker_without_doubts_has_no_field_for_them() -> None:
    assert b"unchecked" not in encode({"first_step": 0})
    values = {"first_step": 0, "end_step": 1, "files": [], "unchecked": {"steps": 2}}
    assert marker_of(values).unchecked == {"steps": 2}
    for wrong in (
        {"steps": -1},
        {"steps": True},
        ["steps"],
        {"x" * 301: 1},
        {str(i): 1 for i in range(17)},
    ):
        with pytest.raises(ValueError, match=r"not checked|reason|possible count"):
            marker_of(values | {"unchecked": wrong})
    assert Marker(0, 0, ()).unchecked == {}


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def test_two_recordings_at_once_both_see_custom_functions(tmp_path: Path) -> None:
    one, other = Small(), Small(seed=1)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in (one, other)]
    first = record(one, optimizers[0], run=uri(tmp_path, "one"), datums=TOKENS, outliers=TOP)
    with first, record(other, optimizers[1], run=uri(tmp_path, "other"), datums=4, outliers=TOP):
        Double.apply(loss_of(one, TOKENS[:4])).backward()
        Double.apply(loss_of(other, TOKENS[:4])).backward()
        for optimizer in optimizers:
            optimizer.step()
    unchecked = [open_run(uri(tmp_path, name)).segments[0].unchecked for name in ("one", "other")]
    assert unchecked[0] == {}
    assert all("rows were numbered" in reason for reason in unchecked[1])
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)  # pyright: ignore
