"""A tape for a training loop that is not ours: it runs on, and sees what backward passes reach.

Nobody says here where a batch begins. What one backward pass goes through is a *pass*; its forward
calls may be several, of the same datums. Several passes before an update (micro-batches) are joined
along N. A use counts when its δ arrives and not before, so that a forward pass which is evaluated
only leaves nothing behind, not even its activations. Gradients that were thrown away (``zero_grad``
without an update, as when a scaler meets an overflow) take their passes with them.

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
from capture.gradients.memo import Once
from capture.gradients.tape import Tape, Use, flat
from capture.gradients.torch_functions import Call, Unsplit
from capture.gradients.vmap_fallback import refusal

LEAVE_OUT = "Leave it out of units"
COUNTING = (
    "embedding of 0, 1, 2, …, which may be positions (look them up as [1, T]) or one a datum (as "
    "[N, 1])"
)


@dataclass(eq=False)
class Pass:
    """What one backward pass went through."""

    datum_N: np.ndarray | None = None
    """Which datum sits in which slot, if that was told."""
    uses: dict[int, Use] = field(default_factory=dict)
    """Those that it reached, by their order in the forward pass."""
    unsplit: dict[str, str] = field(default_factory=dict)
    """Units that it reached and that cannot be captured → what uses them."""
    losses: list[Tensor] = field(default_factory=list)
    """What ``backward`` was called on."""

    def num_datums(self) -> int:
        return next(iter(self.uses.values())).num_datums

    def arrive(self, number: int, use: Use, delta: Tensor) -> None:
        """Keep δ of a use; of a graph that is gone through twice, the sum."""
        before = use.delta if number in self.uses else None
        use.keep(delta)
        if before is not None and use.delta is not None:
            use.delta = before + use.delta
        self.uses[number] = use

    def factors(
        self, units: Iterable[str], where: str, cast: Callable[[Tensor], Tensor]
    ) -> Factors:
        """By unit; raises ``UnitError`` for one without any, or where datums are not first."""
        found: Factors = {name: [] for name in units}
        num_datums = self.num_datums()
        for _, use in sorted(self.uses.items()):
            for name, role in use.roles.items():
                if use.num_datums != num_datums:
                    problem = f"is used with {use.num_datums} datums, others with {num_datums}"
                    raise UnitError(name, problem, "The first axis must be the batch's, everywhere")
                found[name].append(use.factor(role, cast))
        for name, uses in found.items():
            if not uses:
                raise UnitError(name, f"got no gradient in a backward pass of {where}", LEAVE_OUT)
        return found


class Watch(Tape):
    """Records the factors of the given parameters for as long as it is entered."""

    def __init__(self, units: Mapping[str, nn.Parameter], model: nn.Module) -> None:
        super().__init__(units)
        self.model = model
        self.parameters = list(units.values())
        self.own_names = dict(self.names)
        self.passes = [Pass()]
        """The last one is open, and may be empty."""
        self.numbers = itertools.count()
        self.told_N: np.ndarray | None = None
        self.certain = False
        """Whether what is called now is of ``num_datums`` datums."""
        self.inputs: list[Tensor] = []
        """Of the forward pass that is under way."""
        self.counted: list[Tensor] = []
        """What the model has counted up in it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.backward and args[0].numel() == 1:
            self.passes[-1].losses.append(args[0].detach())
        if not torch.is_grad_enabled() or func is torch.arange:
            out = func(*args, **(kwargs or {}))
            if func is torch.arange and self.inputs:
                self.counted.append(out)
            return out
        return super().__torch_function__(func, types, args, kwargs)

    def tell(self, datum_N: np.ndarray) -> None:
        """Which datums the coming forward pass is of."""
        self.told_N, self.num_datums, self.certain = datum_N, len(datum_N), True

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """A forward pass begins; raises ``UnitError`` if it is not of the datums that were told."""
        if not torch.is_grad_enabled() or not inputs:
            return
        N = inputs[0].shape[0]
        if self.told_N is not None and len(self.told_N) != N:
            problem = f"got {tuple(inputs[0].shape)} where {len(self.told_N)} datums were told"
            raise UnitError("model", problem, "Its first axis must be the batch's")
        self.inputs, self.num_datums, self.certain = list(inputs), N, True

    def end(self) -> None:
        """The forward pass is over."""
        self.inputs, self.counted, self.certain = [], [], False

    def repeats(self, call: Call, out: Tensor) -> bool:
        """As any tape has it, but sure: what the loop gets to see may not change.

        Raises ``Unsplit`` for 0, 1, 2, … of which nothing tells what they number.
        """
        if not call.shared or call.a is None:
            return self.certain and out.shape[0] == 1
        ids, of_datums = call.a, self.inputs[:1]
        if self.inputs and self.inputs[0].dim() == 1:
            of_datums = self.inputs
        if any(shares_memory(ids, x) for x in of_datums):
            return False
        if self.certain and len(ids) != self.num_datums:
            return True
        if self.inputs and any(shares_memory(ids, x) for x in self.own_numbers()):
            return True
        raise Unsplit(COUNTING)

    def own_numbers(self) -> Iterator[Tensor]:
        """What the model counts with by itself."""
        yield from self.counted
        yield from self.model.buffers()

    def follow(self, use: Use, out: Tensor) -> None:
        out.register_hook(partial(self.arrive, self.open_pass(), next(self.numbers), use))

    def arrive(self, one: Pass, number: int, use: Use, delta: Tensor) -> None:
        """Keep δ; before the first of a pass, forget what was thrown away since it began."""
        if not one.uses and one in self.passes[1:] and self.gradients_are_gone():
            del self.passes[: self.passes.index(one)]
        one.arrive(number, use, delta)

    def refuse(self, unsplit: dict[str, str], out: Any) -> None:
        """It matters only if the backward pass comes by."""
        reached = self.open_pass().unsplit
        for tensor in flat((out,)):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda delta: reached.update(unsplit))

    def open_pass(self) -> Pass:
        """The pass that a forward call belongs to: a new one once the last has gone backward."""
        if self.passes[-1].uses:
            if self.gradients_are_gone():
                self.passes.clear()
            self.passes.append(Pass())
        if self.told_N is not None:
            self.passes[-1].datum_N, self.told_N = self.told_N, None
        return self.passes[-1]

    def gradients_are_gone(self) -> bool:
        grads = [parameter.grad for parameter in self.parameters]
        return not any(grad is not None and bool(grad.any()) for grad in grads)

    def take(self) -> list[Pass]:
        """The passes since the last update, which this ends; raises ``UnitError`` for units that
        were used in a way that cannot be captured."""
        found = [one for one in self.passes if one.uses or one.unsplit]
        if unsplit := {unit: use for one in found for unit, use in one.unsplit.items()}:
            raise refusal(self.model, unsplit, LEAVE_OUT)
        self.passes = [Pass()]
        self.certain = False
        self.names = dict(self.own_names)
        self.derived.clear()
        self.roundings.clear()
        return found


def shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def join_passes(passes: Iterable[Pass], units: Iterable[str], where: str) -> Factors:
    """Of all their datums in order; raises ``UnitError`` if their uses do not match."""
    units = list(units)
    cast = Once(Tensor.float)
    pieces = [one.factors(units, where, cast) for one in passes]
    to_width = cache(lambda positions: Once(partial(padded, positions=positions)))
    for name in units:
        if len({tuple(use.kind for use in piece[name]) for piece in pieces}) > 1:
            problem = f"is used otherwise in one backward pass of {where} than in the next"
            raise UnitError(name, problem, LEAVE_OUT)
        for place in range(len(pieces[0][name])):
            widest = max(piece[name][place].delta_NTO.shape[1] for piece in pieces)
            for piece in pieces:
                piece[name][place] = piece[name][place].mapped(to_width(widest))
    return join_datums(pieces)


def padded(x: Tensor, positions: int) -> Tensor:
    """δ, a or tokens with so many positions; of those added δ is 0."""
    missing = positions - x.shape[1]
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) if missing else x
