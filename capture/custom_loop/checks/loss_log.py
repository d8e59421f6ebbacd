"""The operations of the loop on its model's outputs, noted so that they can be run again.

The loss is computed by the loop, outside the model, so it cannot be called again. Every operation
that receives an output, or something computed from one, is noted instead, in order, also those
without gradients. Running them again changes nothing of the loop's: a tensor that an operation
changes in place is copied first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from capture.custom_loop.checks.autocast_state import AutocastState
from capture.custom_loop.checks.exchanges import Exchanged, functional_name
from capture.custom_loop.checks.model_calls import tensors_of
from capture.gradients.output_hooks import on_delta

INPLACE = {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
UNREPEATED = {"backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
"""Functions that are no part of a computation."""
LEAVES_TORCH = {
    *("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__"),
}
"""Functions that return numbers. What a loop computes from those cannot be followed."""


Root = tuple[Tensor, Tensor | None]
"""A tensor from which gradients came, and its own gradient (None: 1)."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of a torch function."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    has_gradient: bool
    """Whether gradients were on."""
    autocast: AutocastState
    made: list[Tensor]
    """Tensors of the result, and the tensor that was changed in place."""
    before: dict[int, Tensor]
    """Id of a tensor that was changed in place, and that no operation has made → its copy."""
    versions: list[tuple[Tensor, int]]
    """Tensors that no operation has made, and their version counters."""

    def run_again(self, now: dict[int, Tensor]) -> None:
        """Call the function on the tensors of now, and add what it makes to them, all by id."""
        now |= {key: x.clone() for key, x in self.before.items()}
        args, kwargs = tree_map(
            lambda x: now.get(id(x), x) if isinstance(x, Tensor) else x, (self.args, self.kwargs)
        )
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.has_gradient))
            stack.enter_context(self.autocast.again())
            found = tensors_of(self.func(*args, **kwargs))
        if len(found) > len(self.made):
            raise NotRepeatableError("an operation whose results differ in number")
        now.update((id(old), new) for old, new in zip(self.made, found, strict=False))


class NotRepeatableError(Exception):
    """The loss cannot be followed; the message completes "because of …"."""


