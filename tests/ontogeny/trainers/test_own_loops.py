"""Loops of one's own with accelerate and peft, which run where they are installed.

The kinds of loops in ``exact_optimizers`` imitate their optimizers, for all other machines.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from custom_loops import Small, V, loss_of, tokens, uri
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.shifts.outliers import OutlierConfig

DATA = tokens()
OPTIONS: dict[str, Any] = {
    "datums": DATA,
    "outliers": OutlierConfig(k=5),
    "factors": FactorConfig(enabled=True),
    "segment_steps": 1,
}


def assert_exact(run: Run, model: nn.Module, batch: int, loss: Any = loss_of) -> None:
    """Check that gradients are those of passes of one datum each, and datums come once an epoch."""
    steps = run.steps()
    assert not any(segment.unchecked for segment in run.segments)
    assert sorted(np.concatenate(list(steps["datums"]))) == sorted([*range(len(DATA))] * 2)
    parameters = dict(model.named_parameters())
    for step, ids in enumerate(steps["datums"]):
        assert len(ids) == batch
        model.load_state_dict(run.checkpoint(step), strict=False)
        for datum in ids:
            units = [parameters[name] for name in run.layout.names]
            wanted = torch.autograd.grad(loss(model, DATA[[datum]]) / batch, units)
            for name, gradient in zip(run.layout.names, wanted, strict=True):
                found = run.gradient(step, int(datum), name)
                np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain = Small()
    model, optimizer, loader = accelerator.prepare(
        plain,
        torch.optim.AdamW(plain.parameters(), 0.01),
        DataLoader(TensorDataset(DATA), batch_size=2, shuffle=True),
    )
    with record(model, optimizer, run=uri(tmp_path), **OPTIONS):
        for _ in range(2):
            for (token_NT,) in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(loss_of(model, token_NT))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    optimizer.zero_grad()
    assert_exact(open_run(uri(tmp_path)), plain, batch=4)


@pytest.mark.filterwarnings("ignore")  # of the library about itself
def test_adapters_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=V, **shape, **heads))
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, adapters)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    def loss(model: nn.Module, token_NT: Tensor) -> Tensor:
        return model(input_ids=token_NT, labels=token_NT).loss

    with record(model, optimizer, run=uri(tmp_path), **OPTIONS):
        for ids in (*torch.randperm(12).split(4), *torch.randperm(12).split(4)):
            loss(model, DATA[ids]).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = open_run(uri(tmp_path))
    assert len(run.layout.names) == 4
    assert all("lora_" in name for name in run.layout.names)
    assert_exact(run, model, batch=4, loss=loss)
