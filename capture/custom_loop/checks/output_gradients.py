"""The loss gradient at the outputs of a module, and the part of it that came from outside.

δ at an output also holds what came back through other outputs that the module computes from it: a
loss that the module returns beside its logits, or logits beside hidden states.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from capture.custom_loop.checks.model_calls import ModelCall

ROUNDING = 1e-3
"""A part of δ below this share of it is rounding: nothing came from outside."""


def computed_from(outputs: Sequence[Tensor], numbers: Iterable[int]) -> dict[int, set[int]]:
    """Return for each of these outputs those of them from which it is computed."""
    numbers = list(numbers)
    nodes = {outputs[number].grad_fn: number for number in numbers}
    found = {}
    for number in numbers:
        waiting, seen = [outputs[number].grad_fn], set[Node]()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [before for before, _ in node.next_functions]
        found[number] = {nodes[node] for node in seen if node in nodes} - {number}
    return found


def last_outputs(outputs: Sequence[Tensor], numbers: Iterable[int]) -> list[int]:
    """Return the outputs from which no other is computed.

    A model may return hidden states beside its logits. The loss gradient that came back to a hidden
    state contains what came through the logits, and must not be counted twice.
    """
    before = computed_from(outputs, numbers)
    inner = set[int]().union(*before.values())
    return [number for number in before if number not in inner]


def direct_deltas(call: ModelCall) -> dict[int, Tensor] | None:
    """Return the part of each δ of a call that came from outside of its module.

    The module is run again to find what came through its other outputs. None for a module that
    draws random numbers, which cannot be repeated.
    """
    if len(call.deltas) < 2:
        return dict(call.deltas)
    if call.is_random:
        return None
    try:
        outputs = call.run_again(lambda x: x)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None  # the module cannot be called twice; ``check_split`` finds so, too
    if len(outputs) != len(call.outputs):
        return None
    before = computed_from(outputs, call.deltas)
    direct: dict[int, Tensor] = {}
    # An output is computed from fewer than those that are computed from it, so it comes later here.
    for number in sorted(before, key=lambda n: len(before[n]), reverse=True):
        delta = call.deltas[number]
        later = [n for n in direct if number in before[n]]
        if later:
            (through,) = torch.autograd.grad(
                [outputs[n] for n in later],
                [outputs[number]],
                [direct[n] for n in later],
                retain_graph=True,
            )
            missed = delta - through
            delta = missed if missed.norm() > ROUNDING * delta.norm() else missed * 0
        direct[number] = delta
    return direct


def deltas_again(call: ModelCall, outputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return gradients at the last outputs of a call that was run again, and at its losses."""
    last = last_outputs(outputs, [n for n, delta in call.deltas.items() if delta.dim()])
    losses = {n: delta for n, delta in call.deltas.items() if not delta.dim()}
    if not losses or not last:
        return {n: call.deltas[n] for n in last} | losses
    grads = torch.autograd.grad(
        [outputs[n] for n in losses],
        [outputs[n] for n in last],
        list(losses.values()),
        retain_graph=True,
        allow_unused=True,
    )
    return {n: x for n, x in zip(last, grads, strict=True) if x is not None} | losses
