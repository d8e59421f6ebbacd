"""One gradient per datum of the parameters of a module, by running it again for each.

Shapes: N datum, P entry of a unit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from capture.custom_loop.checks.model_calls import nothing_changes
from capture.custom_loop.checks.output_gradients import direct_parts
from capture.custom_loop.rerun.batch_axis import batch_axis, leaves_of, rows_of_datum
from capture.custom_loop.rerun.frames import ModuleFrame

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest relative difference of outputs that a batch of one explains; 0.1 for half types."""


class NotSeparableError(Exception):
    """A module cannot be run for one datum; the message completes "its module …"."""


def module_gradients(frame: ModuleFrame, units: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return each datum's gradient of the call's unsplit units, [N, P], by unit.

    Raises ``NotSeparableError`` if the module does not treat the rows of its inputs one by one.
    """
    names = list(frame.unsplit)
    found = {
        name: torch.zeros(frame.num_datums, units[name].numel(), device=units[name].device)
        for name in names
    }
    require_unchanged(frame)
    with nothing_changes(frame.module):
        for slot in range(frame.num_datums):
            grads = gradients_alone(frame, [units[name] for name in names], slot)
            for name, grad in zip(names, grads, strict=True):
                if grad is not None:
                    found[name][slot] = grad.detach().to_dense().reshape(-1)
    return found


def require_unchanged(frame: ModuleFrame) -> None:
    for _, x in leaves_of((frame.args, frame.kwargs)):
        known = frame.versions.get(id(x)) if isinstance(x, Tensor) else None
        if known is not None and x._version != known:
            raise NotSeparableError("has inputs that were changed in place before the step")


def gradients_alone(
    frame: ModuleFrame, parameters: list[nn.Parameter], slot: int
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the call's part for the datum in a slot."""
    before = torch.get_rng_state()
    args, kwargs = cut(frame, slot)
    with torch.enable_grad(), frame.autocast.again():
        try:
            out = frame.module.forward(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise NotSeparableError(f"fails on the rows of one datum: {reason}") from error
    if not torch.equal(before, torch.get_rng_state()):
        raise NotSeparableError("draws random numbers (dropout)")
    own = {place: x for place, x in leaves_of(out) if isinstance(x, Tensor)}
    outputs, deltas = list[Tensor](), dict[int, Tensor]()
    for number, (place, whole) in enumerate(frame.outputs):
        axis = batch_axis(frame.module, place, is_input=False)
        wanted = rows_of_datum(whole, axis, slot, frame.num_datums)
        outputs.append(require_same(own.get(place), wanted))
        delta = frame.deltas.get(number)
        if delta is not None and outputs[-1].requires_grad:  # it may be an input, passed through
            found = rows_of_datum(delta, axis, slot, frame.num_datums)
            assert found is not None
            deltas[number] = found
    if not deltas:
        return (None,) * len(parameters)
    direct = direct_parts(outputs, deltas)
    sent = [outputs[number] for number in direct]
    return torch.autograd.grad(sent, parameters, list(direct.values()), allow_unused=True)


def cut(frame: ModuleFrame, slot: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the rows of one datum, detached."""
    value = frame.args, frame.kwargs
    leaves, structure = tree_flatten(value)
    places = [place.partition(".")[2] for place, _ in leaves_of(value)]
    found = []
    for place, x in zip(places, leaves, strict=True):
        if isinstance(x, Tensor) and not isinstance(x, nn.Parameter):
            axis = batch_axis(frame.module, place, is_input=True)
            rows = rows_of_datum(x.detach(), axis, slot, frame.num_datums)
            # A module may change its input in place, which must not reach the batch's.
            found.append(x.detach().clone() if rows is None else rows.clone())
        else:
            found.append(x)
    return tree_unflatten(found, structure)


def require_same(found: Tensor | None, wanted: Tensor | None) -> Tensor:
    """Return an output; raises ``NotSeparableError`` unless it equals the datum's rows."""
    if found is None or wanted is None or found.shape != wanted.shape:
        raise NotSeparableError("gives outputs of another shape for one datum alone")
    allowed = ROUNDING.get(wanted.dtype, 0.1)
    difference = (found.detach() - wanted).float().norm()
    if not difference <= allowed * wanted.float().norm() + 1e-6:
        raise NotSeparableError("gives other outputs for a datum alone than in its batch")
    return found


def unsplit_units(frame: ModuleFrame, reason: NotSeparableError) -> dict[str, str]:
    """Return the units of a call with the reason why they cannot be split."""
    kind = type(frame.module).__name__
    return {name: f"{use}; {kind} {reason}" for name, use in frame.unsplit.items()}
