"""Join calls of modules that are run again with the parameter uses of a forward pass."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from capture.custom_loop.passes.forward_passes import ForwardPass
from capture.custom_loop.rerun.frames import ModuleFrame
from capture.custom_loop.rerun.gradients import NotSeparableError, module_gradients, unsplit_units
from capture.gradients.parameter_use import ParameterUse
from capture.gradients.torch_functions import SUM, TorchCall


class OutputUse(ParameterUse):
    """An output of a module's call, which receives δ and is a use of no parameter."""

    frame: ModuleFrame
    number: int

    @classmethod
    def of(cls, frame: ModuleFrame, number: int, out: Tensor) -> "OutputUse":
        N = frame.num_datums
        name = type(frame.module).__name__
        found = cls(name, {}, TorchCall([]), N, N, torch.Size((N, 1)), out.device)
        found.frame, found.number = frame, number
        return found

    def keep_delta(self, delta: Tensor) -> None:
        self.delta = delta
        self.frame.deltas[self.number] = delta


def split_modules(
    passes: Sequence[ForwardPass], units: Mapping[str, nn.Parameter], numbers: Iterator[int]
) -> None:
    """Replace the outputs of modules among the uses of each pass by uses with whole gradients.

    ``numbers``: of the next uses, in order. Units of modules that cannot be run for one datum are
    added to ``unsplit``.
    """
    for each in passes:
        outputs = {n: use for n, use in each.uses.items() if isinstance(use, OutputUse)}
        if not outputs:
            continue
        frames: dict[int, ModuleFrame] = {}
        for number, use in outputs.items():
            assert use.delta is not None
            use.frame.deltas[use.number] = use.delta  # the sum of two backward passes
            frames[id(use.frame)] = use.frame
            del each.uses[number]
        for frame in frames.values():
            uses = uses_of_call(each, frame, units)
            new = [next(numbers) for _ in uses]
            each.uses |= zip(new, uses, strict=True)
            each.inside |= set(new)  # a module of the model has made them


def uses_of_call(
    forward: ForwardPass, frame: ModuleFrame, units: Mapping[str, nn.Parameter]
) -> list[ParameterUse]:
    """Return the uses of a call's unsplit units, with whole gradients; none if it has no such."""
    try:
        if forward.documents is not None:
            raise NotSeparableError("runs on rows of several documents")
        found = module_gradients(frame, units)
    except NotSeparableError as reason:
        forward.unsplit |= unsplit_units(frame, reason)
        forward.has_inseparable = True
        return []
    for within in frame.numbers:  # these parts of the gradient are in the whole
        if within in forward.uses:
            use = forward.uses[within]
            use.roles = {n: role for n, role in use.roles.items() if n not in frame.unsplit}
    return [whole_use(frame, name, grad_NP) for name, grad_NP in found.items()]


def whole_use(frame: ModuleFrame, name: str, grad_NP: Tensor) -> ParameterUse:
    """Return a use of one position, whose δ is the gradient of the whole unit."""
    N, shape = frame.num_datums, torch.Size(grad_NP.shape)
    kind, device = type(frame.module).__name__, grad_NP.device
    use = ParameterUse(kind, {name: SUM}, TorchCall([]), N, N, shape, device)
    use.delta = grad_NP
    return use
