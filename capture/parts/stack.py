"""The stack of layers of a model: where it is, and passes that skip its first layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capture.errors import ConfigError


def layer_names(network: nn.Module, given: str | None) -> tuple[str, ...]:
    """Return the modules of the layers, in order; empty if there is no stack of layers.

    The stack is the largest outermost ``ModuleList``, or ``Sequential`` of modules of one class.
    Raises ``ConfigError`` if the module ``given`` does not exist or has no children.
    """
    if given is not None:
        modules = dict(network.named_modules())
        if given not in modules or not list(modules[given].children()):
            problem = f"got {given!r}, which is no module that holds layers"
            raise ConfigError("ModelParts.layers", problem, hint_of(network))
        return children_of(network, given)
    stacks = [name for name, part in network.named_modules() if name and is_stack(part)]
    outer = [name for name in stacks if not any(name.startswith(f"{s}.") for s in stacks)]
    if not outer:
        return ()
    sizes = {name: num_parameters(network.get_submodule(name)) for name in outer}
    return children_of(network, max(outer, key=lambda name: sizes[name]))


def children_of(network: nn.Module, name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{child}" for child, _ in network.get_submodule(name).named_children())


def is_stack(part: nn.Module) -> bool:
    kinds = {type(child) for child in part.children() if next(child.children(), None)}
    if isinstance(part, nn.ModuleList):
        return bool(kinds)
    return isinstance(part, nn.Sequential) and len(kinds) == 1 and len(part) > 1


def num_parameters(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def hint_of(network: nn.Module) -> str:
    lists = [name for name, part in network.named_modules() if name and list(part.children())]
    return f"Modules with children: {', '.join(lists[:8])}" if lists else ""


def state_of(values: Any) -> Tensor | None:
    """Return the first floating-point tensor among a call's arguments or results."""
    if isinstance(values, Tensor):
        return values if values.is_floating_point() else None
    return next((x for x in values if isinstance(x, Tensor) and x.is_floating_point()), None)


Entering = Callable[[int, Tensor], None]
"""Called with a layer's number and its input, when the layer is entered."""


@contextmanager
def watched(layers: Sequence[nn.Module], entering: Entering, left: Entering) -> Iterator[None]:
    """Call ``entering`` with each layer's input and ``left`` with what it returns, within."""

    def before(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state = state_of((*args, *kwargs.values()))
            if state is not None:
                entering(number, state)

        return hook

    def after(number: int) -> Callable[..., None]:
        return lambda module, args, output: left(number, output)

    hooks = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(before(number), with_kwargs=True))
        hooks.append(layer.register_forward_hook(after(number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def skipped(
    layers: Sequence[nn.Module], state: Tensor, rest: tuple[Any, ...] | None
) -> Iterator[None]:
    """Let these layers do nothing: the last of them returns ``state``, the others their input.

    ``rest`` is what a layer returns beside its state; None if it returns the state alone.
    """

    def doing_nothing(state: Tensor | None) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            out = state_of((*args, *kwargs.values())) if state is None else state
            return out if rest is None else (out, *rest)

        return forward

    # An instance's own ``forward`` hides its class's; some libraries have set one already.
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = doing_nothing(state if layer is layers[-1] else None)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = own


def logits_of(output: Any) -> Tensor | None:
    """Return the logits of a model's output: itself, its ``logits``, or the first of a tuple."""
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple | list) and found else found
    return found if isinstance(found, torch.Tensor) and found.dim() == 3 else None
