"""When the split is checked while a loop is recorded, and what a failed check says.

The first step is checked, steps drawn from the seed, and every step in which a parameter is used on
a number of rows that no check has seen. One datum is drawn each time. A failed check ends the
recording before the open segment is stored.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capture.custom_loop.loop_tape import ForwardPass, LoopTape
from capture.custom_loop.loss_log import LossLog, interaction
from capture.custom_loop.model_calls import ModelCall, WithoutDropout, nothing_changes
from capture.custom_loop.split_check import Mismatch, check_split, last_outputs
from capture.errors import SplitError
from capture.gradients.parameter_use import ParameterUse

EVERY = 200
"""One step in so many is checked, on average. A check costs up to two steps: less than 1 %."""
LOG = logging.getLogger(__name__)
UNCHECKED = (
    "%s: the split by datum could not be checked in %d step(s): the inputs were changed before the "
    "optimizer's step, or no call of the model led to the loss"
)
REMEDY = (
    "Nothing of the open segment is stored. Leave the units concerned out, or see the page on "
    "custom training loops, section What is checked"
)


class SplitGuard:
    """Watches the loop's calls of the model and checks how gradients are split by datum."""

    def __init__(
        self, model: nn.Module, units: Mapping[str, nn.Parameter], tape: LoopTape, *, seed: int
    ) -> None:
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
        self.verified: set[object] = set()
        """Row counts of parameter uses that a check has found right."""
        self.num_unchecked = 0
        """Checks that could not be made."""
        self.scheduled = True
        tape.on_operation = self.note_operation
        self.log = LossLog()

    def hooks(self) -> Iterator[Any]:
        """Register hooks on the model and its modules; yields their handles."""
        names = dict(self.model.named_modules())
        if hasattr(self.model, "_orig_mod"):  # compiled: hooks inside would break the graph
            names = {"": self.model}
        for name, module in names.items():
            yield module.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True)
            yield module.register_forward_hook(self.leave, always_call=True)

    # --- what the loop does -----------------------------------------------------------------------

    def enter(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.tape.paused:  # the model is run again for a check
            return
        if self.tape.paused:  # the model is run again, for a check
            return
        self.depth += 1
        inside_backward = torch._C._current_graph_task_id() != -1  # a checkpointed block, again
        if self.depth == 1 and torch.is_grad_enabled() and not inside_backward:
            self.call = ModelCall.begin(name, module, args, kwargs, self.device)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.tape.paused:
            return
        if self.tape.paused:
            return
        self.depth -= 1
        if self.depth or self.call is None:
            return
        call, self.call = self.call, None
        forward = self.tape.passes[-1]
        if forward.uses:  # of an earlier pass: this call has used no unit
            return
        if forward is not self.forward:
            self.forward, self.calls, self.log = forward, [], LossLog()
        call.end(output)
        self.calls.append(call)
        if self.scheduled:
            self.log.add_outputs(call.outputs)

    def note_operation(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Note an operation of the loop; the tape calls this."""
        if self.scheduled and not self.depth and self.log.outputs:
            self.log.add_operation(func, args, kwargs, out)

    def warn_of_unchecked(self, uri: str) -> None:
        """Say at the end of a recording in how many steps a check was due and not possible."""
        if self.num_unchecked:
            LOG.warning(UNCHECKED, uri, self.num_unchecked)

    # --- checks -----------------------------------------------------------------------------------

    def check(self, passes: Sequence[ForwardPass], step: int) -> None:
        """Check the newest pass of a step, if the step is drawn or uses rows in a new way.

        Raises ``SplitError`` if the captured gradient of a datum is not its own.
        """
        forward = passes[-1]
        windows = {x.shape[1] for call in self.calls for x in call.inputs if x.dim() in (2, 3)}
        rows = {use_rows(use, windows) for use in forward.uses.values()}
        if self.scheduled or not rows <= self.verified:
            num_datums = forward.num_datums()
            drawn = int(np.random.default_rng((self.seed, step)).integers(num_datums))
            # Rows that were selected may be as many as N datums would have, and right for some of
            # them by chance: then every datum is checked.
            slots = [drawn] if all(row[-1] for row in rows) else list(range(num_datums))
            if forward is self.forward and self.check_pass(forward, slots, step):
                self.verified |= rows
            else:
                self.num_unchecked += 1
        self.forward, self.calls, self.log = None, [], LossLog()
        self.scheduled = bool(np.random.default_rng((self.seed, step, 1)).integers(EVERY) == 0)

    def check_pass(self, forward: ForwardPass, slots: Sequence[int], step: int) -> bool:
        """Return whether the pass could be checked; raises ``SplitError`` if the split is wrong."""
        calls = [call for call in self.calls if call.deltas]
        deltas = [delta for call in calls for delta in call.deltas.values()]
        if not all(call.is_intact for call in calls) or not all(map(is_finite, deltas)):
            return False
        if not calls:
            return False
        uses = [use for _, use in sorted(forward.uses.items())]
        self.tape.paused = True
        try:
            with nothing_changes(self.model):
                with WithoutDropout() if any(call.is_random for call in calls) else nullcontext():
                    if any(call.is_random for call in calls):
                        calls, uses = self.without_dropout(calls, uses[0].num_datums)
                    for slot in slots:
                        if found := check_split(self.units, calls, uses, slot):
                            raise split_error(found, slot, step, self.model, uses)
                mixed = interaction(self.log, self.calls, forward.loss_tensors, slots[0])
        finally:
            self.tape.paused = False
        if mixed:
            raise loss_error(mixed, slots[0], step)
        return True

    def without_dropout(
        self, calls: Sequence[ModelCall], num_datums: int
    ) -> tuple[list[ModelCall], list[ParameterUse]]:
        """Return calls and parameter uses of the batch without dropout.

        Any gradient at the outputs serves to compare batch and datum, so that of the real pass is
        kept, but where the module computes the loss from another output itself.
        """
        tape = LoopTape(self.units, self.model)
        tape.set_datums(np.arange(num_datums))
        again = []
        with tape:
            for call in calls:
                tape.begin_forward(call.inputs)
                outputs = call.run_again(lambda x: x)
                tape.end_forward()
                deltas = deltas_again(call, outputs)
                again.append(replace(call, outputs=outputs, deltas=deltas))
            tape.passes[-1].uses.clear()  # the δ of a loss inside the module came by already
            for call in again:
                numbers = [n for n, delta in call.deltas.items() if delta.dim()]
                numbers = numbers or list(call.deltas)
                torch.autograd.grad(
                    [call.outputs[number] for number in numbers],
                    list(self.units.values()),
                    [call.deltas[number] for number in numbers],
                    allow_unused=True,
                )
        return again, [use for _, use in sorted(tape.passes[-1].uses.items())]


def deltas_again(call: ModelCall, outputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return gradients at the last outputs of a call that was run again, and at its losses."""
    last = last_outputs(outputs, [n for n, delta in call.deltas.items() if delta.dim()])
    losses = {n: delta for n, delta in call.deltas.items() if not delta.dim()}
    if not losses or not last:
        return {n: call.deltas[n] for n in last} | losses
    grads = torch.autograd.grad(
        [outputs[n] for n in losses],
        [outputs[n] for n in last],
        list(losses.values()),
        retain_graph=True,
        allow_unused=True,
    )
    return {n: x for n, x in zip(last, grads, strict=True) if x is not None} | losses


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


def split_error(
    found: Mismatch, slot: int, step: int, model: nn.Module, uses: Sequence[ParameterUse]
) -> SplitError:
    shapes = {name: use.shape for use in uses for name in use.roles}
    at = f", used on {tuple(shapes[found.what])}" if found.what in shapes else ""
    cause = normalizing_module(model)
    if found.difference >= 0:
        problem = (
            f"{found.what}{at}: the gradient captured for datum {slot} of the batch differs by "
            f"{found.difference:.0%} from that of a pass of this datum alone"
        )
        cause = (
            cause or "the first axis of its input is not the datum, or datums interact in the model"
        )
    else:
        problem = (
            f"datum {slot} of the batch cannot be compared with a pass of this datum alone, whose "
            "outputs are not the batch's rows"
        )
        cause = cause or "the model selects rows, or cannot take one datum"
    return SplitError(f"step {step}", f"{problem}; {cause}", REMEDY)


def normalizing_module(model: nn.Module) -> str:
    """Return a clause that names a module with which datums interact, if there is one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            return f"{name} ({type(module).__name__}) normalizes over the batch"
    return ""


def loss_error(difference: float, slot: int, step: int) -> SplitError:
    problem = (
        f"datums interact in the loss: its gradient at the outputs of datum {slot} of the batch "
        f"changes by {difference:.0%} with the outputs of other datums"
    )
    return SplitError(f"step {step}", problem, REMEDY)