@dataclass
class LossLog:
    """The operations on model outputs outside the model, in order."""

    device: str
    outputs: list[Tensor] = field(default_factory=list)
    originals: dict[int, Tensor] = field(default_factory=dict)
    """Id of an output that the loop has changed in place → its value before."""
    operations: list[Operation] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    """Where gradients come from: tensors that ``backward`` was called on, and inputs of later calls
    of the model's parts."""
    inputs: set[int] = field(default_factory=set)
    """Ids of inputs of later calls. Their gradient is known, so nothing is computed behind them."""
    tracked: set[int] = field(default_factory=set)
    """Ids of the outputs and of everything computed from them. The log keeps all of them alive."""
    end: int = 0
    """Number of operations before the last gradient came back; later ones are no part of a loss."""
    exchanged: Exchanged = field(default_factory=Exchanged)
    kept: list[Tensor] = field(default_factory=list)
    """Tensors of exchanges, which are no operations to be run again."""
    left: dict[str, int] = field(default_factory=dict)
    """Name of a function that returned numbers → operations before its first call."""

    def clear(self) -> None:
        """Let go of all tensors."""
        for held in (self.outputs, self.originals, self.operations, self.roots, self.kept):
            held.clear()
        self.tracked.clear()

    def add_outputs(self, outputs: Sequence[Tensor]) -> None:
        self.outputs += outputs
        self.tracked |= {id(x) for x in outputs}
        for x in outputs:
            on_delta(x, self.note_end)

    def note_end(self, delta: Tensor) -> None:
        self.end, self.exchanged.end = len(self.operations), self.exchanged.clock

    def note_exchange(self, name: str, written: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Note that processes exchange ``given``; numbers of others come back in ``written``."""
        sent = self.tracked.intersection(map(id, given))
        if sent:
            self.exchanged.note_exchange(name, written, sent)
            self.keep(written)

    def keep(self, made: Sequence[Tensor]) -> None:
        """Follow tensors that no operation has made that can be run again."""
        self.kept += made
        self.tracked |= {id(x) for x in made}

    def add_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Note the inputs of a call of a part of the model, if they come from an earlier call."""
        for x in inputs:
            if x.requires_grad and id(x) in self.tracked:
                self.inputs.add(id(x))
                on_delta(x, lambda delta, x=x: self.roots.append((x, delta)))

    def begin_operation(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[Any], None] | None:
        """Look at a call before it is made; return what is to be called with its result."""
        given = tensors_of((args, kwargs))
        name = getattr(func, "__name__", "")
        if name in UNREPEATED or not any(id(x) in self.tracked for x in given):
            return None
        if name in LEAVES_TORCH:
            self.left.setdefault(name, len(self.operations))
            return None
        changed = [x for x in changed_in_place(name, args, kwargs) if id(x) in map(id, given)]
        self.keep_outputs_of(changed)
        before = {id(x): x.detach().clone() for x in changed if id(x) not in self.tracked}
        gradient = torch.is_grad_enabled()
        autocast = AutocastState.now(self.device)
        outside = [x for x in given if id(x) not in self.tracked and id(x) not in before]
        tracked, exchanged = self.tracked.intersection(map(id, given)), self.exchanged
        functional, num_exchanges = functional_name(func), exchanged.num_exchanges

        def after(out: Any) -> None:
            made = tensors_of(out)
            if functional:
                exchanged.note_exchange(functional, (), tracked)
            is_exchange = exchanged.num_exchanges > num_exchanges
            exchange = exchanged.newest if is_exchange else ""
            exchanged.note_operation(
                name, tracked, made if is_exchange else [*made, *changed], exchange
            )
            if is_exchange:
                self.keep(made)
                return
            versions = [(x, version_of(x)) for x in outside]
            self.operations.append(
                Operation(func, args, kwargs, gradient, autocast, made, before, versions)
            )
            self.tracked |= {id(x) for x in (*made, *changed)}

        return after

    def keep_outputs_of(self, changed: Sequence[Tensor]) -> None:
        """Keep a copy of each output whose memory is about to change for the first time."""
        places = {x.untyped_storage().data_ptr() for x in changed}
        for x in self.outputs if places else ():
            if id(x) not in self.originals and x.untyped_storage().data_ptr() in places:
                self.originals[id(x)] = x.detach().clone()

    def require_unchanged(self) -> None:
        """Raise ``NotRepeatableError`` if a tensor of the loop has changed since it was used."""
        pairs = [pair for operation in self.operations[: self.end] for pair in operation.versions]
        if any(version_of(x) != then for x, then in pairs if id(x) not in self.tracked):
            raise NotRepeatableError("a tensor that was changed before the optimizer's step")

    def run_again(self, outputs: Mapping[int, Tensor]) -> tuple[dict[int, Tensor], ...]:
        """Return all tensors for other model outputs, by the ids of those of the loop.

        Inputs of later calls are returned a second time, with their graph, in the second place.
        """
        now: dict[int, Tensor] = dict(outputs)
        attached: dict[int, Tensor] = {}

        def cut(keys: Iterable[int]) -> None:
            for key in self.inputs.intersection(keys):
                attached[key] = now[key]
                now[key] = now[key].detach()

        cut(now)
        for operation in self.operations[: self.end]:
            operation.run_again(now)
            cut(id(x) for x in operation.made if id(x) in now)
        return now, attached


def changed_in_place(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Sequence[Tensor]:
    """Return the tensors that a function of this name writes to."""
    written = list(args[:1]) if name in INPLACE or is_inplace(name) else []
    return tensors_of((written, kwargs.get("out"), args[:1] if kwargs.get("inplace") else None))


def is_inplace(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def version_of(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
