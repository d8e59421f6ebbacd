"""Record training that the ``Trainer`` of transformers runs, and trainers made of it (TRL).

The trainer calls a callback when training begins, around each step, and when it evaluates and
saves. Its checkpoints and the run's segments end at the same steps, so both continue together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from capture.config.records import FactorConfig
from capture.custom_loop.datums import DatumDescriptions
from capture.errors import RunError
from capture.gradients.vmap_fallback import Fallback
from capture.models.hub import load_transformers
from capture.shifts.outliers import OutlierConfig
from capture.store import DEFAULT
from capture.store.config import StoreConfig
from ontogeny.trainers.base_class import JoinsOnCreation
from ontogeny.trainers.trained_run import TrainedRun


def trainer_callback() -> tuple[type, ...]:
    """Return the class of callbacks; raises ``ConfigError`` without transformers."""
    return (load_transformers("ontogeny.Callback").TrainerCallback,)


class Callback(JoinsOnCreation):
    """Record what every datum does to the weights while a Hugging Face ``Trainer`` trains.

    Pass it to any ``Trainer`` of transformers, or one made of it, such as TRL's ``SFTTrainer``, and
    train as before: the weights after training are bit-identical. The datums are the rows of the
    training dataset, numbered in its order. If the dataset has a column ``input_ids``, the run
    holds their tokens, and compares them with what goes into the model. Evaluations and epochs are
    stored as well. At each checkpoint of the trainer a segment of the run ends, and training that
    continues from the checkpoint (``resume_from_checkpoint``) continues the run from there.

    Args:
        run: where the run is stored: a folder, ``file:///…``, ``memory://…`` or
            ``s3://bucket/prefix``.
        units: glob patterns over parameter names; patterns that begin with ``!`` leave parameters
            out. Default: all parameters that are trained.
        datums: as in ``ontogeny.record``, one for each row of the dataset, in its order. Default:
            the column ``input_ids``, or else the number of rows.
        vocabulary: text of each token; by default the tokenizer's (``processing_class``).
        outliers: how many of the largest shifts are stored.
        factors: whether the factors of all per-sample gradients are stored. Default: no. They are
            with ``FactorConfig(enabled=True)``.
        segment_steps: steps per segment, at most.
        audit_tolerance: largest unexplained difference between shifts and change of the weights.
        store: settings for retries, timeouts and pending bytes.
        overwrite: replace a run that exists, unless training continues from a checkpoint.
        fallback: "vmap" runs modules again for each datum whose parameters have no factors.

    Raises:
        ConfigError: transformers is not installed. ``Trainer.train`` raises what
            ``ontogeny.record`` raises, for example for a loss in which datums interact.

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

    def __init__(
        self,
        run: str,
        *,
        units: Sequence[str] | None = None,
        datums: DatumDescriptions = None,
        vocabulary: Sequence[str] | None = None,
        outliers: OutlierConfig | None = None,
        factors: FactorConfig | None = None,
        segment_steps: int = 100,
        audit_tolerance: float = 1e-5,
        store: StoreConfig = DEFAULT,
        overwrite: bool = False,
        fallback: Fallback = "none",
    ) -> None:
        self._run = TrainedRun(
            run,
            units=units,
            datums=datums,
            vocabulary=vocabulary,
            outliers=outliers,
            factors=factors,
            segment_steps=segment_steps,
            audit_tolerance=audit_tolerance,
            store=store,
            overwrite=overwrite,
            fallback=fallback,
        )

    def close(self) -> None:
        """End a recording that an error in training left open, and drop its open segment."""
        if self._run.recording is not None:
            self._run.drop()

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
        run = self._run
        if run.recording is None:
            return
        if run.drawn is not None and not (
            control.should_training_stop or control.should_epoch_stop
        ):
            run.drawn.require_all_taken()
        if args.load_best_model_at_end:  # the trainer replaces the weights before on_train_end
            run.recording.end_segment()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Mapping[str, Any], **kwargs: Any
    ) -> None:
        self._run.evaluations(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run.recording is not None:
            self._run.recording.commit()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._run.recording is not None:
            self._run.end()


def skipped_batches(num_batches: int, args: Any, step: int) -> int:
    """Return how many batches of an epoch the trainer leaves out when it continues at ``step``.

    ``num_batches``: of an epoch. It takes whole steps, each of several batches, the last of an
    epoch of fewer.
    """
    accumulated = args.gradient_accumulation_steps
    steps_per_epoch = max(-(-num_batches // accumulated), 1)
    return step % steps_per_epoch * accumulated
