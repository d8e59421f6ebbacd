"""When the split is checked while a loop is recorded, and what a failed check says.

The first step is checked, steps drawn from the seed, and every step in which a parameter is used on
a number of rows that no check has seen. One datum is drawn each time. A failed check ends the
recording before the open segment is stored.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from capture.custom_loop.checks.custom_functions import watching_functions
from capture.custom_loop.checks.exchanges import exchange_error
from capture.custom_loop.checks.loss_check import exchange_in_loss, interaction
from capture.custom_loop.checks.loss_log import LossLog, NotRepeatableError
from capture.custom_loop.checks.model_calls import ModelCall, WithoutDropout, nothing_changes
from capture.custom_loop.checks.output_gradients import deltas_again, direct_deltas
from capture.custom_loop.checks.split_check import check_split
from capture.custom_loop.checks.split_errors import loss_error, split_error
from capture.custom_loop.checks.unchecked import Unchecked
from capture.custom_loop.loop_tape import ForwardPass, LoopTape
from capture.custom_loop.unseen import without_torch_functions
from capture.engine.split import is_drawn
from capture.gradients.parameter_use import ParameterUse

NO_CALL = "no call of the model led to the loss"
NOT_FINITE = "the loss gradient was not finite"
CHANGED = "an input of the model was changed before the optimizer's step"
LOSS = "whether datums interact in the loss is unknown because of"
CHECKPOINTED = "dropout within checkpointed blocks, which run again in their backward pass"
OUTSIDE = "{} is used outside of the calls of the model"
MOST_TRIES = 10
"""Steps in a row in which a check that was not possible is tried again."""


class SplitGuard:
    """Watches the loop's calls of the model and checks how gradients are split by datum."""

    def __init__(
        self,
        model: nn.Module,
        units: Mapping[str, nn.Parameter],
        tape: LoopTape,
        unchecked: Unchecked,
        *,
        seed: int,
    ) -> None:
        """``unchecked`` takes the checks that are not possible."""
        self.model = model
        self.units = units
        self.tape = tape
        self.seed = seed
        self.device = next(iter(units.values())).device.type
        self.depth = 0
        self.call: ModelCall | None = None
        self.calls: list[ModelCall] = []
        """Calls of the newest forward pass; several if the loop calls several modules."""
        self.forward: ForwardPass | None = None
        """The pass that they belong to."""
        self.windows: set[int] = set()
        """Lengths of the second axes of the pass's inputs."""
        self.verified: set[tuple[object, ...]] = set()
        """Row counts of parameter uses that a check has found right."""
        self.known: set[object] = set()
        """Names and input shapes of calls that a check has found right."""
        self.unchecked = unchecked
        self.scheduled = True
        self.num_tries = 0
        """Checks in a row that were not possible."""
        tape.on_operation = self.note_operation
        tape.on_backward = self.note_backward
        self.log = LossLog(self.device)

    def hooks(self) -> Iterator[Any]:
        """Register hooks on the model and its modules with units; yields their handles.

        Modules without units (a loss function) count as operations of the loop.
        """
        units = {id(unit) for unit in self.units.values()}
        for name, module in self.model.named_modules():
            if units.isdisjoint(map(id, module.parameters())):
                continue
            yield module.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True)
            yield module.register_forward_hook(self.leave, always_call=True)

    # --- what the loop does -----------------------------------------------------------------------

    def enter(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.tape.paused:  # the model is run again for a check
            return
        self.depth += 1
        self.tape.is_inside = True
        if self.depth > 1 or not torch.is_grad_enabled():
            return
        inside_backward = torch._C._current_graph_task_id() != -1  # a checkpointed block, again
        if not inside_backward:
            with without_torch_functions():
                self.call = ModelCall.begin(name, module, args, kwargs, self.device)
                if self.scheduled and self.forward is self.tape.passes[-1]:
                    self.log.add_inputs(self.call.inputs)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.tape.paused:
            return
        self.depth -= 1
        self.tape.is_inside = self.depth > 0
        if self.depth or self.call is None:
            return
        call, self.call = self.call, None
        forward = self.tape.passes[-1]
        if forward.uses:  # of an earlier pass: this call has used no unit
            return
        if forward is not self.forward:
            self.begin_pass(forward)
        with without_torch_functions():
            self.windows |= {x.shape[1] for x in call.inputs if x.dim() in (2, 3)}
            if not self.needs(call):
                return
            call.end(output)
            self.calls.append(call)
            if self.scheduled:
                self.log.add_outputs(call.outputs)

    def begin_pass(self, forward: ForwardPass | None) -> None:
        # They hold outputs, whose graph holds hooks that hold the calls, and the factors of the
        # step. Emptied, they are freed at once, and not when Python next looks for cycles.
        for call in self.calls:
            call.clear()
        self.log.clear()
        self.forward, self.calls, self.windows = forward, [], set()
        self.log = LossLog(self.device)

    def needs(self, call: ModelCall) -> bool:
        """Return whether a check may need the outputs of a call, whose memory is then kept.

        It does not if no check is due at the step, and a call of these shapes has been checked.
        Where rows were selected, their number is known only after the call.
        """
        is_settled = all(row[-1] for row in self.verified)
        return self.scheduled or not is_settled or call.shapes not in self.known

    def note_operation(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[Any], None] | None:
        """Note an operation of the loop; the tape calls this before it is made."""
        if self.scheduled and not self.depth and self.log.outputs:
            return self.log.begin_operation(func, args, kwargs)
        return None

    def note_exchange(self, name: str, written: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Note that processes exchange tensors; see ``watching_exchanges``."""
        if self.scheduled and not self.depth and not self.tape.paused:
            self.log.note_exchange(name, written, given)

    def note_backward(self, root: Tensor, gradient: Tensor | None) -> None:
        """Note that the loop calls ``root.backward(gradient)``."""
        if self.scheduled:
            self.log.roots.append((root, gradient))

    # --- checks -----------------------------------------------------------------------------------

    def is_due(self, passes: Sequence[ForwardPass]) -> bool:
        """Return whether ``check`` will run the model again, unless it cannot."""
        return self.scheduled or not self.rows_of(passes[-1]) <= self.verified

    def rows_of(self, forward: ForwardPass) -> set[tuple[object, ...]]:
        """Return how each parameter use of a pass is split; see ``use_rows``."""
        with without_torch_functions():
            return {use_rows(use, self.windows) for use in forward.uses.values()}

    def check(self, passes: Sequence[ForwardPass], step: int) -> None:
        """Check the newest pass of a step, if the step is drawn or uses rows in a new way.

        Raises ``SplitError`` if the captured gradient of a datum is not its own.
        """
        forward = passes[-1]
        rows = self.rows_of(forward)
        failed = ""
        if self.scheduled or not rows <= self.verified:
            num_datums = forward.num_datums()
            drawn = int(np.random.default_rng((self.seed, step)).integers(num_datums))
            # Rows that were selected may be as many as N datums would have, and right for some of
            # them by chance: then every datum is checked.
            slots = [drawn] if all(row[-1] for row in rows) else list(range(num_datums))
            failed = self.check_pass(forward, slots, step)
            if failed:
                self.unchecked.add_step(failed)
            else:
                self.verified |= rows
                self.known |= {call.shapes for call in self.calls}
        self.num_tries = self.num_tries + 1 if failed else 0
        self.begin_pass(None)
        again = 0 < self.num_tries < MOST_TRIES
        self.scheduled = again or is_drawn(self.seed, step + 1)

    def check_pass(self, forward: ForwardPass, slots: Sequence[int], step: int) -> str:
        """Check a pass; return why it could not be checked as a whole, "" if it could.

        Raises ``SplitError`` if the split is wrong.
        """
        calls = [call for call in self.calls if call.deltas] if forward is self.forward else []
        deltas = [delta for call in calls for delta in call.deltas.values()]
        if not calls:
            return NO_CALL
        if self.scheduled and (name := exchange_in_loss(self.log)):
            raise exchange_error(name, step)
        if not all(map(is_finite, deltas)):
            return NOT_FINITE
        if not all(call.is_intact for call in calls):
            return CHANGED
        inside = [use for number, use in sorted(forward.uses.items()) if number in forward.inside]
        if not inside:
            return NO_CALL
        with self.tape.pausing(), nothing_changes(self.model):
            for call in calls:
                call.direct = direct_deltas(call)
            try:
                self.check_slots(calls, inside, slots, step)
            except CheckpointError:
                return CHECKPOINTED
            if not self.scheduled:
                return ""
            try:
                mixed = interaction(self.log, calls, slots[0], inside[0].num_datums)
            except NotRepeatableError as reason:
                return f"{LOSS} {reason}"
        if mixed:
            raise loss_error(mixed, slots[0], step)
        beside = {
            name for n, use in forward.uses.items() if n not in forward.inside for name in use.roles
        }
        return OUTSIDE.format(", ".join(sorted(beside))) if beside else ""

    def check_slots(
        self,
        calls: list[ModelCall],
        uses: list[ParameterUse],
        slots: Sequence[int],
        step: int,
    ) -> None:
        """Compare datums with passes of their own; raises ``SplitError`` if they differ."""
        is_random = any(call.is_random for call in calls)
        with WithoutDropout() if is_random else nullcontext():
            if is_random:
                calls, uses = self.without_dropout(calls, uses[0].num_datums)
            for slot in slots:
                if found := check_split(self.units, calls, uses, slot):
                    raise split_error(found, slot, step, self.model, uses)

    def without_dropout(
        self, calls: Sequence[ModelCall], num_datums: int
    ) -> tuple[list[ModelCall], list[ParameterUse]]:
        """Return calls and parameter uses of the batch without dropout.

        Any gradient at the outputs serves to compare batch and datum, so that of the real pass is
        kept, but where the module computes the loss from another output itself.
        """
        tape = LoopTape(self.units, self.model)
        tape.is_inside = True
        tape.set_datums(np.arange(num_datums))
        again = []
        with tape, watching_functions(tape):
            for call in calls:
                tape.begin_forward(call.inputs)
                outputs = call.run_again(lambda x: x)
                tape.end_forward()
                deltas = deltas_again(call, outputs)
                # A loss of the loop has no part in these δ where the module computes one.
                direct = {n: x * 0 for n, x in deltas.items() if x.dim() and call.has_loss}
                again.append(replace(call, outputs=outputs, deltas=deltas, direct=direct))
            tape.passes[-1].uses.clear()  # the δ of a loss inside the module came by already
            for call in again:
                # δ at other outputs came from the losses of the module, if it computes any.
                numbers = [n for n, delta in call.deltas.items() if not delta.dim()]
                numbers = numbers or list(call.deltas)
                torch.autograd.grad(
                    [call.outputs[number] for number in numbers],
                    list(self.units.values()),
                    [call.deltas[number] for number in numbers],
                    allow_unused=True,
                )
        return again, [use for _, use in sorted(tape.passes[-1].uses.items())]


def is_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def use_rows(use: ParameterUse, windows: Collection[int]) -> tuple[object, ...]:
    """Return how a use is split: its function, its number of axes, rows per datum, their kind.

    The last is true where the number of rows cannot be right by chance: one a datum, or one a
    datum and position of its window. Selected rows are at most as many as the positions, so that
    many of them are all of them.
    """
    per_datum = use.first_axis / use.num_datums
    if per_datum in (1, 1 / use.num_datums) or per_datum in windows:
        return use.func, len(use.shape), True
    return use.func, len(use.shape), per_datum, False
