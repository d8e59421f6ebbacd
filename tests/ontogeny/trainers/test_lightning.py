"""``ontogeny.LightningCallback`` in the ``Trainer`` of Lightning itself.

Laws: each captured gradient equals the backward pass of one datum, recording leaves the weights
bit-identical, and an interrupted run that continues equals one that was not interrupted.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from custom_loops import Small, loss_of, tokens
from tiny import contents
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainer_runs import FULL, largest_error, same_weights, sorted_datums

import ontogeny
from analysis.run.run import open_run
from capture.errors import ConfigError, SplitError
from capture.maintenance.verify import verify
from capture.shifts.outliers import OutlierConfig
from capture.store import Store

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the library about itself
DATA = tokens()
FEW: dict[str, Any] = {"outliers": OutlierConfig(k=5), "segment_steps": 2, "datums": DATA}


class Language(lightning.LightningModule):
    """The parameters are those of one child, or of several."""

    def __init__(self, *, child: bool = True) -> None:
        super().__init__()
        small = Small()
        self.child = child
        if child:
            self.model = small
        else:
            self.embedding, self.layer, self.norm, self.out = small.children()

    def forward(self, token_NT: Tensor) -> Tensor:
        return self.model(token_NT) if self.child else Small.forward(self, token_NT)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return loss_of(self, batch[0])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", loss_of(self, batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01)


def loaders(*, shuffle: bool, workers: int = 0) -> tuple[Any, Any]:
    data = TensorDataset(DATA)
    generator = torch.Generator().manual_seed(3)
    common: dict[str, Any] = {"num_workers": workers, "generator": generator}
    training = DataLoader(data, batch_size=2, shuffle=shuffle, **common)
    return training, DataLoader(TensorDataset(DATA[:4]), batch_size=2)


def fit(
    module: Any,
    callbacks: list[Any],
    *,
    shuffle: bool = True,
    workers: int = 0,
    folder: Path | None = None,
    ckpt_path: str | None = None,
    **more: Any,
) -> Any:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "gradient_clip_val": 0.5,
        "accumulate_grad_batches": 2,
        "logger": False,
        "enable_checkpointing": folder is not None,
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(callbacks=callbacks, **(settings | more))
    trainer.fit(module, *loaders(shuffle=shuffle, workers=workers), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("child", [True, False])
@pytest.mark.parametrize("datums", [pytest.param(DATA, marks=pytest.mark.slow), None])
def test_gradients_are_those_of_one_datum(child: bool, datums: Any, uri: str) -> None:
    plain, recorded = Language(child=child), Language(child=child)
    fit(plain, [])
    fit(recorded, [ontogeny.LightningCallback(uri, datums=datums, **FULL)])
    assert same_weights(plain, recorded)
    model = recorded.model if child else recorded
    error = largest_error(uri, model, lambda model, _, i: loss_of(model, DATA[[i]]) / 4)
    assert error < 1e-5
    run = open_run(uri)
    for epoch in (slice(3), slice(3, None)):
        assert sorted_datums(run, epoch) == [*range(12)]
    assert list(run.steps()["epoch"]) == [0] * 3 + [1] * 3
    assert list(run.evaluations()["step"]) == [3, 6]
    assert set(run.evaluations()["split"]) == {"val"}


def test_clipping_by_value_is_recorded(uri: str) -> None:
    plain, recorded = Language(), Language()
    by_value = {"gradient_clip_algorithm": "value", "gradient_clip_val": 0.01, "max_epochs": 1}
    fit(plain, [], **by_value)
    fit(recorded, [ontogeny.LightningCallback(uri, datums=DATA, **FULL)], **by_value)
    assert same_weights(plain, recorded)
    error = largest_error(uri, recorded.model, lambda model, _, i: loss_of(model, DATA[[i]]) / 4)
    assert error < 1e-5


def test_workers_that_load_keep_the_datums(uri: str) -> None:
    module = Language()
    fit(module, [ontogeny.LightningCallback(uri, **FULL)], workers=2, max_epochs=1)
    error = largest_error(uri, module.model, lambda model, _, i: loss_of(model, DATA[[i]]) / 4)
    assert error < 1e-5


class Stop(lightning.Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            raise ValueError("stopped")


def test_an_interrupted_run_continues_from_the_trainers_checkpoint(tmp_path: Path) -> None:
    """Lightning puts neither random numbers nor positions of loaders into its checkpoints."""
    whole, broken = str(tmp_path / "whole"), str(tmp_path / "broken")
    module = Language()
    saves = lightning.callbacks.ModelCheckpoint(
        dirpath=tmp_path / "one", filename="{epoch}", save_top_k=-1
    )
    fit(module, [ontogeny.LightningCallback(whole, **FEW), saves], shuffle=False, folder=tmp_path)
    assert [segment.end_step for segment in open_run(whole).segments] == [2, 3, 4, 6]
    again = lightning.callbacks.ModelCheckpoint(
        dirpath=tmp_path / "two", filename="{epoch}", save_top_k=-1
    )
    with pytest.raises(ValueError, match="stopped"):
        fit(
            Language(),
            [ontogeny.LightningCallback(broken, **FEW), again, Stop()],
            shuffle=False,
            folder=tmp_path,
        )
    assert not Store(broken).exists("lease.json")
    continued = Language()
    callbacks = [ontogeny.LightningCallback(broken, **FEW), again]
    fit(
        continued,
        callbacks,
        shuffle=False,
        folder=tmp_path,
        ckpt_path=str(tmp_path / "two" / "epoch=0.ckpt"),
    )
    assert same_weights(module, continued)
    assert contents(broken) == contents(whole)
    assert verify(Store(broken)) == []


def test_several_optimizers_are_refused(uri: str) -> None:
    class Two(Language):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)]

    settings: dict[str, Any] = {"gradient_clip_val": None, "accumulate_grad_batches": 1}
    with pytest.raises(ConfigError, match="optimizers: are 2, a run has one"):
        fit(Two(), [ontogeny.LightningCallback(uri)], **settings)


def test_an_error_ends_the_recording(uri: str) -> None:
    class Interacting(Language):
        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            score = self(batch[0][:, :-1]).mean((1, 2))
            return (score - score.mean()).square().sum()

    module = Interacting()
    with pytest.raises(SplitError):
        fit(module, [ontogeny.LightningCallback(uri, datums=DATA)])
    assert not module.model._forward_pre_hooks
    assert open_run(uri).steps_done == 0


def test_the_callback_is_one_of_both_names_of_the_library() -> None:
    import pytorch_lightning

    callback = ontogeny.LightningCallback("memory://unused")
    assert isinstance(callback, ontogeny.LightningCallback)
    assert isinstance(callback, lightning.Callback | pytorch_lightning.Callback)


def test_the_child_with_all_parameters_is_recorded() -> None:
    from ontogeny.trainers.lightning import recorded_module

    module = Language()
    assert recorded_module(module) is module.model
    module.other = nn.Linear(2, 2)
    assert recorded_module(module) is module
    module.other.requires_grad_(False)
    assert recorded_module(module) is module.model
    listed = nn.Module()
    listed.layers = nn.ModuleList([nn.Linear(2, 2)])
    assert recorded_module(listed) is listed
