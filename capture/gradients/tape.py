"""Collects the factors of every captured gradient from one ordinary backward pass.

``Tape`` watches the *use of parameters* instead of modules: while it is active, every torch
function that receives a captured parameter is seen, whatever module called it. A functional call, a
module used twice or a tied weight cannot slip through, and a use that cannot be split per datum is
refused by name.

Shapes: N datum, T position (all inner axes flattened), I input width, O output width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from capture.errors import UnitError
from capture.gradients.factors import Factor, Factors
from capture.gradients.memo import Memo
from capture.gradients.torch_functions import (
    READERS,
    NotSplittable,
    ParameterRole,
    TorchCall,
    same_gradient,
)

MAX_POSITIONS = 2**15
"""What the record's 16-bit position can count."""
CANNOT = "which capture cannot split per datum"


@dataclass
class ParameterUse:
    """One call that consumed captured parameters; δ arrives during the backward pass."""

    func: str
    roles: dict[str, ParameterRole]
    call: TorchCall
    num_datums: int
    first_axis: int
    """Of the output, before it was repeated for every datum."""
    shape: torch.Size
    """Of the output, features last."""
    device: torch.device
    delta: Tensor | None = None

    def keep_delta(self, delta: Tensor) -> None:
        self.delta = delta.movedim(self.call.feature_axis, -1)

    def factor(self, role: ParameterRole, cast: Callable[[Tensor], Tensor]) -> Factor:
        """``cast``: how tensors become the factors'."""
        delta = torch.zeros(self.shape, device=self.device) if self.delta is None else self.delta
        delta_NTO, a = self.by_datum(cast(delta)), self.call.a
        if role.kind == "rows":
            assert a is not None
            token_NT = a.expand(self.shape[:-1]).reshape(self.num_datums, -1)
            if self.call.padding is not None:
                delta_NTO = delta_NTO * (token_NT != self.call.padding)[..., None]
            return Factor("rows", delta_NTO, token_NT=token_NT)
        if role.kind == "sum" or a is None:
            return Factor("sum", delta_NTO)
        a = a.expand(self.num_datums, *a.shape[1:]) if a.shape[0] == 1 else a
        return Factor(role.kind, delta_NTO, self.by_datum(cast(a)), role.transposed)

    def by_datum(self, x: Tensor) -> Tensor:
        """[N, T, features] of what has the two first axes in one, or more than two of them."""
        return x.reshape(self.num_datums, -1, x.shape[-1])


