"""A position is a place in the window, whatever axes lie between datum and features."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from capture.gradients.examination import examine_units
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.shifts.outliers import OutlierConfig, find_outliers
from capture.shifts.shift_buffer import ShiftBuffer

N, V, H, E = 3, 11, 4, 3
"""Datums, vocabulary, heads and features of a head."""


class PerHead(nn.Module):
    """Scales the features of each head, in an order of axes that the test chooses."""

    def __init__(self, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, H * E)
        self.scale, self.mix = nn.LayerNorm(E), nn.Linear(E, E)
        self.arrange = arrange
        self.outputs: list[Tensor] = []
        """Outputs of ``scale`` and ``mix``; their gradients are kept."""

    def forward(self, token_NT: Tensor) -> Tensor:
        x = self.arrange(self.embedding(token_NT).unflatten(2, (H, E)))
        scaled = self.scale(x)
        mixed = self.mix(scaled)
        self.outputs = [scaled, mixed]
        for each in self.outputs:
            each.retain_grad()
        return mixed.square().sum()


ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "heads after positions": (lambda x_NTHE: x_NTHE, "nthe"),
    "heads before positions": (lambda x_NTHE: x_NTHE.transpose(1, 2), "nhte"),
    "an axis of length 1 as well": (lambda x_NTHE: x_NTHE.transpose(1, 2).unsqueeze(1), "nuhte"),
}


def batch(window: int) -> Tensor:
    return torch.randint(V, (N, window), generator=torch.Generator().manual_seed(1))


def share_by_position(model: PerHead, order: str) -> dict[str, Tensor]:
    """Return what each position adds to the gradient, [N, T, *shape], by einsum over named axes."""
    scaled, mixed = model.outputs
    normed = (scaled - model.scale.bias) / model.scale.weight
    d_scaled, d_mixed = scaled.grad, mixed.grad
    assert d_scaled is not None
    assert d_mixed is not None
    other = order.replace("e", "i")
    return {
        "scale.weight": torch.einsum(f"{order},{order}->nte", d_scaled, normed),
        "scale.bias": torch.einsum(f"{order}->nte", d_scaled),
        "mix.weight": torch.einsum(f"{order},{other}->ntei", d_mixed, scaled),
        "mix.bias": torch.einsum(f"{order}->nte", d_mixed),
    }


@pytest.mark.parametrize("window", [H, H + 2], ids=["as many heads as positions", "fewer heads"])
@pytest.mark.parametrize("case", ORDERS)
def test_the_recorded_position_is_the_one_of_the_window_that_contributes_most(case, window):
    arrange, order = ORDERS[case]
    model, token_NT = PerHead(arrange), batch(window)
    units = choose_units(model, ["scale.*", "mix.*"])
    examined = examine_units(model, units, token_NT[:1])
    assert examined.unsplit == {}
    with Tape(units, N, examined.window_axes) as tape:
        model(token_NT).backward()
    factors, layout = tape.factors(), Layout.of(units)
    wanted = share_by_position(model, order)
    for name, share in wanted.items():
        torch.testing.assert_close(dense(factors[name], layout.shapes[name]), share.sum(1))
    buffer = ShiftBuffer(layout, N, torch.device("cpu"))
    found = find_outliers(buffer, factors, -0.1, OutlierConfig(k=layout.size))
    share_NTP = torch.cat([wanted[name].flatten(2) for name in units], 2)
    assert torch.equal(found.position_M, share_NTP.abs().argmax(1)[found.slot_M, found.column_M])


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "heads and positions in one axis": (
        lambda x_NTHE: x_NTHE.flatten(0, 2),
        "a call on (24,) entries of a datum, of which axis 0 is not the window of 6 tokens",
    ),
    "pairs of positions": (
        lambda x_NTHE: x_NTHE[:, :, :1] * x_NTHE[:, None, :, 0],
        "a call on (1, 6, 6) entries of a datum, of which several axes follow the window",
    ),
    "positions left out": (
        lambda x_NTHE: x_NTHE[:, 1:],
        "a call on (1, 5, 4) entries of a datum, of which axis 1 is not the window of 6 tokens",
    ),
    "no positions": (
        lambda x_NTHE: x_NTHE.mean(1),
        "a call on (1, 4) entries of a datum, of which no axis is the window",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_whose_positions_are_unknown_has_no_factors(case):
    arrange, problem = REFUSED[case]
    model = PerHead(arrange)
    units = choose_units(model, ["scale.weight"])
    assert examine_units(model, units, batch(6)[:1]).unsplit == {"scale.weight": problem}


def test_a_window_of_one_token_has_position_0_only():
    model, token_NT = PerHead(lambda x_NTHE: x_NTHE), batch(1)
    units = choose_units(model, ["scale.*"])
    with Tape(units, N, examine_units(model, units, token_NT[:1]).window_axes) as tape:
        model(token_NT).backward()
    layout = Layout.of(units)
    buffer = ShiftBuffer(layout, N, torch.device("cpu"))
    found = find_outliers(buffer, tape.factors(), 1.0, OutlierConfig(k=6))
    assert found.position_M.tolist() == [0] * 18
