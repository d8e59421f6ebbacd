"""Record training that the ``Trainer`` of Lightning runs.

The trainer calls a callback when training begins, with each batch, and when it validates and saves.
Its checkpoints and the run's segments end at the same steps, so both continue together.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from capture.errors import ConfigError
from ontogeny.trainers.recording_callback import RecordingCallback

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
"""Two names of one library, each with a class of callbacks of its own."""


def lightning_callbacks() -> tuple[type, ...]:
    """Return the classes of callbacks of the packages in use, or of one that is installed.

    Raises ``ConfigError`` if none is.
    """
    found = [name for name in PACKAGES if name in sys.modules]
    found = found or [name for name in PACKAGES if find_spec(name.split(".")[0])][:1]
    if not found:
        problem = "needs Lightning, which is not installed"
        raise ConfigError("ontogeny.LightningCallback", problem, "Run: pip install lightning")
    return tuple(import_module(name).Callback for name in found)


class LightningCallback(RecordingCallback):
    """Record what every datum does to the weights while a Lightning ``Trainer`` trains.

    Pass it to the ``Trainer``, and train as before: the weights after training are bit-identical.
    The datums are the rows of the training dataset, numbered in its order. Losses of validation
    that the module logs under a name such as ``val_loss`` are stored as well. At each checkpoint
    of the trainer a segment of the run ends, and training that continues from the checkpoint
    (``ckpt_path``) continues the run from there. If one child of the module holds all parameters
    that are trained, this child is what is recorded, under its own parameter names.

    Example:
        >>> trainer = lightning.Trainer(  # doctest: +SKIP
        ...     callbacks=[ontogeny.LightningCallback(run="runs/mine", datums=tokens)]
        ... )
        >>> trainer.fit(module, loader)  # doctest: +SKIP
    """

    @staticmethod
    def bases() -> tuple[type, ...]:
        return lightning_callbacks()

    # --- events of the trainer --------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch the training loader as soon as the trainer has it: it is iterated before training.

        A strategy may replace loaders, so it is asked first.
        """
        own = trainer.strategy.process_dataloader

        def process_dataloader(loader: object) -> object:
            loader = own(loader)
            if trainer.training:
                self._run.watch(loader)
            return loader

        trainer.strategy.process_dataloader = process_dataloader

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if len(trainer.optimizers) != 1:
            problem = f"are {len(trainer.optimizers)}, a run has one"
            raise ConfigError("optimizers", problem, "Use ontogeny.record around the loop of one")
        loader = trainer.train_dataloader
        if loader is not self._run.loader:  # one of several
            self._run.unwatch()
        self._run.begin(
            recorded_module(pl_module),
            trainer.optimizers[0],
            dataset=getattr(loader, "dataset", None),
            step=trainer.global_step,
        )
        assert self._run.recording is not None
        self._run.recording.epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._run.begin_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self._run.next_batch()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            metrics: Mapping[str, Any] = trainer.callback_metrics
            found = {name: metrics[name] for name in metrics if name.startswith("val")}
            self._run.evaluations(found)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._run.commit()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._run.finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._run.recording is not None:
            self._run.end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        vars(trainer.strategy).pop("process_dataloader", None)
        self._run.unwatch()


def recorded_module(module: nn.Module) -> nn.Module:
    """Return the child that holds all trained parameters and can be called; else the module.

    Lightning calls no ``forward`` of its module, but the module calls that of its child.
    """
    holders = [child for child in module.children() if any(map(is_trained, child.parameters()))]
    own = any(map(is_trained, module.parameters(recurse=False)))
    if own or len(holders) != 1 or not can_be_called(holders[0]):
        return module
    return holders[0]


def is_trained(parameter: torch.Tensor) -> bool:
    return parameter.requires_grad


def can_be_called(module: nn.Module) -> bool:
    """Return whether a module has a ``forward``: lists of modules have none."""
    return type(module).forward is not nn.Module.forward
