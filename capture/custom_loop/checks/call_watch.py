"""The loop's calls of its model in the newest forward pass, and what the loop makes of them.

The hooks on the model and its modules stay for the whole recording, because a check may be needed
for any pass: one that uses a parameter in a new way. The loss is noted operation by operation, and
only in steps for which a check is scheduled: otherwise the tape does not call back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from capture.custom_loop.checks.loss_log import LossLog
from capture.custom_loop.checks.model_calls import ModelCall
from capture.custom_loop.loop_tape import LoopTape
from capture.custom_loop.passes.forward_passes import ForwardPass
from capture.custom_loop.unseen import without_torch_functions


class CallWatch:
    """Watches the calls of a model; ``calls`` and ``log`` hold what a check needs."""

    def __init__(
        self,
        model: nn.Module,
        units: Mapping[str, nn.Parameter],
        tape: LoopTape,
        needs: Callable[[ModelCall], bool],
    ) -> None:
        """``needs`` says whether a check may need the outputs of a call, whose memory is kept."""
        self.model, self.units, self.tape, self.needs = model, units, tape, needs
        self.device = next(iter(units.values())).device.type
        self.depth = 0
        self.call: ModelCall | None = None
        self.calls: list[ModelCall] = []
        """Calls of the newest forward pass; several if the loop calls several modules."""
        self.forward: ForwardPass | None = None
        """The pass that they belong to."""
        self.windows: set[int] = set()
        """Lengths of the second axes of the pass's inputs."""
        self.left_out = False
        """Whether outputs of a call of this pass were not kept, as no check seemed to need them."""
        self.log = LossLog(self.device)
        self.has_log = False
        """Whether operations on the outputs are noted."""
        self.num_repeats = 0
        """Calls of modules that the loop calls, made again by checks."""
        self.called: set[str] = set()
        """Names of the modules that the loop has called."""

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

    def note_losses(self, noted: bool) -> None:
        """Note operations on the outputs from now on, or stop noting them."""
        self.has_log = noted
        self.tape.on_operation = self.note_operation if noted else None
        self.tape.on_backward = self.note_backward if noted else None

    def begin_pass(self, forward: ForwardPass | None) -> None:
        # They hold outputs, whose graph holds hooks that hold the calls, and the factors of the
        # step. Emptied, they are freed at once, and not when Python next looks for cycles.
        for call in self.calls:
            call.clear()
        self.log.clear()
        self.forward, self.calls, self.windows, self.left_out = forward, [], set(), False
        self.log = LossLog(self.device)

    # --- called by hooks and by the tape ----------------------------------------------------------

    def enter(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.tape.paused:  # the model is run again for a check
            self.num_repeats += name in self.called
            return
        self.depth += 1
        self.tape.is_inside = True
        if self.depth > 1 or not torch.is_grad_enabled():
            return
        inside_backward = torch._C._current_graph_task_id() != -1  # a checkpointed block, again
        if not inside_backward:
            with without_torch_functions():
                self.call = ModelCall.begin(name, module, args, kwargs, self.device)
                if self.has_log and self.forward is self.tape.passes.last:
                    self.log.add_inputs(self.call.inputs)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.tape.paused:
            return
        self.depth -= 1
        self.tape.is_inside = self.depth > 0
        if self.depth or self.call is None:
            return
        call, self.call = self.call, None
        forward = self.tape.passes.last
        if forward.uses:  # of an earlier pass: this call has used no unit
            return
        if forward is not self.forward:
            self.begin_pass(forward)
        with without_torch_functions():
            self.windows |= {x.shape[1] for x in call.inputs if x.dim() in (2, 3)}
            if not self.needs(call):
                self.left_out = True
                return
            call.end(output)
            self.calls.append(call)
            self.called.add(call.name)
            if self.has_log:
                self.log.add_outputs(call.outputs)

    def note_operation(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[Any], None] | None:
        """Note an operation of the loop; the tape calls this before it is made."""
        if not self.depth and self.log.outputs:
            return self.log.begin_operation(func, args, kwargs)
        return None

    def note_exchange(self, name: str, written: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Note that processes exchange tensors; see ``watching_exchanges``."""
        if self.has_log and not self.depth and not self.tape.paused:
            self.log.note_exchange(name, written, given)

    def note_backward(self, root: Tensor, gradient: Tensor | None) -> None:
        """Note that the loop calls ``root.backward(gradient)``."""
        self.log.roots.append((root, gradient))