class Tape(TorchFunctionMode):
    """Records factors of the given parameters during the forward pass that it surrounds::

        with Tape(units, num_datums=len(batch)) as tape:
            loss = model(batch)
        loss.backward()
        factors = tape.factors()

    A batch's first axis must be the datum, or datum and position in one. What has one row for all
    datums (positions looked up once) is repeated for each, so that its gradient splits.
    ``num_datums=None``: as many as the first axis of each activation has.
    """

    def __init__(self, units: Mapping[str, Tensor], num_datums: int | None = None) -> None:
        super().__init__()
        self.units = list(units)
        self.num_datums = num_datums
        doubles = any(parameter.dtype == torch.float64 for parameter in units.values())
        self.dtype = torch.float64 if doubles else torch.float32
        self.names = {id(parameter): name for name, parameter in units.items()}
        self.derived: list[Tensor] = []
        self.uses: list[ParameterUse] = []
        self.roundings: MutableMapping[Tensor, tuple[int, Tensor]] = WeakTensorKeyDictionary()
        """Of activations, with the version of them that was rounded."""
        self.unsplit: dict[str, str] = {}
        """Units that cannot be captured → what uses them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        names = self.names
        found = {
            names[id(arg)]: arg
            for arg in flatten_arguments((*args, *kwargs.values()) if kwargs else args)
            if id(arg) in names
        }
        if found and any(
            isinstance(o, Tensor) and o.requires_grad for o in flatten_arguments((out,))
        ):
            return self.record_call(func, found, args, kwargs, out)
        return out

    def record_call(
        self,
        func: Callable[..., Any],
        found: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> Any:
        """Take down a call that received captured parameters; returns its output."""
        if any(out is parameter for parameter in found.values()):
            return out
        (name, parameter), *others = found.items()
        if not others and same_gradient(func, args) and out.shape == parameter.shape:
            self.names[id(out)] = name
            self.derived.append(out)
            return out
        try:
            return self.record_use(func, found, read_call(func, args, kwargs), out)
        except NotSplittable as use:
            self.mark_unsplit(dict.fromkeys(found, str(use)), out)
            return out

    def record_use(
        self, func: Callable[..., Any], found: dict[str, Tensor], call: TorchCall, out: Tensor
    ) -> Tensor:
        roles = {self.names[id(p)]: role for p, role in call.roles if id(p) in self.names}
        if set(found) - set(roles):
            raise NotSplittable(f"{function_name(func)} in the place of an activation")
        N, first_axis = self.num_datums or out.shape[0], out.shape[0]
        if N > 1 and self.is_shared(call, out):
            out = out.expand(N, *(out.shape if call.shared else out.shape[1:]))
        shape = torch.Size(out.movedim(call.feature_axis, -1).shape)
        if len(shape) < 2 or shape[0] % N:
            raise NotSplittable(
                f"{function_name(func)} on {tuple(shape)}, no multiple of {N} datums"
            )
        if (positions := shape[:-1].numel() // N) > MAX_POSITIONS:
            raise NotSplittable(f"{function_name(func)} at {positions:,} positions")
        kept = self.detach_activation(call, out)
        use = ParameterUse(function_name(func), roles, kept, N, first_axis, shape, out.device)
        self.watch_delta(use, out)
        return out

    def detach_activation(self, call: TorchCall, out: Tensor) -> TorchCall:
        """The call with its activation detached and, under autocast, as it was multiplied."""
        a = call.a
        if a is None:
            return call
        if a.is_floating_point() and any(role.kind == "outer" for _, role in call.roles):
            a = self.round_activation(a, out.dtype)
        return TorchCall(call.roles, a.detach(), call.feature_axis, call.shared, call.padding)

    def round_activation(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        """Rounded once for all that read it, as long as it is what it was."""
        if a.dtype == dtype:
            return a
        now = 0 if a.is_inference() else a._version
        version, kept = self.roundings.get(a, (None, None))
        if kept is None or (version, kept.dtype) != (now, dtype):
            kept = a.detach().to(dtype)
            self.roundings[a] = now, kept
        return kept

    def make_cast(self) -> Memo:
        """To the factors' type, for the factors of one backward pass."""
        return Memo(lambda x: x.to(self.dtype))

    def is_shared(self, call: TorchCall, out: Tensor) -> bool:
        """Whether all datums use what a call gives."""
        return call.shared or out.shape[0] == 1

    def watch_delta(self, use: ParameterUse, out: Tensor) -> None:
        """See to it that the use has its δ after the backward pass."""
        out.register_hook(use.keep_delta)
        self.uses.append(use)

    def mark_unsplit(self, unsplit: dict[str, str], out: Any) -> None:
        """Take down units that cannot be captured, and what uses them; ``out``: its output."""
        self.unsplit |= unsplit

    def forget_deltas(self) -> None:
        """Make ready for the backward pass of another loss through the same graph."""
        for use in self.uses:
            use.delta = None

    def factors(self) -> Factors:
        """What was recorded, after the backward pass.

        Raises ``UnitError`` for a unit that has no factors or was never used.
        """
        if self.unsplit:
            raise unsupported_unit(*next(iter(self.unsplit.items())))
        found: Factors = {name: [] for name in self.units}
        cast = self.make_cast()
        for use in self.uses:
            for name, role in use.roles.items():
                found[name].append(use.factor(role, cast))
        for name, factors in found.items():
            if not factors:
                raise UnitError(name, "is captured but the forward pass never used it")
        return found


def flatten_arguments(values: Iterable[Any]) -> Iterator[Any]:
    """The values, and in their place what lists and tuples among them hold."""
    for value in values:
        if type(value) in (list, tuple):
            yield from value
        else:
            yield value


def read_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TorchCall:
    """What the call does; raises ``NotSplittable`` for a function, or a way to call it, not known."""
    if func not in READERS:
        raise NotSplittable(function_name(func))
    try:
        return READERS[func](*args, **kwargs)
    except TypeError as error:
        raise NotSplittable(f"{function_name(func)} with unusual arguments") from error


def function_name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))


def unsupported_unit(unit: str, use: str) -> UnitError:
    return UnitError(
        unit,
        f"is used by {use}, {CANNOT}",
        "Leave it out with capture.units, or set capture.fallback=vmap",
    )
