"""Record training that the ``Trainer`` of transformers runs, and trainers made of it (TRL).

The trainer calls a callback when training begins, around each step, and when it evaluates and
saves. Its checkpoints and the run's segments end at the same steps, so both continue together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from capture.errors import RunError
from capture.models.hub import load_transformers
from ontogeny.trainers.recording_callback import RecordingCallback


def trainer_callback() -> tuple[type, ...]:
    """Return the class of callbacks; raises ``ConfigError`` without transformers."""
    return (load_transformers("ontogeny.Callback").TrainerCallback,)


class Callback(RecordingCallback):
    """Record what every datum does to the weights while a Hugging Face ``Trainer`` trains.

    Pass it to any ``Trainer`` of transformers, or one made of it, such as TRL's ``SFTTrainer``, and
    train as before: the weights after training are bit-identical. The datums are the rows of the
    training dataset, numbered in its order. If the dataset has a column ``input_ids``, the run
    holds their tokens, and compares them with what goes into the model. Evaluations and epochs are
    stored as well. At each checkpoint of the trainer a segment of the run ends, and training that
    continues from the checkpoint (``resume_from_checkpoint``) continues the run from there.

    Example:
        >>> trainer = transformers.Trainer(  # doctest: +SKIP
        ...     model, args, train_dataset=rows, callbacks=[ontogeny.Callback(run="runs/mine")]
        ... )
        >>> trainer.train()  # doctest: +SKIP
        >>> ontogeny.open_run("runs/mine").steps()  # doctest: +SKIP
    """

    @staticmethod
    def bases() -> tuple[type, ...]:
        return trainer_callback()

    # --- events of the trainer --------------------------------------------------------------------

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_dataloader: Any,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            problem = f"splits each batch over {args.n_gpu} GPUs of one process (DataParallel)"
            raise RunError("Trainer", problem, "Start it with CUDA_VISIBLE_DEVICES=0 or torchrun")
        self._run.watch(train_dataloader)
        if self._run.drawn is not None and not args.ignore_data_skip:
            skipped = skipped_batches(len(train_dataloader), args, state.global_step)
            self._run.drawn.num_skipped = skipped
        self._run.begin(
            model,
            optimizer,
            dataset=train_dataloader.dataset,
            tokenizer=getattr(processing_class, "tokenizer", processing_class),
            step=state.global_step,
        )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.begin_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.next_batch()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.next_batch()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stops = control.should_training_stop or control.should_epoch_stop
        self._run.end_epoch(is_whole=not stops)
        # With load_best_model_at_end the trainer replaces the weights before on_train_end.
        if self._run.recording is not None and args.load_best_model_at_end:
            self._run.recording.end_segment()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Mapping[str, Any], **kwargs: Any
    ) -> None:
        self._run.evaluations(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.commit()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.finish()


def skipped_batches(num_batches: int, args: Any, step: int) -> int:
    """Return how many batches of an epoch the trainer leaves out when it continues at ``step``.

    ``num_batches``: of an epoch. It takes whole steps, each of several batches, the last of an
    epoch of fewer.
    """
    accumulated = args.gradient_accumulation_steps
    steps_per_epoch = max(-(-num_batches // accumulated), 1)
    return step % steps_per_epoch * accumulated
