"""When the split is checked while a loop is recorded, and what a failed check says.

The first step is checked, steps drawn from the seed, and every step in which a parameter is used on
a number of rows that no check has seen. One datum is drawn each time. A failed check ends the
recording before the open segment is stored.

Drawn checks must cost at most 1 % of training. A check that calls the model once or twice again
fits into that at one step in ``EVERY``; one that must call it more often is drawn so much more
rarely. Calls are counted, and not timed, so that the same seed checks the same steps.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from capture.custom_loop.checks.call_watch import CallWatch
from capture.custom_loop.checks.custom_functions import watching_functions
from capture.custom_loop.checks.exchanges import exchange_error
from capture.custom_loop.checks.loss_check import exchange_in_loss, interaction
from capture.custom_loop.checks.loss_log import NotRepeatableError
from capture.custom_loop.checks.model_calls import ModelCall, WithoutDropout, nothing_changes
from capture.custom_loop.checks.output_gradients import deltas_again, direct_deltas
from capture.custom_loop.checks.split_check import check_split
from capture.custom_loop.checks.split_errors import loss_error, split_error
from capture.custom_loop.checks.unchecked import Unchecked
from capture.custom_loop.loop_tape import LoopTape
from capture.custom_loop.packing.documents import Documents
from capture.custom_loop.passes.forward_passes import ForwardPass
from capture.custom_loop.unseen import without_torch_functions
from capture.engine.split import is_drawn
from capture.gradients.parameter_use import ParameterUse

NO_CALL = "no call of the model led to the loss"
NOT_KEPT = "a parameter was used on a number of rows that was new, and outputs had not been kept"
NOT_FINITE = "the loss gradient was not finite"
CHANGED = "an input of the model was changed before the optimizer's step"
LOSS = "whether datums interact in the loss is unknown because of"
CHECKPOINTED = "dropout within checkpointed blocks, which run again in their backward pass"
OUTSIDE = "{} is used outside of the calls of the model"
COSTLY = "a check calls the model so often that it is made at fewer steps, for 1 % of the time"
MOST_TRIES = 10
"""Steps in a row in which a first check that was not possible is tried again."""
CHEAP_CALLS = 2
"""Repeated calls of the model, each at most a step's time, that one step in ``EVERY`` affords."""


