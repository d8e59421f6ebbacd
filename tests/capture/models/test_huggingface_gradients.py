"""Laws 1, 2 and 8 on tiny GPT-2, GPT-NeoX (Pythia) and Llama models with random weights."""

import numpy as np
import pytest
import torch
from reference import dense_like, each, gradients_of, top_k
from torch import Tensor, nn
from torch.nn import functional as F

from capture.gradients.dense import sum_shifts
from capture.gradients.examination import examine_units
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.gradients.tape import Tape
from capture.optim.update import relative_error
from capture.shifts import wide_units as wide
from capture.shifts.outliers import OutlierConfig, find_outliers
from capture.shifts.shift_buffer import ShiftBuffer

transformers = pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")
N, T, V = 3, 6, 41
FAMILIES = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=V,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=V,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        max_position_embeddings=8,
    ),
}


class Logits(nn.Module):
    """A model of transformers whose forward pass returns logits."""

    def __init__(self, family: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = FAMILIES[family]()
        self.model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        )

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.model(input_ids=token_NT, use_cache=False).logits


@pytest.fixture(params=FAMILIES)
def model(request) -> Logits:
    return Logits(request.param)


def loss_of(model: Logits, token_NT: Tensor) -> Tensor:
    """Return the sum of these datums' shares of the batch's loss."""
    logit_NTV = model(token_NT[:, :-1])
    lost = F.cross_entropy(
        logit_NTV.flatten(0, 1).float(), token_NT[:, 1:].flatten(), reduction="sum"
    )
    return lost / (N * T)


def batch() -> Tensor:
    return torch.randint(V, (N, T + 1), generator=torch.Generator().manual_seed(1))


def test_gradients_of_every_parameter_equal_one_backward_pass_per_datum(model):
    token_NT, units = batch(), choose_units(model, ["*"])
    layout = Layout.of(units)
    with Tape(units, N) as tape:
        loss = loss_of(model, token_NT)
    loss.backward()
    factors = tape.factors()
    alone = [gradients_of(loss_of(model, token_NT[n : n + 1]), model) for n in range(N)]
    wanted_NP = each(N, lambda n: dense_like([alone[n][name] for name in units]))
    found = [dense(factors[name], shape).flatten(1) for name, shape in layout.shapes.items()]
    torch.testing.assert_close(torch.cat(found, 1), wanted_NP, rtol=1e-4, atol=1e-7)
    sum_P = sum_shifts(factors, layout, 1.0)
    assert relative_error(sum_P, wanted_NP.sum(0)) < 1e-5
    applied = {name: p.grad for name, p in units.items() if p.grad is not None}
    assert relative_error(sum_P, layout.flatten(applied)) < 1e-5


def test_outliers_of_all_parameters_are_the_top_k(model, monkeypatch):
    monkeypatch.setattr(wide, "SMALL_SIZE", 0)
    monkeypatch.setattr(wide, "TALL_RATIO", 5)
    units = choose_units(model, ["*"])
    layout = Layout.of(units)
    assert any(wide.is_wide(shape) for shape in layout.shapes.values())
    with Tape(units, N) as tape:
        loss = loss_of(model, batch())
    loss.backward()
    factors = tape.factors()
    outliers = find_outliers(
        ShiftBuffer(layout, N, torch.device("cpu")), factors, -1.0, OutlierConfig(k=60)
    )
    parts = [dense(factors[name], shape).flatten(1) for name, shape in layout.shapes.items()]
    shift_NP = -torch.cat(parts, 1).numpy()
    found = list(zip(outliers.slot_M.tolist(), outliers.column_M.tolist(), strict=True))
    assert found == top_k(shift_NP, 60)
    np.testing.assert_allclose(
        outliers.shift_M, shift_NP[outliers.slot_M, outliers.column_M], rtol=1e-4, atol=1e-8
    )


def test_no_unit_needs_the_fallback(model):
    units = choose_units(model, ["*"])
    examined = examine_units(model, units, torch.zeros(1, T, dtype=torch.int64))
    assert examined.unsplit == {}
    assert {axis for axes in examined.window_axes.values() for axis in axes} <= {0, 1}


def test_under_autocast_factors_of_all_parameters_sum_to_the_gradient(model):
    units = choose_units(model, ["*"])
    layout = Layout.of(units)
    with Tape(units, N) as tape, torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, batch())
    loss.backward()
    sum_P = sum_shifts(tape.factors(), layout, 1.0)
    applied = {name: p.grad for name, p in units.items() if p.grad is not None}
    assert relative_error(sum_P, layout.flatten(applied)) < 2**-7
