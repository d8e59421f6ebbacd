"""Units without factors are captured by vmap, with the same numbers, if that is configured."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from reference import gradients_of
from tiny import make_run, read_outliers, tiny_config
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from analysis.run.run import open_run
from capture.errors import ConfigError, UnitError
from capture.gradients.factored_algebra import dense
from capture.gradients.tape import Tape
from capture.gradients.torch_functions import READERS
from capture.gradients.vmap_fallback import factors_by_vmap

N, T, D = 3, 5, 4


def attention() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(D, 2, 6, dropout=0.0, batch_first=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_equal_one_backward_pass_per_datum(monkeypatch):
    monkeypatch.setattr("capture.gradients.vmap_fallback.CHUNK_BYTES", 2000)
    model, x_NTD = attention(), torch.randn(N, T, D)
    weight_TD = torch.randn(T, D)

    def loss_of(weights: Mapping[str, Tensor], x_TD: Tensor) -> Tensor:
        return (functional_call(model, dict(weights), (x_TD[None],))[0] * weight_TD).sum() / N

    units = dict(model.named_parameters())
    found = factors_by_vmap(loss_of, units, (x_NTD,))
    alone = [gradients_of(loss_of(units, x_TD), model) for x_TD in x_NTD]
    for name, parameter in units.items():
        wanted = torch.stack([gradient[name] for gradient in alone])
        torch.testing.assert_close(dense(found[name], parameter.shape), wanted)


def test_attention_in_one_function_has_the_factors_of_its_parts():
    model, x_NTD, weight_TD = attention(), torch.randn(N, T, D), torch.randn(T, D)
    units = dict(model.named_parameters())
    with Tape(units, N) as tape:
        loss = (model(x_NTD) * weight_TD).sum()
    loss.backward()
    found = tape.factors()
    alone = [gradients_of((model(x_NTD[[n]]) * weight_TD).sum(), model) for n in range(N)]
    for name, parameter in units.items():
        wanted = torch.stack([gradient[name] for gradient in alone])
        torch.testing.assert_close(dense(found[name], parameter.shape), wanted)


def test_an_error_of_vmap_names_the_unit():
    weight = nn.Parameter(torch.ones(2))

    def loss_of(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return (weights["w"] * x).sum() * (2 if float(x.sum()) > 0 else 1)

    with pytest.raises(UnitError, match=r"^w: vmap cannot follow it: .*Leave it out"):
        factors_by_vmap(loss_of, {"w": weight}, (torch.ones(3, 2),))


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_run_by_vmap_has_the_outliers_of_a_run_by_factors(tmp_path, monkeypatch, positions):
    settings = ["capture.units=['*']", f"capture.loss_positions={positions}", "training.epochs=1"]
    settings += ["capture.tally.enabled=false"]
    make_run(tiny_config(tmp_path, *settings, name="factors"))
    monkeypatch.delitem(READERS, F.layer_norm)
    monkeypatch.delitem(READERS, F.embedding)
    make_run(tiny_config(tmp_path, *settings, "capture.fallback=vmap", name="vmap"))
    one, other = (read_outliers(str(tmp_path / name)) for name in ("factors", "vmap"))
    for column in ("step", "slot", "unit", "index"):
        assert one[column].to_pylist() == other[column].to_pylist()
    np.testing.assert_allclose(one["shift"], other["shift"], rtol=1e-3, atol=1e-7)
    by_vmap = np.array(["norm" in name or "encoder" in name for name in one["unit"].to_pylist()])
    assert by_vmap.any()
    positions_found = other["position"].to_numpy()
    assert (positions_found[by_vmap] == 0).all()
    assert (positions_found[~by_vmap] == one["position"].to_numpy()[~by_vmap]).all()
    assert (open_run(str(tmp_path / "vmap")).steps()["audit_error"] < 1e-5).all()


@pytest.mark.parametrize("unit", ["encoder.weight", "layers.0.linear1.weight"])
def test_tallies_of_units_without_inputs_are_refused(tmp_path, monkeypatch, unit):
    """An embedding and a unit captured by vmap have no inputs of neurons."""
    monkeypatch.delitem(READERS, F.linear)
    text = (
        rf"^capture\.tally\.units: match {re.escape(unit)}, which is not multiplied with an input "
    )
    settings = ["capture.units=['*']", "capture.fallback=vmap", f"capture.tally.units=[{unit}]"]
    with pytest.raises(ConfigError, match=text):
        make_run(tiny_config(tmp_path, *settings))


def test_without_the_fallback_a_run_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.delitem(READERS, F.layer_norm)
    expected = (
        r"layers\.0\.norm1\.weight: is used by layer_norm, which capture cannot split per datum "
        r"\(LayerNorm layers\.0\.norm1, 0\.\d% of the model; with 7 other such units \d\.\d%\)\. "
        r"Leave it out with capture\.units, or set capture\.fallback=vmap\."
    )
    with pytest.raises(UnitError, match=expected):
        make_run(tiny_config(tmp_path))
    assert not (tmp_path / "run").exists()
