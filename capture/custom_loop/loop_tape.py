"""A tape for custom training loops, which stays active across steps.

A user's loop does not announce where a batch begins, so the tape infers it. The forward calls that
one backward pass reaches form one ``ForwardPass``. Several of them before an update are
micro-batches and are joined along N. A parameter use is recorded when its δ arrives, so a forward
pass without backward pass (an evaluation) leaves nothing behind, not even its activations. If
gradients are discarded (``zero_grad`` without an update, as after an overflow under a
``GradScaler``), their passes are discarded as well.

Shapes: N datum, T position, as in ``capture.gradients.factors``.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.errors import UnitError
from capture.gradients.dense import join_datums
from capture.gradients.factors import Factors
from capture.gradients.memo import Memo
from capture.gradients.tape import ParameterUse, Tape, flatten_arguments
from capture.gradients.torch_functions import NotSplittable, TorchCall
from capture.gradients.vmap_fallback import unsplit_error

LEAVE_OUT = "Leave it out of units"
COUNTING = (
    "embedding of 0, 1, 2, …, which may be positions (look them up as [1, T]) or one a datum (as "
    "[N, 1])"
)


OnOperation = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]


def ignore_operation(func: object, args: object, kwargs: object, out: object) -> None:
    """Do nothing; what a tape calls unless it is told otherwise."""


@dataclass(eq=False)
class ForwardPass:
    """The forward calls that one backward pass has reached."""

    datum_N: np.ndarray | None = None
    """The datum in each slot, if the loop gave it."""
    uses: dict[int, ParameterUse] = field(default_factory=dict)
    """Parameter uses whose δ has arrived, by their number in forward order."""
    unsplit: dict[str, str] = field(default_factory=dict)
    """Units that were reached and cannot be captured → the function that uses them."""
    losses: list[Tensor] = field(default_factory=list)
    """Scalars that ``backward`` was called on."""
    loss_tensors: list[Tensor] = field(default_factory=list)
    """The same, as parts of their graphs."""

    def num_datums(self) -> int:
        return next(iter(self.uses.values())).num_datums

    def add_delta(self, number: int, use: ParameterUse, delta: Tensor) -> None:
        """Keep δ of a use; if ``backward`` goes through the same graph twice, keep the sum."""
        before = use.delta if number in self.uses else None
        use.keep_delta(delta)
        if before is not None and use.delta is not None:
            use.delta = before + use.delta
        self.uses[number] = use

    def factors(
        self, units: Iterable[str], where: str, cast: Callable[[Tensor], Tensor]
    ) -> Factors:
        """Return the factors by unit.

        Raises ``UnitError`` for a unit without factors, or if uses differ in their number of
        datums.
        """
        found: Factors = {name: [] for name in units}
        num_datums = self.num_datums()
        for _, use in sorted(self.uses.items()):
            for name, role in use.roles.items():
                if use.num_datums != num_datums:
                    problem = f"is used with {use.num_datums} datums, others with {num_datums}"
                    raise UnitError(name, problem, "The first axis must be the batch everywhere")
                found[name].append(use.factor(role, cast))
        for name, uses in found.items():
            if not uses:
                raise UnitError(name, f"got no gradient in a backward pass of {where}", LEAVE_OUT)
        return found


class LoopTape(Tape):
    """Record the factors of the given parameters while the context is active."""

    def __init__(self, units: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(units)
        self.model = model
        self.parameters = list(units.values())
        self.unit_names = dict(self.names)
        """Names by id of the units alone; ``names`` also gets tensors derived from them."""
        self.passes = [ForwardPass()]
        """Passes since the last update. The last one is open and may be empty."""
        self.numbers = itertools.count()
        self.next_datum_N: np.ndarray | None = None
        """Datums of the next forward pass, if the loop gave them."""
        self.knows_num_datums = False
        """Whether ``num_datums`` holds for calls made now: in the model's forward, or once the loop
        has given the datums of the next pass."""
        self.inputs: list[Tensor] = []
        """Inputs of the forward pass that is running."""
        self.counted: list[Tensor] = []
        """Results of ``torch.arange`` in the forward pass that is running."""
        self.paused = False
        """Whether calls are let through unseen, because the model is run again for a check."""
        self.on_operation: OnOperation = ignore_operation
        """Called with every torch function of the loop and its result."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.backward and args[0].numel() == 1:
            self.passes[-1].losses.append(args[0].detach())
            self.passes[-1].loss_tensors.append(args[0])
        # arange takes no parameter, so only its result is of interest: see ``is_shared``.
        if not torch.is_grad_enabled() or func is torch.arange:
            out = func(*args, **(kwargs or {}))
            if func is torch.arange and self.inputs:
                self.counted.append(out)
            return out
        out = super().__torch_function__(func, types, args, kwargs)
        self.on_operation(func, args, kwargs or {}, out)
        return out

    def set_datums(self, datum_N: np.ndarray) -> None:
        """Set the datums of the next forward pass, by slot."""
        self.next_datum_N, self.num_datums, self.knows_num_datums = datum_N, len(datum_N), True

    def begin_forward(self, inputs: Sequence[Tensor]) -> None:
        """Note that the model's forward begins.

        Raises ``UnitError`` if the inputs do not have as many rows as datums were given.
        """
        if not torch.is_grad_enabled() or not inputs:
            return
        N = inputs[0].shape[0]
        if self.next_datum_N is not None and len(self.next_datum_N) != N:
            problem = f"got an input {tuple(inputs[0].shape)} for {len(self.next_datum_N)} datums"
            raise UnitError("model", problem, "The first axis of the input must be the batch")
        self.inputs, self.num_datums, self.knows_num_datums = list(inputs), N, True

    def end_forward(self) -> None:
        """Note that the model's forward is over."""
        self.inputs, self.counted, self.knows_num_datums = [], [], False

    def is_shared(self, call: TorchCall, out: Tensor) -> bool:
        """Return whether all datums share the output of a call, as with position embeddings.

        Unlike the base class, this never guesses: if it is wrong, the output would get another
        shape than the loop expects. Raises ``NotSplittable`` for an embedding of 0, 1, 2, … that
        may be of positions or of datums.
        """
        if not call.shared or call.a is None:
            return self.knows_num_datums and out.shape[0] == 1
        # The ids are 0, 1, 2, … in one axis. They number datums if they are an input of the model.
        # If its first input has more axes, other inputs of one axis may be positions.
        ids, of_datums = call.a, self.inputs[:1]
        if self.inputs and self.inputs[0].dim() == 1:
            of_datums = self.inputs
        if any(shares_memory(ids, x) for x in of_datums):
            return False
        # Not as many ids as datums: these must be positions. As many: they are positions if the
        # model has counted them itself or holds them in a buffer.
        if self.knows_num_datums and len(ids) != self.num_datums:
            return True
        if self.inputs and any(shares_memory(ids, x) for x in self.model_counters()):
            return True
        raise NotSplittable(COUNTING)

    def model_counters(self) -> Iterator[Tensor]:
        """Yield the tensors that may hold the model's own positions."""
        yield from self.counted
        yield from self.model.buffers()

    def watch_delta(self, use: ParameterUse, out: Tensor) -> None:
        """Add the use to the open pass as soon as its δ arrives."""
        out.register_hook(partial(self.keep_delta, self.open_pass(), next(self.numbers), use))

    def keep_delta(
        self, forward: ForwardPass, number: int, use: ParameterUse, delta: Tensor
    ) -> None:
        """Keep δ, and drop earlier passes whose gradients have been discarded."""
        # The order forward, zero_grad, backward is usual, so look again at the first δ of a pass.
        first = not forward.uses
        if first and forward in self.passes[1:] and self.gradients_are_zero():
            del self.passes[: self.passes.index(forward)]
        forward.add_delta(number, use, delta)

    def mark_unsplit(self, unsplit: dict[str, str], out: Any) -> None:
        """Note units that cannot be captured, if a backward pass reaches the output."""
        reached = self.open_pass().unsplit
        for tensor in flatten_arguments((out,)):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda delta: reached.update(unsplit))

    def open_pass(self) -> ForwardPass:
        """Return the pass of a forward call; a new one if the last has had a backward pass."""
        if self.passes[-1].uses:
            if self.gradients_are_zero():
                self.passes.clear()
            self.passes.append(ForwardPass())
        if self.next_datum_N is not None:
            self.passes[-1].datum_N, self.next_datum_N = self.next_datum_N, None
        return self.passes[-1]

    def gradients_are_zero(self) -> bool:
        """Return whether all gradients are None or 0, as after ``zero_grad``."""
        grads = [parameter.grad for parameter in self.parameters]
        return not any(grad is not None and bool(grad.any()) for grad in grads)

    def take_passes(self) -> list[ForwardPass]:
        """Return the passes since the last update, and start with an empty one.

        Raises ``UnitError`` for units that are used in a way that cannot be captured.
        """
        found = [each for each in self.passes if each.uses or each.unsplit]
        if unsplit := {unit: use for each in found for unit, use in each.unsplit.items()}:
            raise unsplit_error(self.model, unsplit, LEAVE_OUT)
        self.passes = [ForwardPass()]
        self.knows_num_datums = False
        self.names = dict(self.unit_names)
        self.derived.clear()
        self.roundings.clear()
        return found


def shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def join_passes(passes: Iterable[ForwardPass], units: Iterable[str], where: str) -> Factors:
    """Return the factors of all passes, joined along N in order; shorter ones are padded.

    Raises ``UnitError`` if the passes do not use a unit in the same way.
    """
    units = list(units)
    cast = Memo(Tensor.float)
    pieces = [each.factors(units, where, cast) for each in passes]
    to_width = cache(lambda positions: Memo(partial(pad_positions, positions=positions)))
    for name in units:
        if len({tuple(use.kind for use in piece[name]) for piece in pieces}) > 1:
            problem = f"is used differently in the backward passes of {where}"
            raise UnitError(name, problem, LEAVE_OUT)
        for number in range(len(pieces[0][name])):
            widest = max(piece[name][number].delta_NTO.shape[1] for piece in pieces)
            for piece in pieces:
                piece[name][number] = piece[name][number].map_tensors(to_width(widest))
    return join_datums(pieces)


def pad_positions(x: Tensor, positions: int) -> Tensor:
    """Pad δ, a or tokens [N, T, …] with zeros to so many positions; they add nothing, as δ is 0."""
    missing = positions - x.shape[1]
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) if missing else x
