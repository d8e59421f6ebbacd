"""A tape for custom training loops, which stays active across steps.

A parameter use is recorded when its δ arrives, so a forward pass without backward pass (an
evaluation) leaves nothing behind, not even its activations. ``capture.custom_loop.passes`` keeps
the passes of a step.

Shapes: N datum, T position, as in ``capture.gradients.factors``.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capture.custom_loop.counting import Counting
from capture.custom_loop.model_inputs import count_rows, loop_window_axis, require_rows
from capture.custom_loop.packing.documents import Documents
from capture.custom_loop.passes.forward_passes import LEAVE_OUT, ForwardPass, StepPasses
from capture.custom_loop.passes.gradient_changes import WATCHED
from capture.custom_loop.passes.open_passes import OpenPasses
from capture.custom_loop.rerun.frames import ModuleFrame, ModuleFrames
from capture.custom_loop.rerun.module_uses import OutputUse, split_modules
from capture.custom_loop.rerun.row_axes import RowAxes
from capture.errors import ConfigError
from capture.gradients.output_hooks import on_delta
from capture.gradients.parameter_use import ParameterUse
from capture.gradients.shared_outputs import Receive
from capture.gradients.tape import Tape
from capture.gradients.torch_functions import TorchCall, flatten_arguments, function_name
from capture.gradients.vmap_fallback import Fallback, unsplit_error
from capture.gradients.window_axis import Axis, only_axis_of_length

UNSCALE = torch._amp_foreach_non_finite_check_and_unscale_  # pyright: ignore
"""What a ``GradScaler`` divides gradients with."""
ONE_ROW = "on one row that does not meet the batch as a row for all datums does (a chosen one?)"
AfterOperation = Callable[[Any], None]
OnOperation = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], AfterOperation | None]
"""Called before a torch function of the loop; what it returns is called with the result."""


class LoopTape(Tape):
    """Record the factors of the given parameters while the context is active."""

    def __init__(
        self,
        units: Mapping[str, nn.Parameter],
        model: nn.Module,
        window: int | None = None,
        *,
        fallback: Fallback = "none",
    ) -> None:
        """Watch the parameters ``units`` of a model.

        ``window``: tokens of a datum, if datums are described; ``fallback``: as in ``record``.
        """
        super().__init__(units)
        self.model, self.window = model, window
        self.frames = ModuleFrames(model, units, outward=fallback == "vmap")
        self.fallback: Fallback = fallback
        self.rows = RowAxes() if fallback == "vmap" else None
        """The axis of datums in each activation; None where a call's rows count as datums."""
        self.frames.rows = self.rows
        self.frames.finish, self.frames.give_up = self.watch_module, self.note_unsplit
        self.frames.num_datums = lambda: (self.knows_num_datums and self.num_datums) or 0
        self.frames.is_paused = lambda: self.paused
        self.units_by_name = dict(units)
        self.unit_names = dict(self.names)
        """Names by id of the units alone; ``names`` also gets tensors derived from them."""
        self.passes = OpenPasses(units)
        self.numbers = itertools.count()
        self.next_datum_N: np.ndarray | None = None
        """Datums of the next forward pass, if the loop gave them."""
        self.given_documents: Documents | None = None
        """Documents of the next forward pass, if the loop gave them."""
        self.documents: Documents | None = None
        """Documents in the rows of the calls made now; None if rows are datums."""
        self.knows_num_datums = False
        """Whether ``num_datums`` holds for calls made now: in the model's forward, or once the loop
        has given the datums of the next pass."""
        self.inputs: list[Tensor] = []
        """Inputs of the forward pass that is running."""
        self.counting = Counting(model)
        self.is_inside = False
        """Whether a module of the model with units is running."""
        self.paused = False
        """Whether calls are let through unseen, because the model is run again for a check."""
        self.on_operation: OnOperation | None = None
        self.on_backward: Callable[[Tensor, Tensor | None], None] | None = None
        """Called with the tensor and the gradient that ``backward`` is called with."""
        self.last_use: ParameterUse | None = None
        """The parameter use that was recorded last."""
        self.replaced_datums = False
        """Whether the loop gave the datums of the next pass twice, and not the same."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func is torch.Tensor.backward:
            return self.run_backward(*args, **kwargs)
        if func is UNSCALE:
            self.passes.note_unscaling(*args)
        if func in WATCHED:
            self.passes.changes.note(func, args, kwargs)
        after = self.on_operation and self.on_operation(func, args, kwargs)
        if func is torch.arange or not torch.is_grad_enabled():
            out = func(*args, **kwargs)
        else:
            out = super().__torch_function__(func, types, args, kwargs)
        if after is not None:
            after(out)
        if self.rows is not None:
            self.rows.note(func, args, kwargs, out)
        if self.inputs:
            self.counting.note(func, (*args, *kwargs.values()), out)
        return out

    def run_backward(
        self, root: Tensor, gradient: Tensor | None = None, *args: Any, **kw: Any
    ) -> None:
        """Run ``root.backward(…)``; note the loss if it is one scalar."""
        if self.on_backward:
            self.on_backward(root, gradient)
        if root.numel() != 1:
            root.backward(gradient, *args, **kw)
            return
        self.passes.last.losses.append(root.detach())
        with self.passes.from_one_loss():
            root.backward(gradient, *args, **kw)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Let calls within the block through unseen: they are the recorder's, not the loop's."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def set_datums(self, datum_N: np.ndarray, documents: Documents | None = None) -> None:
        """Set the datums of the next forward pass, by slot; ``documents``: if rows hold several."""
        before = self.next_datum_N
        self.replaced_datums = before is not None and not np.array_equal(before, datum_N)
        self.next_datum_N, self.given_documents, self.documents = datum_N, documents, documents
        self.num_datums = len(datum_N) if documents is None else documents.num_rows
        self.knows_num_datums = True

    @property
    def known_datum_N(self) -> np.ndarray | None:
        """Datums of the calls made now, if the loop gave them."""
        last = self.passes.last
        return last.datum_N if self.next_datum_N is None and not last.uses else self.next_datum_N

    def begin_forward(self, inputs: Sequence[Tensor], documents: Documents | None = None) -> None:
        """Note that the model's forward begins; ``documents``: those in its rows, if any.

        Raises ``UnitError`` if the inputs do not have as many rows as datums were given.
        """
        if not torch.is_grad_enabled() or not inputs:
            return
        if self.replaced_datums and self.next_datum_N is None:
            problem = "was called twice before the forward passes, with other datums"
            raise ConfigError("recorder.datums", problem, "Call it before each forward pass")
        self.documents = documents
        if documents is not None:
            N = documents.num_rows
        elif self.next_datum_N is None:
            N = count_rows(inputs)
        else:
            N = len(self.next_datum_N)
            require_rows(inputs, N)
        self.inputs, self.num_datums, self.knows_num_datums = list(inputs), N, True
        if self.rows is not None:
            self.rows.begin(inputs, N)

    def end_forward(self) -> None:
        """Note that the model's forward is over."""
        self.inputs, self.knows_num_datums = [], False
        self.counting.clear()

    def find_window(self, units: Sequence[str], middle: Sequence[int]) -> Axis:
        """Return the axis of the window in a call; see ``loop_window_axis``."""
        if self.documents is not None:
            return only_axis_of_length(middle, {self.documents.width})
        return loop_window_axis(middle, self.inputs, self.window)

    def run_attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().run_attention(args, kwargs)
        if self.rows is not None:
            self.rows.set(out[0], 1)
        return out

    def record_call(
        self,
        func: Callable[..., Any],
        found: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> Any:
        """Record a call, or leave it to a module around it if its rows may not be the datums."""
        if self.rows is not None and isinstance(out, Tensor) and self.attention_datums is None:
            self.rows.note(func, args, kwargs, out)
            given = (*args, *kwargs.values()) if self.inputs else ()
            activations = [x for x in given if self.is_activation(x)]
            if self.rows.are_others(out, activations) and (self.num_datums or 0) != 1:
                use = f"{function_name(func)} on rows that are not known to be the datums"
                self.mark_unsplit(dict.fromkeys(found, use), out)
                return out
        return super().record_call(func, found, args, kwargs, out)

    def is_activation(self, x: Any) -> bool:
        """Return whether an argument is neither a unit, nor one row that all datums share."""
        return isinstance(x, Tensor) and id(x) not in self.names and x not in self.shared

    def record_use(
        self, func: Callable[..., Any], found: dict[str, Tensor], call: TorchCall, out: Tensor
    ) -> Tensor:
        """Record a call; one that all datums share must get a δ of each of them."""
        super().record_use(func, found, call, out)
        use = self.last_use
        if use is not None and use.is_shared:
            shared = self.open_pass().shared
            out.register_hook(lambda delta: shared.append(use))
        return out

    def is_shared(self, call: TorchCall, out: Tensor) -> bool:
        """Return whether all datums share the output of a call, as with position embeddings.

        Raises ``NotSplittable`` for an embedding of 0, 1, 2, … that may be of positions or of
        datums.
        """
        if call.a is not None and self.knows_num_datums and call.a in self.counting:
            return True
        if not call.shared or call.a is None:
            return self.knows_num_datums and out.shape[0] == 1
        N = self.num_datums if self.knows_num_datums else None
        return self.counting.are_positions(call.a, self.inputs, N)

    def watch_delta(self, use: ParameterUse, out: Tensor) -> None:
        """Add the use to the open pass as soon as its δ arrives."""
        on_delta(out, self.receiver(use))

    def receiver(self, use: ParameterUse) -> Receive:
        """Add the use to the open pass as soon as a part of its δ arrives."""
        forward, number = self.open_pass(), next(self.numbers)
        self.last_use = use
        if self.is_inside:
            forward.inside.add(number)
        self.frames.note(number)
        return partial(self.keep_delta, forward, number, use)

    def keep_delta(
        self, forward: ForwardPass, number: int, use: ParameterUse, delta: Tensor
    ) -> None:
        """Keep δ, and drop earlier passes whose gradients have been discarded."""
        if not forward.uses:
            self.passes.begin_backward(forward)
        forward.add_delta(number, use, delta)

    def watch_module(self, frame: ModuleFrame, outputs: list[tuple[str, Tensor]]) -> None:
        """Watch the δ of a module's outputs, with which it is run again for each datum."""
        frame.outputs = [(place, out.detach()) for place, out in outputs]
        for number, (_, out) in enumerate(outputs):
            on_delta(out, self.receiver(OutputUse.of(frame, number, out)))

    def mark_unsplit(self, unsplit: dict[str, str], out: Any) -> None:
        """Leave units without factors to their module, if it can be run again."""
        if not self.frames.flag(unsplit):
            self.note_unsplit(unsplit, out)

    def note_unsplit(self, unsplit: dict[str, str], out: Any) -> None:
        """Note units that cannot be captured, if a backward pass reaches the output."""
        reached = self.open_pass().unsplit
        for tensor in flatten_arguments((out,)):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda delta: reached.update(unsplit))

    def open_pass(self) -> ForwardPass:
        """Return the pass of a forward call, with the datums that the loop gave for it."""
        found = self.passes.of(self.next_datum_N, self.documents)
        self.next_datum_N = None
        return found

    def take_passes(self) -> StepPasses:
        """Return the passes since the last update, and start with an empty one.

        Raises ``UnitError`` for units that are used in a way that cannot be captured.
        """
        for each in self.passes.passes:
            each.unsplit |= each.without_rows(ONE_ROW)
        found = self.passes.used()
        split_modules(found, self.units_by_name, self.numbers)
        if unsplit := {unit: use for each in found for unit, use in each.unsplit.items()}:
            tried = self.frames.outward or any(each.has_inseparable for each in found)
            in_vain = tried or not self.frames.enabled
            remedy = LEAVE_OUT if in_vain else f'{LEAVE_OUT}, or pass fallback="vmap"'
            raise unsplit_error(self.model, unsplit, remedy)
        taken = self.passes.take(found)
        self.knows_num_datums, self.documents, self.given_documents = False, None, None
        self.replaced_datums, self.last_use = False, None
        self.names = dict(self.unit_names)
        self.derived.clear()
        self.parts.clear()
        self.roundings.clear()
        self.shared.clear()
        return taken
