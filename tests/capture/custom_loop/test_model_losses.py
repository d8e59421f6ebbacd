"""Models that compute their loss themselves, as those of Hugging Face transformers do.

The loss inside is compared with that of a datum alone; what the loop does with it is run again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from custom_loops import TOP, Small, tokens, uri
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.errors import SplitError

TOKENS = tokens()


class Output(NamedTuple):
    loss: Tensor
    logit_NTV: Tensor


class Whole(nn.Module):
    """Holds a model of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()


class WithLoss(Whole):
    def forward(self, token_NT: Tensor, label_NT: Tensor) -> Output:
        logit_NTV = self.inner(token_NT)
        return Output(F.cross_entropy(logit_NTV.flatten(0, 1), label_NT.flatten()), logit_NTV)


class WithDropout(WithLoss):
    def forward(self, token_NT: Tensor, label_NT: Tensor) -> Output:
        out = super().forward(token_NT, label_NT)
        logit_NTV = F.dropout(out.logit_NTV, 0.2)
        return Output(F.cross_entropy(logit_NTV.flatten(0, 1), label_NT.flatten()), logit_NTV)


class WithHidden(Whole):
    """Returns a loss, and a hidden state from which it is computed, in place of logits."""

    def forward(self, token_NT: Tensor, label_NT: Tensor) -> Output:
        hidden_NTD = self.inner.layer(self.inner.embedding(token_NT))
        logit_NTV = self.inner.out(self.inner.norm(hidden_NTD))
        return Output(F.cross_entropy(logit_NTV.flatten(0, 1), label_NT.flatten()), hidden_NTD)


class WithAutocast(WithLoss):
    """Computes in bfloat16 by itself, as a model that accelerate has prepared."""

    def forward(self, token_NT: Tensor, label_NT: Tensor) -> Output:
        with torch.autocast("cpu", torch.bfloat16):
            out = super().forward(token_NT, label_NT)
        return Output(out.loss.float(), out.logit_NTV.float())


class Contrastive(Whole):
    """Its loss compares each datum with all others."""

    def forward(self, token_NT: Tensor, label_NT: Tensor) -> Output:
        logit_NTV = self.inner(token_NT)
        x_NV = F.normalize(logit_NTV.mean(1), dim=-1)
        return Output(F.cross_entropy(x_NV @ x_NV.T, torch.arange(len(x_NV))), logit_NTV)


Loss = Callable[[Output], Tensor]


def recorded(folder: Path, loss: Loss, model: Whole | None = None) -> dict[str, int]:
    """Record two steps; returns what the run says was not checked."""
    model = model or WithLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with record(model, optimizer, run=uri(folder), datums=TOKENS, outliers=TOP):
        for token_NT in (TOKENS[:4], TOKENS[4:8]):
            loss(model(token_NT[:, :-1], token_NT[:, 1:])).backward()
            optimizer.step()
            optimizer.zero_grad()
    return open_run(uri(folder)).segments[0].unchecked


CHECKED: dict[str, Loss] = {
    "as it is": lambda out: out.loss,
    "divided by the number of micro-batches": lambda out: out.loss / 3,
    "that of the loop, from the logits": lambda out: out.logit_NTV.square().mean(),
    "beside one of the loop": lambda out: out.loss + out.logit_NTV.square().mean(),
}


@pytest.mark.parametrize("model", [WithLoss, WithHidden])
@pytest.mark.parametrize("kind", CHECKED)
def test_the_loss_of_a_model_is_checked_and_accepted(
    tmp_path: Path, kind: str, model: type[Whole]
) -> None:
    assert recorded(tmp_path, CHECKED[kind], model()) == {}


class WithoutLabels(WithLoss):
    """Has labels for the first datum of a batch only; the loss of any other alone is NaN."""

    def forward(self, token_NT: Tensor, label_NT: Tensor) -> Output:
        known_NT = label_NT.clone()
        known_NT[token_NT[:, 0] != TOKENS[0, 0]] = -100
        return super().forward(token_NT, known_NT)


@pytest.mark.parametrize("kind", ["as it is", "beside one of the loop"])
def test_a_datum_without_labels_is_accepted(tmp_path: Path, kind: str) -> None:
    assert recorded(tmp_path, CHECKED[kind], WithoutLabels()) == {}


@pytest.mark.parametrize("kind", ["as it is", "that of the loop, from the logits"])
def test_a_model_with_autocast_inside_is_accepted(tmp_path: Path, kind: str) -> None:
    model = WithAutocast()
    model.inner.add_module("norm", nn.Identity())  # torch adds LayerNorm up coarsely on CPUs
    assert recorded(tmp_path, CHECKED[kind], model) == {}


def test_under_dropout_a_loss_of_the_loop_beside_that_of_the_model_is_named(tmp_path: Path) -> None:
    assert recorded(tmp_path / "a", CHECKED["as it is"], WithDropout()) == {}
    (reason,) = recorded(tmp_path / "b", CHECKED["beside one of the loop"], WithDropout())
    assert reason.endswith("a loss of the loop beside that of the model")


INTERACTING: dict[str, Loss] = {
    "its square": lambda out: out.loss.square(),
    "times a number of the batch": lambda out: out.loss * out.logit_NTV.detach().std(),
    "divided by itself": lambda out: out.loss / out.loss.detach(),
    "beside one that normalizes": lambda out: out.loss + (out.logit_NTV.softmax(0) ** 2).mean(),
}


@pytest.mark.parametrize("model", [WithLoss, WithHidden])
@pytest.mark.parametrize("kind", INTERACTING)
def test_what_the_loop_makes_of_it_must_not_depend_on_the_batch(
    tmp_path: Path, kind: str, model: type[Whole]
) -> None:
    with pytest.raises(SplitError, match="datums interact in the loss"):
        recorded(tmp_path, INTERACTING[kind], model())


def test_a_contrastive_loss_inside_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="step 0: the loss gradient at output 1"):
        recorded(tmp_path, lambda out: out.loss, Contrastive())
