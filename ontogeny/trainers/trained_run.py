"""The run of one trainer, recorded over one or several calls of its training.

What the callbacks of all trainers share: when a recording begins and ends, at which step it
continues, and which datums each batch holds.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from capture.custom_loop.datums import DatumDescriptions
from capture.custom_loop.ranks.wrappers import DDP, num_processes, ranks_of
from capture.custom_loop.record import record
from capture.custom_loop.recording import Recording
from capture.errors import ConfigError, RunError
from capture.format.chain import read_segments
from capture.format.markers import START
from capture.store import Store
from capture.training.rewind import rewind
from ontogeny.trainers.dataset_tokens import (
    datums_of_rows,
    describe_datums,
    document_ends,
    token_names,
)
from ontogeny.trainers.drawn_batches import DrawnBatches, stop_watching, watch

LOSS = "loss"


class TrainedRun:
    """A run that a trainer's callback records.

    Attributes:
        recording: what ``ontogeny.record`` yields; None while no training runs.
    """

    def __init__(
        self,
        store: Store,
        datums: DatumDescriptions,
        vocabulary: Sequence[str] | None,
        settings: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        """``settings``: the other arguments of ``record``."""
        self.store, self.settings = store, settings
        self.datums, self.vocabulary = datums, vocabulary
        self.overwrite = overwrite
        self.recording: Recording | None = None
        self.drawn: DrawnBatches | None = None
        self.document_ends: np.ndarray | None = None
        """Documents in each row of the dataset and those before, if rows are packed of them."""
        self.loader: Any = None
        self.has_begun = False
        """Whether an earlier call of training began this run."""
        self.steps_before = 0
        """Steps of the run before the trainer's own step 0."""
        self.epoch = -1
        """Epoch of the run that is trained; -1 before the first."""
        self._open = ExitStack()

    def watch(self, loader: Any) -> None:
        """Note the datums of each batch of a loader, from its next pass on."""
        self.unwatch()
        self.loader, self.drawn = loader, watch(loader)

    def unwatch(self) -> None:
        if self.loader is not None:
            stop_watching(self.loader)
        self.loader, self.drawn = None, None

    def begin(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        dataset: Any,
        tokenizer: Any = None,
        step: int,
    ) -> None:
        """Record from the trainer's ``step`` on; 0 begins a run, or continues that of before.

        Raises what ``record`` raises, and ``RunError`` if the run has no segment that ends at
        ``step``.
        """
        self.drop()  # if training ended with an error, and told nobody
        with self.ending_on_error():
            self.enter(in_wrapper(model), optimizer, dataset, tokenizer, step)

    def enter(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        dataset: Any,
        tokenizer: Any,
        step: int,
    ) -> None:
        """Enter the recording; see ``begin``."""
        resume = self.resumes(model, step)
        datums, vocabulary = self.describe(dataset, tokenizer)
        entered = record(
            model,
            optimizer,
            run=self.store.uri,
            store=self.store.config,
            datums=datums,
            vocabulary=vocabulary,
            resume=resume,
            overwrite=self.overwrite and not self.has_begun and not resume,
            **self.settings,
        )
        self.recording = self._open.enter_context(entered)
        self.recording._on_error = self.end
        self.has_begun = True

    def resumes(self, model: nn.Module, step: int) -> bool:
        """Return whether the run continues; remove what it has recorded after the step.

        Where several processes train, the first looks, and all know.
        """
        with ranks_of(model, self.store.config.patience_seconds) as ranks:
            looks = ranks.group.rank == 0
            found = ranks.attempt(lambda: self.find_start(step) if looks else None)
            begins_at = ranks.agree("the start of training", {"step": found})[0]["step"]
        if not step:
            self.steps_before = begins_at
        return begins_at > 0

    def find_start(self, step: int) -> int:
        """Return the step of the run at which the trainer's ``step`` continues it; 0: a new run."""
        if step:
            if not self.store.exists(START):
                problem = f"holds no run, but training continues at step {step}"
                raise RunError(self.store.uri, problem, "Train from step 0, or without recording")
            rewind(self.store, self.steps_before + step)
            return self.steps_before + step
        done = read_segments(self.store) if self.has_begun else []
        return done[-1].end_step if done else 0

    def describe(
        self, dataset: Any, tokenizer: Any
    ) -> tuple[DatumDescriptions, Sequence[str] | None]:
        """Return the datums of the run and the texts of their tokens: as given, or the dataset's.

        Where TRL has packed documents into the rows, datums are the documents. Raises
        ``ConfigError`` if as many were given as the dataset does not have.
        """
        self.document_ends = ends = document_ends(dataset)
        if self.datums is None:
            found: Any = describe_datums(dataset)
            return found, self.vocabulary or token_names(tokenizer, found)
        if self.drawn is None:  # as many as a stream will have is not known
            return self.datums, self.vocabulary
        given = self.datums if isinstance(self.datums, int) else len(self.datums)
        wanted, part = (len(dataset), "row") if ends is None else (int(ends[-1]), "document")
        if given != wanted:
            problem = f"are {given}, the dataset has {wanted} {part}s"
            remedy = f"Describe each {part} of the dataset, in its order"
            raise ConfigError("datums", problem, remedy)
        return self.datums, self.vocabulary

    def begin_epoch(self, number: int) -> None:
        """Note that the trainer begins an epoch; ``number``: its own, if it continues there."""
        self.epoch = max(self.epoch + 1, number)
        if self.recording is not None:
            self.recording.epoch = self.epoch

    def end_epoch(self, *, is_whole: bool) -> None:
        """Require that an epoch that ends as a whole has taken all batches that were drawn."""
        if is_whole and self.recording is not None and self.drawn is not None:
            with self.ending_on_error():
                self.drawn.require_all_taken()

    def next_batch(self) -> None:
        """Tell the recording which datums the trainer's next batch holds."""
        if self.recording is not None and self.drawn is not None:
            with self.ending_on_error():
                self.recording.datums(datums_of_rows(self.drawn.take(), self.document_ends))

    def evaluations(self, metrics: Mapping[str, Any]) -> None:
        """Store the losses among a trainer's metrics: ``eval_loss`` as that of the split eval."""
        for name, value in metrics.items():
            split = name.removesuffix(LOSS).rstrip("_/")
            if self.recording is not None and name.endswith(LOSS) and split:
                self.recording.evaluation(split, float(value))

    def commit(self) -> None:
        """End a segment at a checkpoint of the trainer."""
        if self.recording is not None:
            with self.ending_on_error():
                self.recording.commit()

    def finish(self) -> None:
        """End the recording of training that has ended well."""
        if self.recording is not None:
            self.end()

    @contextmanager
    def ending_on_error(self) -> Iterator[None]:
        """End the recording if the block raises: a trainer does not tell its callbacks of errors.

        Errors in hooks of the recording end it in the same way (``Recording._on_error``).
        """
        try:
            yield
        except BaseException as error:
            self.end(error)
            raise

    def drop(self) -> None:
        """End a recording that an error left open; steps of the open segment are dropped."""
        if self.recording is not None:
            self.end(RunError(self.store.uri, "training ended with an error"))

    def end(self, error: BaseException | None = None) -> None:
        """End the recording; store the open segment, or drop it after an error."""
        stack, self._open = self._open, ExitStack()
        self.recording = None
        self.unwatch()
        if error is None:
            stack.close()
            return
        try:
            stack.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise


def in_wrapper(model: nn.Module) -> nn.Module:
    """Return a model in the wrapper that averages its gradients over processes, if it has one.

    A trainer shows its callbacks the model alone.
    """
    if num_processes() == 1:
        return model
    wrappers = (x for x in gc.get_objects() if type(x) is DDP and x.module is model)
    return next(wrappers, model)
