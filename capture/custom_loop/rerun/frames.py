"""Calls of modules while they run, and those that must be run again for each datum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capture.custom_loop.checks.autocast_state import AutocastState
from capture.custom_loop.rerun.batch_axis import batch_axis, have_rows, leaves_of
from capture.custom_loop.rerun.row_axes import RowAxes
from capture.custom_loop.unseen import without_torch_functions

SPLITTABLE = (nn.Linear, nn.Embedding, nn.LayerNorm)
"""Modules that are split as they are; most of a model, so that they get no hooks."""


@dataclass(eq=False)
class ModuleFrame:
    """One call of a module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: dict[int, int]
    """Versions of the tensors among the arguments, by their id."""
    autocast: AutocastState
    num_datums: int
    """0 if it is not known."""
    unsplit: dict[str, str] = field(default_factory=dict)
    """Units that the call uses in a way that cannot be split → the function that uses them."""
    numbers: list[int] = field(default_factory=list)
    """Numbers of the parameter uses within the call."""
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    """Outputs with a gradient, by their place, detached."""
    deltas: dict[int, Tensor] = field(default_factory=dict)
    """Loss gradient at outputs, by their number."""

    @classmethod
    def of(
        cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], num_datums: int
    ) -> "ModuleFrame":
        with without_torch_functions():
            tensors = [x for _, x in leaves_of((args, kwargs)) if isinstance(x, Tensor)]
            device = next((x.device.type for x in tensors), "cpu")
            versions = {id(x): x._version for x in tensors if not x.is_inference()}
        return cls(module, args, kwargs, versions, AutocastState.now(device), num_datums)


class ModuleFrames:
    """The modules of a model that are running, innermost last; None for a call that is unseen."""

    def __init__(
        self, model: nn.Module, units: Mapping[str, nn.Parameter], *, outward: bool
    ) -> None:
        """``outward``: whether a module may be run again for parameters that are not its own."""
        self.model, self.outward = model, outward
        self.names = {id(parameter): name for name, parameter in units.items()}
        self.rows: RowAxes | None = None
        """The axis of datums in each activation, if it is followed."""
        self.enabled = True
        """Whether modules may run again at all."""
        self.running: list[tuple[nn.Module, ModuleFrame | None]] = []
        self.watched: dict[int, list[RemovableHandle]] = {}
        """Hooks by the id of their module."""
        self.finish: Callable[[ModuleFrame, list[tuple[str, Tensor]]], None] = ignore
        """Called with a call that must be run again, and its outputs with a gradient."""
        self.give_up: Callable[[dict[str, str], Any], None] = ignore
        """Called with units that no module's call can split, and the outputs that need them."""
        self.num_datums: Callable[[], int] = lambda: 0
        """Returns the number of datums, 0 if it is not known."""
        self.is_paused: Callable[[], bool] = lambda: False

    def hooks(self) -> list[RemovableHandle]:
        """Register hooks of the modules that may have to run again.

        A module whose own units were split in a call of it is not watched further.
        """
        for module in self.model.modules() if self.enabled else ():
            if type(module) in SPLITTABLE and not self.outward:
                continue
            if self.outward or self.own_units(module):
                self.watched[id(module)] = [
                    module.register_forward_pre_hook(self.begin, with_kwargs=True),
                    module.register_forward_hook(self.end, always_call=True),
                ]
        return [handle for pair in self.watched.values() for handle in pair]

    def own_units(self, module: nn.Module) -> set[str]:
        own = module._parameters.values()
        return {self.names[id(p)] for p in own if p is not None and id(p) in self.names}

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = not self.is_paused() and torch.is_grad_enabled()
        frame = ModuleFrame.of(module, args, kwargs, self.num_datums()) if seen else None
        if frame and frame.num_datums and self.rows is not None and not self.running:
            self.rows.begin([x for x in args if isinstance(x, Tensor)], frame.num_datums)
        self.running.append((module, frame))

    def end(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        while self.running:  # calls that an error has ended are still there
            running, frame = self.running.pop()
            if running is module:
                if frame is not None:
                    self.settle(frame, out)
                return

    def settle(self, frame: ModuleFrame, out: Any) -> None:
        """Run a call again later, or leave its units to the call around it."""
        if not frame.unsplit:
            if frame.numbers and not self.outward:
                for handle in self.watched.pop(id(frame.module), ()):
                    handle.remove()
            return
        with without_torch_functions():
            outputs = [
                (place, x)
                for place, x in leaves_of(out)
                if isinstance(x, Tensor) and x.requires_grad
            ]
            inputs = leaves_of(frame.args) + leaves_of(frame.kwargs)
            N, module = frame.num_datums, frame.module
            suits = bool(N) and (
                have_rows(module, leaves_of(out), N, is_input=False)
                and have_rows(module, given(inputs), N, is_input=True)
                and self.fit(module, inputs, is_input=True)
                and (not self.running or self.fit_again(module, inputs, outputs))
            )
        if suits:
            self.finish(frame, outputs)
        elif not self.flag(frame.unsplit):
            self.give_up(frame.unsplit, [x for _, x in outputs])

    def fit(self, module: nn.Module, leaves: Sequence[tuple[str, Any]], *, is_input: bool) -> bool:
        """Return whether the datums are where the module has them, as far as is known."""
        if self.rows is None:
            return True
        found = ((place, x, self.rows.of(x)) for place, x in leaves if isinstance(x, Tensor))
        return all(
            axis in (None, batch_axis(module, place, is_input=is_input)) for place, _, axis in found
        )

    def fit_again(
        self,
        module: nn.Module,
        inputs: Sequence[tuple[str, Any]],
        outputs: Sequence[tuple[str, Tensor]],
    ) -> bool:
        """Return whether the datums may be where the module has them in its outputs.

        A module may sort rows and put them back, which is compared with each datum alone when it
        runs again. It returns as many rows as it was given, then.
        """
        if self.rows is None or self.fit(module, outputs, is_input=False):
            return True
        sizes = {len(x) for _, x in inputs if isinstance(x, Tensor) and self.rows.of(x) == 0}
        if not all(x.dim() and len(x) in sizes for _, x in outputs):
            return False
        self.rows.set([x for _, x in outputs], 0)
        return True

    def flag(self, unsplit: dict[str, str]) -> bool:
        """Leave units to the innermost running call that may be run again; False if none may."""
        frames = [frame for _, frame in self.running if frame is not None]
        for frame in reversed(frames):
            if self.outward or unsplit.keys() <= self.own_units(frame.module):
                frame.unsplit |= unsplit
                return True
        return False

    def note(self, number: int) -> None:
        """Note the number of a parameter use within the running calls."""
        for _, frame in self.running:
            if frame is not None:
                frame.numbers.append(number)


def given(inputs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return inputs; where none has a gradient (tokens, images), as if all of numbers had one."""
    tensors = [(place, x) for place, x in inputs if isinstance(x, Tensor)]
    if any(x.requires_grad for _, x in tensors):
        return tensors
    return [(place, x.detach().float().requires_grad_()) for place, x in tensors if x.dim() > 1]


def ignore(*_: object) -> None:
    """Do nothing; the default callback."""
