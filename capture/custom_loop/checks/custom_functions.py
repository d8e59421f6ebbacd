"""Calls of a custom ``torch.autograd.Function``, which no torch function mode sees.

Every such call passes through ``apply`` of a base class of torch. Within ``watching_functions``,
that class has an ``apply`` of its own, which tells the tape of the call, and makes it as before.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction  # pyright: ignore

from capture.custom_loop.loop_tape import LoopTape
from capture.gradients.fused_heads import FusedHead, read_fused_head
from capture.gradients.output_hooks import on_delta
from capture.gradients.parameter_parts import roles_of
from capture.gradients.parameter_use import ParameterUse, require_datums
from capture.gradients.torch_functions import NotSplittable, flatten_arguments


@contextmanager
def watching_functions(tape: LoopTape) -> Iterator[None]:
    """Within the block, the tape sees all calls of custom functions."""

    # Another recording may be watching as well.
    before = vars(_SingleLevelFunction).get("apply")

    def call(cls: Any, *args: Any, **kwargs: Any) -> Any:
        outer = before.__get__(None, cls) if before else super(_SingleLevelFunction, cls).apply  # pyright: ignore
        return outer(*args, **kwargs)

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        func = partial(call, cls)
        if tape.paused or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        return observed(tape, cls.__name__, func, args, kwargs)

    _SingleLevelFunction.apply = classmethod(apply)  # pyright: ignore
    try:
        yield
    finally:
        if before is None:
            del _SingleLevelFunction.apply  # pyright: ignore
        else:
            _SingleLevelFunction.apply = before  # pyright: ignore


def observed(
    tape: LoopTape,
    name: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call a custom function.

    What it computes inside is not seen, so a unit among its arguments cannot be captured, unless it
    is a fused head that is known.
    """
    after = tape.on_operation and tape.on_operation(func, args, kwargs)
    out = func(*args, **kwargs)
    if after is not None:
        after(out)
    given = flatten_arguments((*args, *kwargs.values()))
    names = {tape.names[id(x)] for x in given if id(x) in tape.names}
    if names:
        try:
            record_head(tape, name, names, read_fused_head(name, args, kwargs), out[0])
        except NotSplittable as reason:
            tape.mark_unsplit(dict.fromkeys(names, str(reason)), out)
    return out


def record_head(
    tape: LoopTape, name: str, units: Collection[str], head: FusedHead, out: Tensor
) -> None:
    """Record a fused head, whose result ``out`` are log-probabilities, [M].

    Raises ``NotSplittable`` if it has no row for each datum and position.
    """
    roles = roles_of(head.call.roles, tape.names, tape.parts)
    if set(units) - set(roles):
        raise NotSplittable(f"the custom {name} as an activation")
    weight, _ = head.call.roles[0]
    assert weight is not None
    shape, N = torch.Size((head.num_rows, len(weight))), tape.num_datums or 1
    require_datums(name, shape, N)
    if not out.requires_grad:
        return
    receive = tape.receiver(
        ParameterUse(name, roles, head.call, N, head.num_rows, shape, out.device)
    )
    on_delta(out, lambda gradient_M: receive(head.logit_delta(gradient_M)))