class SplitGuard:
    """Decides when the split of a recorded loop is checked, and checks it."""

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
        self.watch = CallWatch(model, units, tape, self.needs)
        self.verified: set[tuple[object, ...]] = set()
        """Row counts of parameter uses that a check has found right."""
        self.known: set[object] = set()
        """Names and input shapes of calls that a check has found right."""
        self.unchecked = unchecked
        self.num_tries = 0
        """Checks in a row that were not possible."""
        self.failed = ""
        """Why the last one was not."""
        self.num_to_skip = 0
        """Steps that are drawn next, and are not checked because the last check cost too much."""
        self.schedule(True)

    def schedule(self, scheduled: bool) -> None:
        """Set whether the next step is checked, whatever rows it uses."""
        self.scheduled = scheduled
        self.watch.note_losses(scheduled)

    def needs(self, call: ModelCall) -> bool:
        """Return whether a check may need the outputs of a call, whose memory is then kept.

        It does not if no check is due at the step, and a call of these shapes has been checked.
        Where rows were selected, their number is known only after the call.
        """
        is_settled = all(row[-1] for row in self.verified) and self.tape.rows is None
        return self.scheduled or not is_settled or call.shapes not in self.known

    def is_due(self, passes: Sequence[ForwardPass]) -> bool:
        """Return whether ``check`` will run the model again, unless it cannot."""
        is_new = not self.rows_of(passes[-1]) <= self.verified
        return self.scheduled or (is_new and self.num_tries < MOST_TRIES)

    def rows_of(self, forward: ForwardPass) -> set[tuple[object, ...]]:
        """Return how each parameter use of a pass is split; see ``use_rows``."""
        is_packed = forward.documents is not None
        with without_torch_functions():
            uses = forward.uses.values()
            return {(is_packed, *use_rows(use, self.watch.windows)) for use in uses}

    def check(self, passes: Sequence[ForwardPass], step: int) -> None:
        """Check the newest pass of a step, if the step is drawn or uses rows in a new way.

        Raises ``SplitError`` if the captured gradient of a datum is not its own.
        """
        forward = passes[-1]
        rows = self.rows_of(forward)
        if self.is_due(passes):
            self.check_rows(forward, rows, step)
        elif not rows <= self.verified:  # tried in vain
            self.unchecked.add_step(self.failed)
        elif self.num_to_skip and is_drawn(self.seed, step):
            self.num_to_skip -= 1
            self.unchecked.add_step(COSTLY)
        self.watch.begin_pass(None)
        again = 0 < self.num_tries < MOST_TRIES
        self.schedule(again or (not self.num_to_skip and is_drawn(self.seed, step + 1)))

    def check_rows(self, forward: ForwardPass, rows: set[tuple[object, ...]], step: int) -> None:
        """Check a pass that is due; note why it could not be checked as a whole, if so."""
        num_datums = forward.num_datums()
        drawn = int(np.random.default_rng((self.seed, step)).integers(num_datums))
        # Rows that were selected may be as many as N datums would have, and right for some of
        # them by chance: then every datum is checked.
        slots = [drawn] if all(row[-1] for row in rows) else list(range(num_datums))
        self.watch.num_repeats = 0
        self.failed = self.check_pass(forward, slots, rows, step)
        repeats = self.watch.num_repeats / max(1, len(self.watch.calls))
        self.num_to_skip = max(0, math.ceil(repeats / CHEAP_CALLS) - 1)
        if self.failed:
            self.unchecked.add_step(self.failed)
            self.num_tries += 1
        elif self.scheduled:
            self.num_tries = 0

    def check_pass(
        self,
        forward: ForwardPass,
        slots: Sequence[int],
        rows: set[tuple[object, ...]],
        step: int,
    ) -> str:
        """Check a pass; return why it could not be checked as a whole, "" if it could.

        Raises ``SplitError`` if the split is wrong.
        """
        watch = self.watch
        calls = [call for call in watch.calls if call.deltas] if forward is watch.forward else []
        if not calls:
            return NOT_KEPT if watch.left_out else NO_CALL
        if self.scheduled and (name := exchange_in_loss(watch.log)):
            raise exchange_error(name, step)
        if not all(is_finite(delta) for call in calls for delta in call.deltas.values()):
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
                self.check_slots(calls, inside, slots, step, forward.documents)
            except CheckpointError:
                return CHECKPOINTED
            self.verified |= rows
            self.known |= {call.shapes for call in watch.calls}
            if not self.scheduled:
                return ""
            try:
                mixed = interaction(watch.log, calls, forward.num_datums())
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
        documents: Documents | None,
    ) -> None:
        """Compare datums with passes of their own; raises ``SplitError`` if they differ."""
        is_random = any(call.is_random for call in calls)
        with WithoutDropout() if is_random else nullcontext():
            if is_random:
                calls, uses = self.without_dropout(calls, uses[0].num_datums, documents)
            for slot in slots:
                if found := check_split(self.units, calls, uses, slot, documents):
                    follows = self.tape.rows is not None
                    raise split_error(
                        found, slot, step, self.model, uses, documents, follows_rows=follows
                    )

    def without_dropout(
        self, calls: Sequence[ModelCall], num_rows: int, documents: Documents | None
    ) -> tuple[list[ModelCall], list[ParameterUse]]:
        """Return calls and parameter uses of the batch without dropout.

        Any gradient at the outputs serves to compare batch and datum, so that of the real pass is
        kept, but where the module computes the loss from another output itself.
        """
        tape = LoopTape(self.units, self.model, fallback=self.tape.fallback)
        tape.is_inside = True
        tape.set_datums(np.arange(num_rows))
        again = []
        with tape, watching_functions(tape):
            for call in calls:
                tape.begin_forward(call.inputs, documents)
                outputs = call.run_again(lambda x: x)
                tape.end_forward()
                deltas = deltas_again(call, outputs)
                # A loss of the loop has no part in these δ where the module computes one.
                direct = {n: x * 0 for n, x in deltas.items() if x.dim() and call.has_loss}
                again.append(replace(call, outputs=outputs, deltas=deltas, direct=direct))
            tape.passes.last.uses.clear()  # the δ of a loss inside the module came by already
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
        forward = tape.passes.last
        uses = [use for _, use in sorted(forward.uses.items())]
        for use in uses:  # units that another use left to a module's rerun have parts of δ only
            use.roles = {n: role for n, role in use.roles.items() if n not in forward.unsplit}
        return again, uses


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
