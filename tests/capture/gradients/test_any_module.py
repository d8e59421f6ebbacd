"""Laws 1 and 2 for any module: captured gradients equal one backward pass per datum."""

from collections.abc import Callable

import pytest
import torch
from reference import gradients_of
from torch import Tensor, nn
from torch.nn import functional as F

from capture.errors import UnitError
from capture.gradients.dense import sum_shifts
from capture.gradients.examination import examine_units
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import Factors, choose_units
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.gradients.vmap_fallback import unsplit_error

N, T, D, V = 3, 5, 4, 17
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


class Conv1D(nn.Module):
    """Hugging Face's Conv1D: a linear layer whose weight is stored [I, O]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, 6))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], 6)


class NormByHand(nn.Module):
    """RMSNorm and a bias written out, with casts to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D))
        self.bias = nn.Parameter(torch.randn(D))
        self.offset = nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        x = self.weight.to(torch.float64) * x.double() + self.bias.double()
        return (1.0 + self.offset) * x.float()


class Tied(nn.Module):
    """Tied embedding and unembedding, with positions looked up once for the batch."""

    def __init__(self, *, row: bool) -> None:
        super().__init__()
        self.row = row
        self.token = nn.Embedding(V, D, padding_idx=2)
        self.position = nn.Embedding(9, D)
        self.norm = nn.LayerNorm(D)

    def forward(self, token_NT: Tensor) -> Tensor:
        place = torch.arange(token_NT.shape[1])
        x = self.token(token_NT) + self.norm(self.position(place[None] if self.row else place))
        return F.linear(torch.tanh(x), self.token.weight)


class Twice(nn.Module):
    """One linear layer called twice, with different numbers of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)).mean(1))


def activations() -> Tensor:
    return torch.randn(N, T, D)


def tokens() -> Tensor:
    return torch.randint(V, (N, T))


def images() -> Tensor:
    return torch.randn(N, 3, 6, 5)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(D, 6), activations),
    "linear of one row a datum": (lambda: nn.Linear(D, 6, bias=False), lambda: torch.randn(N, D)),
    "linear of datums and positions in one": (
        lambda: nn.Sequential(nn.Flatten(0, 1), nn.Linear(D, 6), nn.Unflatten(0, (-1, T))),
        activations,
    ),
    "linear over heads": (
        lambda: nn.Sequential(nn.Unflatten(2, (2, 2)), nn.Linear(2, 3)),
        activations,
    ),
    "Conv1D": (Conv1D, activations),
    "embedding": (lambda: nn.Embedding(V, D, padding_idx=3), tokens),
    "embedding of one list": (
        lambda: nn.Sequential(nn.Flatten(0, 1), nn.Embedding(V, D), nn.Unflatten(0, (-1, T))),
        tokens,
    ),
    "layer norm": (lambda: nn.LayerNorm(D), activations),
    "layer norm without bias": (lambda: nn.LayerNorm(D, bias=False), activations),
    "rms norm": (lambda: nn.RMSNorm(D), activations),
    "norm by hand": (NormByHand, activations),
    "conv": (lambda: nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 2), dilation=(1, 2)), images),
    "conv, same": (lambda: nn.Conv2d(3, 4, (2, 3), padding="same", bias=False), images),
    "conv, valid": (lambda: nn.Conv2d(3, 4, 2, padding="valid"), images),
    "tied, positions as a row": (lambda: Tied(row=True), tokens),
    "tied, positions as a list": (lambda: Tied(row=False), tokens),
    "twice": (Twice, activations),
}


def made(case: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, draw = CASES[case]
    return make(), draw()


def lost(out: Tensor, num_datums: int) -> Tensor:
    """A loss with another weight for each position and feature; its mean over datums."""
    weight = torch.linspace(-1, 2, out[0].numel()).view(out.shape[1:])
    return (weight * (out + 0.1 * out.square())).sum() / num_datums


def captured(model: nn.Module, x: Tensor) -> tuple[Factors, dict[str, Tensor]]:
    """Return the factors of all parameters, and their gradients over the batch."""
    units = dict(model.named_parameters())
    with Tape(units, len(x)) as tape:
        loss = lost(model(x), len(x))
    gradients = gradients_of(loss, model)
    return tape.factors(), gradients


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_one_backward_pass_per_datum(case):
    model, x = made(case)
    factors, gradients = captured(model, x)
    alone = [gradients_of(lost(model(x[n : n + 1]), len(x)), model) for n in range(len(x))]
    for name, parameter in model.named_parameters():
        found = dense(factors[name], parameter.shape)
        wanted = torch.stack([gradient[name] for gradient in alone])
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.sum(0), gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_sums_of_shifts_without_per_datum_shifts_equal_the_batch_s_gradient(case):
    model, x = made(case)
    factors, gradients = captured(model, x)
    layout = Layout.of(dict(model.named_parameters()))
    wanted_P = layout.flatten(gradients)
    torch.testing.assert_close(sum_shifts(factors, layout, 1.0), wanted_P, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_recording_changes_no_gradient(case):
    model, x = made(case)
    _, watched = captured(model, x)
    plain = gradients_of(lost(model(x), len(x)), model)
    for name, gradient in plain.items():
        torch.testing.assert_close(watched[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["linear", "Conv1D", "embedding", "conv", "layer norm"])
def test_under_autocast_factors_sum_to_the_applied_gradient(case):
    model, x = made(case)
    with torch.autocast("cpu", torch.bfloat16):
        factors, gradients = captured(model, x)
    for name, parameter in model.named_parameters():
        found = dense(factors[name], parameter.shape).sum(0)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, gradients[name], rtol=2**-7, atol=1e-2)


def test_units_that_cannot_be_split_are_named_with_module_and_share():
    model = nn.Sequential(nn.Embedding(V, D), nn.GRU(D, 8), nn.Identity())
    units = choose_units(model, ["*"])
    unsplit = examine_units(model, units, torch.zeros(1, T, dtype=torch.int64)).unsplit
    assert set(unsplit) == set(units) - {"0.weight"}
    total = V * D + 24 * (D + 8 + 2)
    assert str(unsplit_error(model, unsplit)) == (
        "1.weight_ih_l0: is used by gru, which capture cannot split per datum "
        f"(GRU 1, {24 * D / total:.1%} of the model; with 3 other such units "
        f"{24 * (D + 10) / total:.1%}). "
        "Leave it out with capture.units, or set capture.fallback=vmap."
    )


class Backwards(nn.Module):
    """Puts positions first, so that the first axis is not the datum."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.layer = nn.Linear(D, D)

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.layer(self.embedding(token_NT).transpose(0, 1))


