"""The link between somebody's own training loop and the run: hooks, numbers, segments.

Shapes: N datum of a step, by slot.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from capture.config.settings import Config
from capture.custom_loop.datums import as_ids, window_of
from capture.custom_loop.loop_tape import Pass, Watch
from capture.custom_loop.steps import DROPPED, Before, Place, look_after, look_before, placed
from capture.engine.evaluation import perplexity
from capture.errors import ConfigError, RunError
from capture.format import checkpoint
from capture.format.markers import Marker
from capture.gradients.layout import Layout
from capture.optim import optimizer as optimizers
from capture.shards import encoding as shards
from capture.shifts.shift_buffer import ShiftBuffer
from capture.training.recorder import Recorder

MOST_SLOTS = 2**15
"""What the record's 16-bit slot can count."""


class Recording:
    """What ``record`` hands out."""

    def __init__(
        self,
        recorder: Recorder,
        config: Config,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        units: dict[str, nn.Parameter],
        tables: Mapping[str, pa.Table],
        last: Marker,
    ) -> None:
        """``last``: the marker up to which the run has come."""
        self.epoch = 0
        """Set it, if you like, so that steps and evaluations say of which epoch they are."""
        self.recorder = recorder
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.units = units
        self.last = last
        self.layout = Layout.of(units)
        self.window = window_of(tables)
        self.num_datums = tables["corpus/datums.parquet"].num_rows if tables else None
        self.watch = Watch(units, model)
        self.place = Place(last.end_step, 0, 0)
        """Of the coming step."""
        self.next_datum = 0 if tables else first_unused(recorder, last)
        self.before: tuple[Before, np.ndarray] | None = None
        self.buffer: ShiftBuffer | None = None
        self.full: dict[str, Tensor] | None = None
        """The checkpoint after a segment that is full, but still open to evaluations."""
        self.broken: BaseException | None = None
        self.entered = ExitStack()

    # --- for the loop ---------------------------------------------------------------------------

    def datums(self, ids: Any) -> None:
        """Which datum sits in which slot of the coming forward pass; by default they go on
        counting. Raises ``ConfigError`` for datums that there are not."""
        id_N = as_ids(ids)
        self.require_known(id_N)
        self.watch.tell(id_N)

    def evaluation(self, split: str, loss: float, tokens: int = 0) -> None:
        """Note the loss (a mean, in nats) on something held out, over so many tokens."""
        row = {"step": self.place.step, "epoch": self.epoch, "split": split, "loss": float(loss)}
        row |= {"perplexity": perplexity(float(loss)), "tokens": tokens}
        self.recorder.add_evaluation(row)

    def checkpoint(self) -> dict[str, Tensor]:
        """Weights after the last step that was committed before this recording began; what the
        optimizer remembered is there as ``optimizer/STATE/PARAMETER``."""
        return checkpoint.read_checkpoint(self.recorder.store, self.last.end_step, self.last)

    def restore(self) -> None:
        """Put model and optimizer back to that checkpoint."""
        where = f"{self.recorder.store.uri}/{checkpoint.key_of(self.last.end_step)}"
        weights, remembered = checkpoint.parted(self.checkpoint())
        checkpoint.restore(self.model, weights, where)
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        optimizers.restore(
            self.optimizer,
            {name: p for name, p in self.model.named_parameters() if id(p) in trained},
            remembered,
            config=self.config.training.optimizer,
            step=self.last.end_step,
            where=where,
        )

    # --- while it lasts -------------------------------------------------------------------------

    def __enter__(self) -> "Recording":
        hooks = (
            self.model.register_forward_pre_hook(self.on_forward, with_kwargs=True),
            self.model.register_forward_hook(self.on_forwarded, always_call=True),
            self.optimizer.register_step_pre_hook(self.on_step),
            self.optimizer.register_step_post_hook(self.on_stepped),
        )
        for hook in hooks:
            self.entered.callback(hook.remove)
        self.entered.enter_context(self.watch)
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.entered.close()
        if self.full is not None:
            self.commit(self.full)
        if error is None and self.broken:
            raise self.broken
        if error is None and self.recorder.open.steps:
            self.commit(self.snapshot())
        return False

    def on_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        self.watch.begin(inputs)

    def on_forwarded(self, *_: object) -> None:
        self.watch.end()

    def on_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.broken or self.before:
            problem = f"recording ended before {self.place.where} ({self.broken or 'half of it'})"
            raise RunError(self.recorder.store.uri, problem, DROPPED)
        if self.full is not None:
            self.commit(self.full)
        if self.epoch != self.place.epoch:
            self.place = Place(self.place.step, self.epoch, 0)
        with self.breaking():
            if any(x is not None for x in (*args[1:], *kwargs.values())):
                problem = "is called with a closure, within which gradients cannot be seen"
                raise RunError("optimizer.step", problem, "Call loss.backward() before it")
            if self.place.step == self.last.end_step > 0:
                self.require_same()
            passes = self.watch.take()
            before = look_before(optimizer, self.units, passes, self.place)
            self.before = before, self.datum_N(passes)

    @torch.no_grad()
    def on_stepped(self, *_: object) -> None:
        assert self.before
        (before, datum_N), self.before = self.before, None
        capture, place = self.config.capture, self.place
        with self.breaking():
            if self.buffer is None:
                device = before.before_P.device
                self.buffer = ShiftBuffer(self.layout, len(datum_N), device)
            seen = look_after(before, datum_N, place, capture, self.buffer)
            assert seen.outliers
            seen = replace(seen, outliers=placed(seen.outliers, self.window, place))
            self.recorder.add_step(seen, datum_N)
            self.recorder.look()
        self.place = Place(place.step + 1, place.epoch, place.batch + 1)
        if self.place.step % capture.segment_steps == 0:
            self.full = self.snapshot()

    def breaking(self) -> "Breaking":
        return Breaking(self)

    # --- numbers and segments -------------------------------------------------------------------

    def datum_N(self, passes: list[Pass]) -> np.ndarray:
        """Which datum sits in which slot of the step, as told or else by number."""
        found = []
        for one in passes:
            datum_N, count = one.datum_N, one.num_datums()
            if datum_N is None:
                datum_N = np.arange(self.next_datum, self.next_datum + count)
                self.next_datum += count
                self.require_known(datum_N)
            if len(datum_N) != count:
                problem = f"was told {len(datum_N)} datums, a backward pass had {count}"
                raise ConfigError("recorder.datums", problem)
            found.append(datum_N)
        all_N = np.concatenate(found)
        if len(all_N) > MOST_SLOTS:
            problem = f"has {len(all_N)} datums, more than the record can number ({MOST_SLOTS})"
            raise RunError(self.place.where, problem)
        return all_N.astype(np.int32)

    def require_known(self, datum_N: np.ndarray) -> None:
        """Raises ``ConfigError`` for a datum that the run does not have."""
        least, most = int(datum_N.min()), int(datum_N.max())
        end = 2**31 if self.num_datums is None else self.num_datums
        if not 0 <= least <= most < end:
            problem = f"got {least} to {most}, the run's datums are 0 to {end - 1}"
            remedy = "Tell by recorder.datums(ids), before each forward pass, which are in it"
            raise ConfigError("recorder.datums", problem, remedy)

    def require_same(self) -> None:
        """Raises ``RunError`` unless training goes on from where the run has come to."""
        kept = self.checkpoint()
        for name, unit in self.units.items():
            if name not in kept or not torch.equal(kept[name], unit.detach().cpu()):
                step = self.last.end_step
                problem = f"goes on after step {step - 1}, but {name} is not what it was then"
                remedy = "Call recorder.restore(), or load a state of your own of that step"
                raise RunError(self.recorder.store.uri, problem, remedy)

    def snapshot(self) -> dict[str, Tensor]:
        parameters = dict(self.model.named_parameters())
        return checkpoint.snapshot(self.model, optimizers.snapshot(self.optimizer, parameters))

    def commit(self, tensors: dict[str, Tensor]) -> None:
        self.full = None
        self.recorder.commit(tensors)


class Breaking:
    """Around what must not fail halfway: an error within ends the recording for good."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.recording.broken = error


def first_unused(recorder: Recorder, last: Marker) -> int:
    """One more than the largest datum of a run so far; they are counted as they come."""
    if not last.files_of("steps"):
        return 0
    file = last.files_of("steps")[0]
    where = f"{recorder.store.uri}/{file.key}"
    rows = shards.decode(recorder.store.get(file.key), where)
    return 1 + max(max(datums) for datums in rows["datums"].to_pylist())
