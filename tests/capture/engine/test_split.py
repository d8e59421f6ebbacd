"""Law "split" at the first step of a capture of a Hugging Face model."""

from collections.abc import Callable

import pytest
import torch
from tiny import make_run
from tiny_hf import hf_config
from torch import Tensor, nn

from analysis.run.run import open_run
from capture.engine import build as assembly
from capture.errors import SplitError
from capture.models.huggingface import HFModel
from capture.models.transformer import build_model
from capture.process_group import SingleProcess
from cluster.cli import main

pytest.importorskip("transformers", reason="needs the extra ontogeny[hf]")


class OverBatch(nn.Module):
    """Normalizes features [N, T, D] over the batch, without weights."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, affine=False)

    def forward(self, x_NTD: Tensor) -> Tensor:
        return self.norm(x_NTD.transpose(1, 2)).transpose(1, 2)


class Balanced(nn.Module):
    """A router whose load is balanced over the batch: what one datum takes, the others lack."""

    def __init__(self, features: int) -> None:
        super().__init__()

    def forward(self, x_NTD: Tensor) -> Tensor:
        score_N11 = 100 * x_NTD.abs().mean((1, 2), keepdim=True)
        return x_NTD * len(x_NTD) * score_N11.softmax(0)


def with_last_norm(module: Callable[[int], nn.Module]) -> Callable[..., HFModel]:
    """Return ``build_model`` for a Llama model in which a module stands for the last norm."""

    def build(*given, **named) -> HFModel:
        model = build_model(*given, **named)
        assert isinstance(model, HFModel)
        model.whole.model.norm = module(8)
        return model

    return build


MIXING: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "BatchNorm": (OverBatch, r"; model.norm.norm \(BatchNorm1d\) normalizes over the batch"),
    "balanced router": (
        Balanced,
        "; a module mixes the datums of a batch or draws random numbers, or capture misreads",
    ),
}


@pytest.mark.parametrize("case", MIXING)
def test_a_model_in_which_datums_interact_is_refused_at_step_0(tmp_path, monkeypatch, case):
    module, cause = MIXING[case]
    monkeypatch.setattr(assembly, "build_model", with_last_norm(module))
    start = r"step 0: model\.layers\.\S+: the gradient captured for datum \d of the batch differs"
    with pytest.raises(SplitError, match=rf"^{start} by \d+% .*{cause}"):
        make_run(hf_config(tmp_path, "llama"))
    assert open_run(str(tmp_path / "run")).segments == ()


@pytest.mark.parametrize("setting", ["training.accumulate=2", "training.precision=bfloat16"])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_model_without_interaction_passes(tmp_path, setting, positions):
    make_run(hf_config(tmp_path, "gpt2", setting, f"capture.loss_positions={positions}"))
    assert len(open_run(str(tmp_path / "run")).segments) == 2


def test_the_check_does_not_change_training(tmp_path, monkeypatch):
    make_run(hf_config(tmp_path, "llama"))
    monkeypatch.setattr("capture.engine.engine.Engine.split_unchecked", "not wanted here")
    make_run(hf_config(tmp_path, "llama", name="unchecked"))
    one, other = (open_run(str(tmp_path / n)).network().state_dict() for n in ("run", "unchecked"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_all_workers_stop_if_one_finds_a_difference(tmp_path, monkeypatch):
    def gathered(group: SingleProcess, problem: object) -> list[object]:
        return [problem, "layer.weight: the gradient of another worker's datum differs"]

    monkeypatch.setattr(SingleProcess, "all_gather_object", gathered)
    with pytest.raises(SplitError, match=r"^step 0: layer\.weight: the gradient of another"):
        make_run(hf_config(tmp_path, "llama"))


def test_the_command_ends_with_one_line_and_says_that_the_record_is_wrong(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(assembly, "build_model", with_last_norm(OverBatch))
    config = hf_config(tmp_path, "llama")
    settings = [f"model.hf.settings.{k}={v}" for k, v in config.model.hf.settings.items()]
    found = ["corpus.kind=text", f"corpus.path={config.corpus.path}", "corpus.window=8"]
    found += ["model.kind=hf", "model.hf.family=llama", "training.batch=4", "training.device=cpu"]
    code = main(["capture", "demo", f"run.uri={tmp_path}/command", *found, *settings])
    assert code == 3
    assert "step 0: model.layers" in capsys.readouterr().err
