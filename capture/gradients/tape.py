"""Collects the factors of every captured gradient from one ordinary backward pass.

``Tape`` watches *parameters*, not modules: while it is active, it sees every torch function that
receives a captured parameter, whichever module calls it. Functional calls, modules used twice and
tied weights are therefore covered. A call whose gradient cannot be split by datum is reported with
the parameter's name.

Shapes: N datum, T entry of a datum (all axes between datum and features, flattened, the window
first), I input width, O output width.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from capture.errors import UnitError
from capture.gradients.attention import (
    ATTENTION,
    datums_first,
    has_datums,
    num_datums_of,
    run_visibly,
)
from capture.gradients.factors import Factors
from capture.gradients.memo import Memo, Roundings
from capture.gradients.output_hooks import on_delta
from capture.gradients.parameter_parts import Absent, parts_of, roles_of
from capture.gradients.parameter_use import ParameterUse, middle_axes, require_datums
from capture.gradients.shared_outputs import Receive, SharedOutputs
from capture.gradients.torch_functions import (
    NotSplittable,
    TorchCall,
    flatten_arguments,
    function_name,
    read_call,
    same_gradient,
)
from capture.gradients.window_axis import Axis, require_positions

CANNOT = "which capture cannot split per datum"


class Tape(TorchFunctionMode):
    """Records the factors of the given parameters during a forward pass::

        with Tape(units, num_datums=len(batch)) as tape:
            loss = model(batch)
        loss.backward()
        factors = tape.factors()

    The first axis of every activation must be the datum, or datum and position flattened together.
    An output that all datums share (learned positions, looked up once) is followed to where it
    meets the batch (``SharedOutputs``). With ``num_datums=None`` the first axis of each output
    counts as N. ``window_axes`` gives the axis of the window in each call of a unit; without it,
    all axes between datum and features count as one.
    """

    def __init__(
        self,
        units: Mapping[str, Tensor],
        num_datums: int | None = None,
        window_axes: Mapping[str, Sequence[Axis]] | None = None,
    ) -> None:
        super().__init__()
        self.window_axes = window_axes
        self.num_calls = Counter[str]()
        """Unit → number of its calls so far."""
        self.units = list(units)
        self.num_datums = num_datums
        doubles = any(parameter.dtype == torch.float64 for parameter in units.values())
        self.dtype = torch.float64 if doubles else torch.float32
        self.names = {id(parameter): name for name, parameter in units.items()}
        self.derived: list[Tensor] = []
        """Casts and parts of parameters. They must stay alive: ``names`` has them by their id."""
        self.parts: dict[int, Absent] = {}
        """Id of a part of a parameter → the rows that it lacks."""
        self.attention_datums: int | None = None
        """Datums of the attention that is running, in which positions come first; None outside."""
        self.uses: list[ParameterUse] = []
        self.roundings = Roundings()
        self.shared = SharedOutputs()
        self.unsplit: dict[str, str] = {}
        """Units that cannot be captured → the call that uses them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION and self.units_among(args, kwargs) and has_datums(*args, **kwargs):
            return self.run_attention(args, kwargs)
        if self.shared.reached:
            out = self.call_with_shared(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        found = self.units_among(args, kwargs)
        if found and any(
            isinstance(o, Tensor) and o.requires_grad for o in flatten_arguments((out,))
        ):
            return self.record_call(func, found, args, kwargs, out)
        return out

    def units_among(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Return the units among the arguments of a call, by name."""
        names, found = self.names, {}
        # Every torch function of the model comes by here, so this is a plain loop.
        for given in (args, kwargs.values()) if kwargs else (args,):
            for arg in given:
                if type(arg) in (list, tuple):
                    found |= {names[id(item)]: item for item in arg if id(item) in names}
                elif id(arg) in names:
                    found[names[id(arg)]] = arg
        return found

    def run_attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an attention whose parts are seen one by one, with positions first."""
        self.attention_datums = num_datums_of(*args, **kwargs)
        try:
            return run_visibly(self, args, kwargs)
        finally:
            self.attention_datums = None

    def call_with_shared(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a function, and follow the shared outputs among its arguments."""
        given = [x for x in flatten_arguments((*args, *kwargs.values())) if isinstance(x, Tensor)]
        found = [self.shared.reached[id(x)][1] for x in given if id(x) in self.shared.reached]
        N = self.num_datums
        if not found or N is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        try:
            now, named = self.shared.expand_arguments(func, args, kwargs, N)
        except NotSplittable as reason:
            out = func(*args, **kwargs)
            units = [unit for sources in found for source in sources for unit in source.units]
            self.mark_unsplit(dict.fromkeys(units, str(reason)), out)
            return out
        out = func(*now, **named)
        pairs = zip((*args, *kwargs.values()), (*now, *named.values()), strict=True)
        if all(old is new for old, new in pairs):
            self.shared.follow(func, given, out, N)
        return out

    def record_call(
        self,
        func: Callable[..., Any],
        found: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
    ) -> Any:
        """Record a call that received captured parameters (``found``) and return its output."""
        if any(out is parameter for parameter in found.values()):
            return out  # a cast to the type that the parameter has already
        (name, parameter), *others = found.items()
        if not others and same_gradient(func, args) and out.shape == parameter.shape:
            self.add_derived(name, out, self.parts.get(id(parameter)))
            return out
        whole = self.parts.get(id(parameter), (0, 0))
        if not others and (parts := parts_of(func, parameter, out, whole)):
            for part, absent in parts:
                self.add_derived(name, part, absent)
            return out
        try:
            return self.record_use(func, found, read_call(func, args, kwargs), out)
        except NotSplittable as reason:
            self.mark_unsplit(dict.fromkeys(found, str(reason)), out)
            return out

    def add_derived(self, unit: str, x: Tensor, absent: Absent | None) -> None:
        """Note that a tensor is a unit, cast to another type, or a part of one."""
        self.names[id(x)] = unit
        self.derived.append(x)
        if absent is not None:
            self.parts[id(x)] = absent

    def record_use(
        self, func: Callable[..., Any], found: dict[str, Tensor], call: TorchCall, out: Tensor
    ) -> Tensor:
        """Record a call that can be split, and return its output."""
        roles = roles_of(call.roles, self.names, self.parts)
        if set(found) - set(roles):
            raise NotSplittable(f"{function_name(func)} as an activation")
        moved = out.movedim(call.feature_axis, -1)
        in_attention = self.attention_datums
        if in_attention is not None:
            moved = datums_first(moved, in_attention)
        shape, first_axis = torch.Size(moved.shape), moved.shape[0]
        N = self.num_datums or first_axis
        shared = N > 1 and (
            out in self.shared or (in_attention is None and self.is_shared(call, out))
        )
        if shared:
            shape = torch.Size((N, *(shape[1:] if shape[0] == 1 else shape)))
        require_datums(function_name(func), shape, N)
        middle = middle_axes(shape, N)
        axis = self.find_window(list(roles), middle)
        require_positions(function_name(func), middle, axis)
        kept = self.detach_activation(call, out)
        first = in_attention is not None
        use = ParameterUse(
            function_name(func), roles, kept, N, first_axis, shape, out.device, axis, first, shared
        )
        if shared:
            receive, rows = self.receiver(use), (N, *out.shape[out.shape[0] == 1 :])
            self.shared.add(out, roles, lambda delta_N: receive(delta_N.reshape(rows)))
        else:
            self.watch_delta(use, out)
        return out

    def find_window(self, units: Sequence[str], middle: Sequence[int]) -> Axis:
        """Return the axis of the window in the next call of these units, None if unknown.

        ``middle``: lengths of the axes between datum and features.
        """
        number = self.num_calls[units[0]]
        self.num_calls.update(units)
        if self.window_axes is None:
            return None
        known = self.window_axes.get(units[0], ())
        if number >= len(known) or (known[number] or 0) >= len(middle):
            raise NotSplittable("calls that differ between batches")
        return known[number]

    def detach_activation(self, call: TorchCall, out: Tensor) -> TorchCall:
        """Return the call with its activation detached and, under autocast, rounded as used."""
        a = call.a
        if a is None:
            return call
        if a.is_floating_point() and any(role.kind == "outer" for _, role in call.roles):
            a = self.roundings.of(a, out.dtype)
        if self.attention_datums is not None:
            a = datums_first(a, self.attention_datums)
        return TorchCall(call.roles, a.detach(), call.feature_axis, call.shared, call.padding)

    def make_cast(self) -> Memo:
        """Return a cast to the factors' type that keeps shared tensors shared."""
        return Memo(lambda x: x.to(self.dtype))

    def is_shared(self, call: TorchCall, out: Tensor) -> bool:
        """Return whether all datums use the same output of this call."""
        return call.shared or out.shape[0] == 1

    def watch_delta(self, use: ParameterUse, out: Tensor) -> None:
        """Register the use, so that the backward pass gives it its δ."""
        on_delta(out, use.keep_delta)
        self.uses.append(use)

    def receiver(self, use: ParameterUse) -> Receive:
        """Register the use of a shared output; return what takes the parts of its δ."""
        self.uses.append(use)
        return use.add_delta

    def mark_unsplit(self, unsplit: dict[str, str], out: Any) -> None:
        """Record units that cannot be captured; ``out`` is the output of the call that uses them.

        ``factors`` raises for them later: the caller can thus learn of all such units at once.
        """
        self.unsplit |= unsplit

    def forget_deltas(self) -> None:
        """Drop every δ, before the backward pass of another loss through the same graph."""
        for use in self.uses:
            use.delta = None

    def factors(self) -> Factors:
        """Return every unit's factors; call it after the backward pass.

        Raises ``UnitError`` for a unit that cannot be split or that the forward pass did not use.
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


def unsupported_unit(unit: str, use: str) -> UnitError:
    return UnitError(
        unit,
        f"is used by {use}, {CANNOT}",
        "Leave it out with capture.units, or set capture.fallback=vmap",
    )
