"""The self-check passes if capture is right, and each of its comparisons can fail."""

import pytest
import torch
from tiny import TEXT, tiny_config
from tiny_hf import SETTINGS, hf_config
from torch import Tensor

from capture.engine import build as assembly
from capture.errors import AuditError
from capture.gradients.factors import Factor
from capture.maintenance import selfcheck
from capture.maintenance.probe import sample_units
from capture.maintenance.selfcheck import self_check
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel, fresh_model, initialise_weights
from capture.parts import silencing
from capture.store import Store
from cluster.cli import main

WHAT = ("backward pass", "vmap", "another batch", "outliers", "update")
SETTINGS_OF_TRAINING = {
    "the study's": [],
    "last token": ["capture.loss_positions=last"],
    "AdamW": ["training.optimizer.kind=adamw", "training.learning_rate=0.01"],
    "bfloat16": ["training.precision=bfloat16"],
    "everything": ["capture.units=['*']", "training.accumulate=2"],
    "one datum a batch": ["training.batch=1"],
    "outliers by unit": ["capture.outliers.scope=unit", "capture.outliers.k=15"],
}


@pytest.mark.parametrize("setting", SETTINGS_OF_TRAINING)
def test_capture_agrees_with_all_slower_methods_and_writes_nothing(tmp_path, setting):
    config = tiny_config(tmp_path, *SETTINGS_OF_TRAINING[setting])
    checks = list(self_check(config))
    assert all(found in check.what for found, check in zip(WHAT, checks, strict=True))
    assert all(check.made and check.holds for check in checks), checks
    assert Store(config.run.uri).keys() == []


def test_a_text_of_one_batch_is_enough(tmp_path):
    config = tiny_config(tmp_path, "corpus.validation_share=0")
    (tmp_path / "text.txt").write_text(" ".join(TEXT.split()[: 4 * 8 + 1]))
    checks = list(self_check(config))
    assert all(check.made and check.holds for check in checks), checks


@pytest.mark.parametrize("family", SETTINGS)
def test_capture_of_hugging_face_models_agrees_too(tmp_path, family):
    pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")
    checks = list(self_check(hf_config(tmp_path, family, "capture.units=['*']")))
    assert all(check.made and check.holds for check in checks), checks
    assert checks[-1].what == "a neuron or head silenced = its weights at zero"


def test_heads_that_are_misplaced_are_found(tmp_path, monkeypatch):
    """The layer's first MLP weight is taken for the one that mixes heads: its inputs are others."""
    pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")
    whole = silencing.some_subjects

    def misplaced(model):
        for own in whole(model):
            yield own._replace(entries=slice(own.entries.start + 1, own.entries.stop + 1))
            return

    real = silencing.weights_at_zero
    monkeypatch.setattr(silencing, "some_subjects", misplaced)
    monkeypatch.setattr(
        silencing, "weights_at_zero", lambda model, own: real(model, next(whole(model)))
    )
    check = list(self_check(hf_config(tmp_path, "gpt2")))[-1]
    assert check.made
    assert not check.holds
    assert "name it with ModelParts" in check.meaning


class Mixing(LanguageModel):
    """A model whose hidden states mix the datums of a batch, as BatchNorm does."""

    def hidden(self, token_NT: Tensor, masks: Masks) -> Tensor:
        x_NTD = super().hidden(token_NT, masks)
        return x_NTD - 0.5 * x_NTD.mean(0, keepdim=True)


def test_a_module_that_mixes_datums_is_found_and_explained(tmp_path, monkeypatch, capsys):
    def mixing(config, **shape: int) -> LanguageModel:
        model = Mixing(config, vocabulary=shape["vocabulary"], window=shape["window"])
        initialise_weights(model, torch.Generator().manual_seed(1))
        return model

    monkeypatch.setattr(assembly, "build_model", mixing)
    text = tiny_config(tmp_path).corpus.path
    found = ["corpus.kind=text", f"corpus.path={text}", "corpus.window=8", "training.device=cpu"]
    assert main(["selfcheck", "demo", *found, "model.layers=1", "training.batch=4"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "✗" in out
    assert "a datum's gradient depends on its batch: some module mixes datums" in out
    assert "3 of 5 checks failed; do not trust a record of this model" in out


def test_a_misread_parameter_is_named(tmp_path, monkeypatch):
    """The factors have the right size but are wrong: they use δ in place of LayerNorm's input."""
    read = Factor.map_tensors

    def misread(self: Factor, change) -> Factor:
        kept = read(self, change)
        return Factor("scale", kept.delta_NTO, kept.delta_NTO) if self.kind == "scale" else kept

    monkeypatch.setattr(Factor, "map_tensors", misread)
    alone, by_vmap, *_ = self_check(tiny_config(tmp_path))
    for check in (alone, by_vmap):
        assert not check.holds
        assert "norm" in check.detail
        assert "capture misreads how this parameter is used" in check.meaning


@pytest.mark.parametrize("scope", ["datum", "unit"])
def test_wrong_outliers_and_wrong_sums_are_found(tmp_path, monkeypatch, scope):
    find = selfcheck.find_outliers

    def unsorted(buffer, factors, scale, config):
        outliers = find(buffer, factors, scale, config)
        outliers.column_M[0] = outliers.column_M[1]
        return outliers

    monkeypatch.setattr(selfcheck, "find_outliers", unsorted)
    total = selfcheck.sum_shifts
    monkeypatch.setattr(selfcheck, "sum_shifts", lambda *given: 1.001 * total(*given))
    *others, outliers, update = self_check(tiny_config(tmp_path, f"capture.outliers.scope={scope}"))
    assert all(check.holds for check in others)
    assert not outliers.holds
    assert not update.holds


def test_a_model_that_vmap_cannot_follow_is_reported_and_does_not_fail(tmp_path, monkeypatch):
    def lost(*given, **named) -> Tensor:
        raise RuntimeError("data-dependent control flow\nand more")

    monkeypatch.setattr("capture.gradients.vmap_fallback.vmap", lambda *given, **named: lost)
    _, by_vmap, *_ = self_check(tiny_config(tmp_path))
    assert not by_vmap.made
    assert by_vmap.holds
    assert by_vmap.detail == "not possible: vmap cannot follow it: data-dependent control flow"


def test_a_sample_of_units_is_spread_and_keeps_its_size_limit():
    units = {f"u{i}": torch.nn.Parameter(torch.zeros(10)) for i in range(20)}
    chosen = list(sample_units(units, 55))
    assert len(chosen) == 5
    assert chosen[0] == "u0"
    places = [int(name[1:]) for name in chosen]
    assert places == sorted(places)
    assert max(places) >= 12
    assert list(sample_units(units, 200)) == list(units)
    assert list(sample_units(units, 5)) == ["u0"]


def test_gradients_that_are_nan_raise_at_once(tmp_path, monkeypatch):
    def poisoned(config, **shape: int) -> LanguageModel:
        model = fresh_model(config, **shape)
        torch.nn.init.constant_(model.decoder.bias, torch.nan)
        return model

    monkeypatch.setattr(assembly, "build_model", poisoned)
    with pytest.raises(AuditError, match="the first batch: has gradients that are NaN or infinite"):
        list(self_check(tiny_config(tmp_path)))


def test_bad_input_is_one_line(capsys):
    assert main(["selfcheck", "nosuch"]) == 2
    assert capsys.readouterr().err.startswith("ontogeny: nosuch: no such file.")
