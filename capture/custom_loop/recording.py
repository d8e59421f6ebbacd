"""Connect a custom training loop with the recorder: hooks of model and optimizer, datums, segments.

Shapes: N datum of a step, by slot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from capture.config.settings import Config
from capture.custom_loop.causes import DROPPED, require_resumed
from capture.custom_loop.checks.custom_functions import watching_functions
from capture.custom_loop.checks.exchanges import watching_exchanges
from capture.custom_loop.checks.split_guard import SplitGuard
from capture.custom_loop.checks.unchecked import Unchecked
from capture.custom_loop.datums import as_ids, tokens_per_datum
from capture.custom_loop.identity import DatumIdentity
from capture.custom_loop.loop_tape import LoopTape
from capture.custom_loop.packing.beginning import begin_pass
from capture.custom_loop.packing.finding import given_documents, named_inputs
from capture.custom_loop.ranks.beginning import first_position
from capture.custom_loop.ranks.joint_check import check_together
from capture.custom_loop.ranks.joint_step import ReadStep, all_skip, join_ranks
from capture.custom_loop.ranks.open_segment import OpenSegment
from capture.custom_loop.ranks.recorded_loop import RecordedLoop
from capture.custom_loop.ranks.step_datums import KnownDatums, StepDatums
from capture.custom_loop.step_inputs import LastWeights, StepInputs, StepPosition, before_step
from capture.custom_loop.steps import FoundShifts, StepRecords
from capture.custom_loop.units import naming_share
from capture.custom_loop.unseen import without_torch_functions
from capture.custom_loop.update import is_inner_step, run_after_closure, skips_step
from capture.engine.evaluation import perplexity
from capture.errors import RunError
from capture.gradients.layout import Layout
from capture.training.recorder import Recorder


class Recording:
    """A training loop that is being recorded; ``record`` yields it.

    Attributes:
        epoch: the epoch stored with steps and evaluations, from 0. Set it in your loop.
        model: the model that was given, without wrappers (``torch.compile``,
            ``DistributedDataParallel``).
        optimizer: the optimizer that was given, without wrappers.
        units: the captured parameters by name.
    """

    def __init__(
        self,
        recorder: Recorder,
        config: Config,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        units: dict[str, nn.Parameter],
        tables: Mapping[str, pa.Table],
        loop: RecordedLoop,
    ) -> None:
        """``tables``: of the corpus. Users do not call this: see ``record``."""
        self.epoch = 0
        self.model = model
        self.optimizer = optimizer
        self.units = units
        self._recorder = recorder
        self._config = config
        self._last = last = loop.checkpoints.last
        self._loop = loop
        self._ranks = loop.ranks
        self._checkpoints = loop.checkpoints
        self._state = state = loop.checkpoints.state
        self._layout = Layout.of(units)
        self._window = tokens_per_datum(tables)
        fallback = config.capture.fallback
        self._tape = LoopTape(state.tape_units, model, self._window, fallback=fallback)
        self._tape.frames.enabled = not state.is_sharded  # shards are not whole after the pass
        self._tape.passes.parameters = state.gradient_holders
        self._tape.passes.changes.holders = state.trained_units
        self._unchecked = Unchecked()
        self._identity = DatumIdentity(tables, self._unchecked)
        self._datums = KnownDatums.of_run(tables, recorder, last, self._unchecked)
        self._guard = SplitGuard(
            model, state.tape_units, self._tape, self._unchecked, seed=config.run.seed
        )
        self._position = first_position(recorder.store, last)
        """Position of the next step."""
        self._inputs: tuple[StepInputs, StepDatums] | None = None
        """Inputs and datums of the step that the optimizer is taking."""
        self._weights = LastWeights(last.end_step)
        self._steps = StepRecords(config, self._layout, self._window)
        self._segment = OpenSegment(recorder, loop, self._layout, self._unchecked)
        self._error: BaseException | None = None
        """The error that ended the recording."""
        self._on_error: Callable[[BaseException], None] = lambda error: None
        """Called with that error before it is raised; a trainer's callback closes the recording."""
        self._active = ExitStack()

    # --- for the user's loop --------------------------------------------------------------------

    def datums(
        self,
        ids: Sequence[int] | np.ndarray | Tensor,
        documents: Sequence[Sequence[int]] | np.ndarray | Tensor | None = None,
    ) -> None:
        """Set the datums of the next forward pass.

        Without this call, datums are numbered in the order in which they arrive.

        Args:
            ids: integers ``[N]``, the datum in each row of the batch, or in each document of packed
                rows.
            documents: integers ``[rows, tokens]``, for packed rows: the number of the document at
                each position, -1 for padding. Equal numbers side by side are one document. Not
                needed if the model takes ``position_ids`` that start again at each document, or
                ``cu_seqlens``.

        Raises:
            ConfigError: if ``ids`` are not integers of one axis, the run has no such datum, or
                there are not as many documents.
        """

        def set_datums() -> None:
            id_N = as_ids(ids)
            self._datums.require(id_N)
            given = None if documents is None else given_documents(documents, len(id_N))
            self._tape.set_datums(id_N, given)

        self._attempt_unseen(set_datums)

    def evaluation(self, split: str, loss: float, tokens: int = 0) -> None:
        """Store the loss on held-out data after the last step.

        Args:
            split: name of the data, for example ``"validation"``.
            loss: mean cross-entropy in nats.
            tokens: over how many tokens it is the mean.
        """
        row = {"step": self._position.step, "epoch": self.epoch, "split": split}
        row |= {"loss": float(loss), "perplexity": perplexity(float(loss)), "tokens": tokens}
        self._recorder.add_evaluation(row)

    def end_segment(self) -> None:
        """End the open segment with the last step; evaluations until the next step belong to it."""
        self._segment.end(self._position.step, self._weights.after_P)

    def commit(self) -> None:
        """Store the steps taken so far, as a segment, and wait until they are stored.

        Call it when your loop saves a checkpoint of its own, so that a run can continue from it.
        """
        self.end_segment()
        self._segment.commit()
        self._recorder.flush()

    def checkpoint(self) -> dict[str, Tensor]:
        """Return the checkpoint from which this recording starts: of the last committed step.

        Returns:
            Parameters and buffers by name, and the optimizer's state as
            ``optimizer/STATE/PARAMETER``, on the CPU.
        """
        return self._checkpoints.read()

    def restore(self) -> int:
        """Load ``checkpoint()`` into model and optimizer; call it first when you resume a run.

        Your data order, schedule and random numbers are not part of it.

        Returns:
            The number of steps that the run holds, which is the number of the next step: 0 if the
            run begins.

        Raises:
            ShardError: if the checkpoint is damaged or does not fit the model.
        """
        self._checkpoints.restore()
        return self._last.end_step

    # --- hooks ----------------------------------------------------------------------------------

    def __enter__(self) -> "Recording":
        hooks = (
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward, always_call=True),
            self.optimizer.register_step_pre_hook(self._before_optimizer_step),
            self.optimizer.register_step_post_hook(self._after_optimizer_step),
        )
        with self._state.put_together():
            hooks = (*hooks, *self._guard.watch.hooks(), *self._tape.frames.hooks())
        for hook in hooks:
            self._active.callback(hook.remove)
        self._active.enter_context(self._tape)
        self._active.enter_context(watching_functions(self._tape))
        self._active.enter_context(watching_exchanges(self._guard.watch.note_exchange))
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._active.close()
        self._ranks.attempt(self._segment.commit)
        error = error or self._error
        if error is not None:
            self._ranks.leave(error)
            if kind is None:
                raise error
        else:
            with self._ranks.waiting_at_end():
                self._ranks.agree("the end of the loop")
            self.end_segment()
            self._segment.commit()
        self._unchecked.warn(self._recorder.store.uri)
        return False

    def _before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._tape.paused or not torch.is_grad_enabled():
            return
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        named = named_inputs(model, args, kwargs)
        with self._ends_on_error():
            self._attempt_unseen(lambda: self._begin_forward(inputs, named))

    def _begin_forward(self, inputs: list[Tensor], named: Mapping[str, Tensor]) -> None:
        self._loop.require_no_join()
        begin_pass(self._tape, self._identity, inputs, named)

    def _attempt_unseen(self, work: Callable[[], None]) -> None:
        """Do what precedes a forward pass; see nothing after an error, until all ranks raise."""
        self._ranks.attempt(work)
        if self._ranks.error is not None:
            self._tape.paused = True

    def _after_forward(self, *_: object) -> None:
        if not self._tape.paused and torch.is_grad_enabled():
            self._tape.end_forward()

    def _before_optimizer_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Observe the step's inputs: now, or after its closure, which computes the gradients."""
        if is_inner_step(optimizer):
            return None
        return run_after_closure(lambda: self._begin_step(optimizer), args, kwargs)

    def _begin_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._error or self._inputs:
            reason = self._error or "the step before did not end"
            problem = f"recording ended before {self._position.where} ({reason})"
            raise RunError(self._recorder.store.uri, problem, DROPPED)
        self._ranks.attempt(self._segment.commit)
        if self.epoch != self._position.epoch:
            self._position = StepPosition(self._position.step, self.epoch, 0)
        where = self._position.where
        with self._ends_on_error(), self._tape.pausing():
            self._state.refresh()
            self._tape.passes.changes.resolve()
            read = self._ranks.attempt(lambda: self._read_step(optimizer))
            found = self._ranks.agree(where, read.values if read else None)
            if all_skip(found, where):
                return
            assert read is not None
            if self._state.is_sharded:
                ranks, passes = self._ranks, read.passes
                check_together(self._guard, self._state, ranks, passes, self._position)
            inputs = join_ranks(read.inputs, found, self._ranks, self._position)
            datums = self._datums.of_step([own["claims"] for own in found], self._ranks.rank, where)
            if not any(each.documents for each in read.passes):  # packed rows hold any number
                self._loop.batches.require(len(datums.all_N), where)
            self._inputs = inputs, datums

    def _read_step(self, optimizer: torch.optim.Optimizer) -> ReadStep | None:
        """Return what this rank sees of a step; None if the optimizer skips it."""
        position, num_ranks = self._position, self._ranks.size
        if position.step == self._last.end_step > 0:
            uri = self._recorder.store.uri
            require_resumed(self._state.units, self.checkpoint(), self._last.end_step, uri)
        taken = self._tape.take_passes()
        if skips_step(optimizer):
            return None
        with without_torch_functions():
            device = next(iter(self.units.values())).device
            weights, probe = self._weights, self._steps.probe(position.step, device)
            inputs = before_step(self._state, taken, position, weights, num_ranks, probe)
        if not self._state.is_sharded:
            self._guard.check(taken.passes, position.step)
        return ReadStep.of(inputs, taken.passes, num_ranks)

    @torch.no_grad()
    def _after_optimizer_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._inputs is None or is_inner_step(optimizer):
            return  # the optimizer has skipped the step, or has not ended it
        (inputs, datums), self._inputs = self._inputs, None
        where, ranks = self._position.where, self._ranks
        with self._ends_on_error(), without_torch_functions():
            self._state.refresh()
            step, own = self._position.step, len(datums.own_N)
            found = ranks.attempt(lambda: self._steps.find_shifts(inputs, own, step))
            total_Q = found.total_Q if found else torch.zeros_like(inputs.sums.summed_Q)
            ranks.agree_on_success(where, total_Q)
            assert found is not None
            ranks.attempt(lambda: self._record_step(inputs, found, datums))
            ranks.agree(where)
            if self._position.step % self._config.capture.segment_steps == 0:
                self.end_segment()

    def _record_step(self, inputs: StepInputs, found: FoundShifts, datums: StepDatums) -> None:
        """Audit and record a step."""
        position = self._position
        observed, after_P = self._steps.observe(inputs, found, datums, position, self._ranks.group)
        self._weights = replace(self._weights, after_P=after_P)
        self._recorder.add_step(observed, datums.all_N)
        self._recorder.check()
        self._position = StepPosition(position.step + 1, position.epoch, position.batch + 1)

    @contextmanager
    def _ends_on_error(self) -> Iterator[None]:
        """End the recording for good if the block raises, because the step is half recorded."""
        try:
            with naming_share(self.model):
                yield
        except BaseException as error:
            self._error, self._tape.paused = error, True
            self._on_error(error)
            raise