def test_a_first_axis_that_does_not_grow_with_the_batch_is_not_the_datum():
    model = Backwards()
    units = choose_units(model, ["*"])
    unsplit = examine_units(model, units, torch.zeros(1, 6, dtype=torch.int64)).unsplit
    assert unsplit == {
        "layer.weight": "linear on a first axis that does not grow with the batch",
        "layer.bias": "linear on a first axis that does not grow with the batch",
    }


REFUSED: dict[str, tuple[Callable[[nn.Parameter, Tensor], Tensor], str]] = {
    "matmul": (lambda w, x: torch.matmul(x, w), "matmul"),
    "a list": (lambda w, x: torch.einsum("nti,io->nto", [x, w]), "einsum"),
    "input": (lambda w, x: F.linear(w, x[0]), "linear as an activation"),
    "scaled": (lambda w, x: torch.addmm(x[0, 0], x[0], w, beta=2), "addmm with beta or alpha"),
    "every entry": (lambda w, x: w * x[:, :4], "mul by other than one value per feature"),
    "two axes": (lambda w, x: F.layer_norm(x[:, :4], (4, 4), w), "LayerNorm over more than one"),
    "norm": (lambda w, x: F.embedding(x.long(), w, max_norm=1e9), "embedding with max_norm"),
    "no batch": (lambda w, x: F.linear(x[0], w), r"linear on \(5, 4\), no multiple of 3 datums"),
    "by name": (lambda w, x: torch.add(input=w, other=x[:, :4], out=None), "add with unusual"),
}


@pytest.mark.parametrize("use", REFUSED)
def test_a_call_without_factors_is_refused(use):
    weight, (act, text) = nn.Parameter(torch.ones(D, D)), REFUSED[use]
    with Tape({"secret": weight}, N) as tape:
        act(weight, torch.randn(N, T, D).abs())
    with pytest.raises(UnitError, match=rf"^secret: is used by {text}.*cannot split per datum"):
        tape.factors()


def test_more_positions_than_the_record_can_number_are_refused():
    layer = nn.Linear(1, 1)
    with Tape(dict(layer.named_parameters()), 1) as tape:
        layer(torch.ones(1, 2**15 + 1, 1))
    with pytest.raises(UnitError, match=r"used by linear at 32,769 positions, which capture"):
        tape.factors()


def test_a_unit_with_more_entries_than_the_record_can_number_is_refused():
    with torch.device("meta"):
        model = nn.Embedding(2**21, 2**10)
    with pytest.raises(UnitError, match=r"weight: has 2,147,483,648 entries, more than the record"):
        choose_units(model, ["*"])
