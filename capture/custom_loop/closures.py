"""Optimizer steps that are given a closure, as Lightning's automatic optimization gives one.

The closure runs the forward and backward pass inside ``optimizer.step``. What a step observes
before the update is then observed at the end of the closure.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any


def run_after_closure(
    observe: Callable[[], None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Call ``observe``, or return arguments of ``step`` with a closure that calls it at its end.

    ``args`` and ``kwargs``: those of ``optimizer.step``, the optimizer first. The supported
    optimizers call their closure once, before they read any gradient.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        observe()
        return None

    @wraps(closure)
    def observed(*inner: Any, **named: Any) -> Any:
        loss = closure(*inner, **named)
        observe()
        return loss

    if len(args) > 1:
        return (args[0], observed, *args[2:]), kwargs
    return args, kwargs | {"closure": observed}
