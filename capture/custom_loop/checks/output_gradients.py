"""The loss gradient at the outputs of a module, and the part of it that came from outside.

δ at an output also holds what came back through other outputs that the module computes from it: a
loss that the module returns beside its logits, or logits beside hidden states.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from capture.custom_loop.checks.model_calls import ModelCall

ROUNDING = 1e-3
"""A part of δ below this share of it is rounding: nothing came from outside."""


def computed_from(outputs: Sequence[Tensor], numbers: Iterable[int]) -> dict[int, set[int]]:
    """Return for each of these outputs those of them from which it is computed."""
    edges: dict[tuple[Node | None, int], list[int]] = {}
    for number in numbers:
        edges.setdefault((outputs[number].grad_fn, outputs[number].output_nr), []).append(number)
    found = {}
    for number in (n for same in edges.values() for n in same):
        start = outputs[number].grad_fn
        waiting, seen, reached = [start], set[Node](), set[tuple[Node | None, int]]()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                reached |= set(node.next_functions)
                waiting += [before for before, _ in node.next_functions]
        same = edges[start, outputs[number].output_nr]
        twins = same[: same.index(number)]  # one tensor that is returned twice
        found[number] = {n for edge in reached for n in edges.get(edge, ())} | set(twins)
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
    return direct_parts(outputs, call.deltas)


def direct_parts(outputs: Sequence[Tensor], deltas: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the part of each δ that did not come through other outputs, by number.

    ``outputs``: of one call of the module; ``deltas``: all that came back to each of them.
    """
    before = computed_from(outputs, deltas)
    direct: dict[int, Tensor] = {}
    # An output is computed from fewer than those that are computed from it, so it comes later here.
    for number in sorted(before, key=lambda n: len(before[n]), reverse=True):
        delta = deltas[number]
        later = [n for n in direct if number in before[n]]
        if later:
            (through,) = torch.autograd.grad(
                [outputs[n] for n in later],
                [outputs[number]],
                [direct[n] for n in later],
                retain_graph=True,
                allow_unused=True,
            )
            missed = delta if through is None else delta - through
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
