"""Put a model's Python attributes back after a pass that training would not have made.

Modules may count their calls, cache masks, or keep a memory. What an attribute refers to is put
back, and what lists, dicts, sets and deques hold. Objects of other classes are not looked into.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has: parameters, buffers, children, hooks."""
Containers = dict[int, tuple[Any, Any]]
"""Identity of a container → the container and a copy of it."""


@contextmanager
def attributes_put_back(model: nn.Module) -> Iterator[None]:
    """Give every module of ``model`` the attributes back that it had before the block."""
    kept = [(module, own_attributes(module)) for module in model.modules()]
    containers: Containers = {}
    for _, own in kept:
        for value in own.values():
            note_containers(value, containers)
    try:
        yield
    finally:
        for module, own in kept:
            now = vars(module)
            for name in own_attributes(module).keys() - own.keys():
                del now[name]
            now.update(own)
        for container, held in containers.values():
            refill(container, held)


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that torch does not give to every module."""
    return {name: value for name, value in vars(module).items() if name not in OF_TORCH}


def note_containers(value: Any, found: Containers) -> None:
    """Copy a container, and those in it, unless they are noted already."""
    if type(value) not in (list, dict, set, deque, tuple) or id(value) in found:
        return
    if not isinstance(value, tuple):
        found[id(value)] = value, value.copy()
    for inner in value.values() if isinstance(value, dict) else value:
        note_containers(inner, found)


def refill(container: Any, held: Any) -> None:
    """Let a container hold what it held, in the same order."""
    container.clear()
    if isinstance(container, list | deque):
        container.extend(held)
    else:
        container.update(held)
