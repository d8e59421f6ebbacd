"""Recognize loops that cannot be recorded, by the values of their gradients and weights.

The audit would stop each of them too, but without naming the cause.

Shapes: P all captured parameters.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from capture.custom_loop.passes.forward_passes import LEAVE_OUT, ForwardPass
from capture.custom_loop.ranks.wrappers import ONE_LOOP, num_processes
from capture.errors import RunError, UnitError
from capture.gradients.layout import Layout

DROPPED = "Nothing of the open segment is stored"
MULTIPLIED = 1e-4
"""Relative difference up to which two gradients count as equal when a cause is looked for."""
ONLY_MULTIPLY = (
    "Between the last backward and step, change gradients only by multiplying or clamping them in "
    "place (clip_grad_norm_, clip_grad_value_, GradScaler, p.grad.mul_), each gradient as a whole: "
    f"not p.grad[0].mul_, not by out=; {DROPPED.lower()}"
)


def require_zeroed(step: int, first: int, *, has_old_gradients: bool) -> None:
    """Raise ``RunError`` if gradients of before a step were added to.

    ``first``: the first step of this recording.
    """
    if has_old_gradients:
        since = "before the recording" if step == first else f"step {step - 1}"
        problem = f"gradients were not set to zero since {since}, so that this step has them again"
        raise RunError(f"step {step}", problem, "Call optimizer.zero_grad() after optimizer.step()")


def require_seen(units: Mapping[str, nn.Parameter], used: Collection[str], step: int) -> None:
    """Raise ``UnitError`` for a unit with a gradient to which no observed call has led."""
    for name, unit in units.items():
        if name not in used and unit.grad is not None and bool(unit.grad.any()):
            problem = (
                f"has a gradient at step {step}, but no call that used it was seen: re-entrant "
                "checkpointing, or a forward pass before the recording"
            )
            remedy = "Checkpoint with use_reentrant=False, or leave the unit out of units"
            raise UnitError(name, problem, remedy)


def require_kept(units: Mapping[str, nn.Parameter], used: Collection[str], where: str) -> None:
    """Raise ``UnitError`` for a unit that was frozen, or whose gradient has been removed."""
    for name, unit in units.items():
        if not unit.requires_grad:
            raise UnitError(name, f"was frozen before {where}", f"{LEAVE_OUT}. {DROPPED}")
        if name in used and unit.grad is None:
            raise UnitError(name, f"lost its gradient before {where}", DROPPED)


def require_exact_norms(passes: Sequence[ForwardPass], where: str) -> None:
    """Raise ``UnitError`` for a LayerNorm of bfloat16 activations on a CPU.

    Torch adds up the gradients of its weight and bias row by row in bfloat16. Each addition is
    rounded, so their sum may be off by several percent, more than a datum's part.
    """
    for use in (use for each in passes for use in each.uses.values()):
        delta = use.delta
        if use.func == "layer_norm" and delta is not None and is_half_on_cpu(delta):
            problem = (
                f"is used by layer_norm on {str(delta.dtype).removeprefix('torch.')} activations "
                f"in {where}, whose gradient torch adds up too coarsely on a CPU to be split"
            )
            remedy = "Compute this norm in float32, with autocast off"
            raise UnitError(max(use.roles), problem, f"{remedy}. {LEAVE_OUT}")


def is_half_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


def require_unchanged(layout: Layout, after_P: Tensor | None, before_P: Tensor, step: int) -> None:
    """Raise ``UnitError`` if weights have changed since the last step, number ``step`` - 1.

    ``after_P``: the weights after the last step; None before the first. ``before_P``: those now.
    """
    if after_P is None or bool((after_P == before_P).all()):
        return
    pairs = zip(after_P.split(layout.sizes), before_P.split(layout.sizes), strict=True)
    changed = [bool((one != other).any()) for one, other in pairs]
    name = layout.names[changed.index(True)]
    problem = (
        f"was changed after step {step - 1}, not by the optimizer, so that no datum accounts for it"
    )
    raise UnitError(name, problem, f"{LEAVE_OUT}, or leave it to the optimizer; {DROPPED.lower()}")


def require_resumed(
    units: Mapping[str, nn.Parameter], stored: Mapping[str, Tensor], step: int, uri: str
) -> None:
    """Raise ``RunError`` unless the units equal the checkpoint from which a run continues."""
    for name, unit in units.items():
        if name not in stored or not torch.equal(stored[name], unit.detach().cpu()):
            problem = f"continues after step {step - 1}, but {name} differs from its checkpoint"
            remedy = "Call recorder.restore(), or load your own state of that step"
            raise RunError(uri, problem, remedy)


def changed_gradients(layout: Layout, given_P: Tensor, summed_P: Tensor) -> str:
    """Say how a loop changed gradients, other than by one number; empty if it is not recognized.

    ``given_P``: gradients that the optimizer was given; ``summed_P``: sum of per-sample gradients.
    """
    most = given_P.abs().max()
    at_limit = int((given_P.abs() >= most * (1 - 1e-6)).sum())
    if at_limit > 1 and same(given_P, summed_P.clamp(-most, most)):
        return f"gradients were clipped by value, at {float(most):.2g}"
    by: dict[str, float] = {}
    pairs = zip(given_P.split(layout.sizes), summed_P.split(layout.sizes), strict=True)
    for name, (given, summed) in zip(layout.names, pairs, strict=True):
        if size := float(summed @ summed):
            by[name] = round(float(given @ summed) / size, 4)
            if not same(given, by[name] * summed):
                return ""
    low, high = (choose(by, key=by.__getitem__, default="") for choose in (min, max))
    if not by or by[high] - by[low] < MULTIPLIED * abs(by[high]):
        return ""
    return f"gradients of {low} were multiplied by {by[low]:.3g}, of {high} by {by[high]:.3g}"


def same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= MULTIPLIED * one.norm())


def unexplained_change(
    error: float, allowed: float, num_ranks: int, cause: str = ""
) -> tuple[str, str]:
    """Return problem and remedy for shifts that do not add up to the change of the weights.

    ``num_ranks``: how many processes are recorded together; ``cause``: of ``changed_gradients``.
    """
    problem = f"shifts miss the applied change by {error:.2e} of it, allowed: {allowed:.0e}"
    if (size := num_processes()) > num_ranks:
        return f"{problem}, as if gradients were averaged over {size} processes", ONE_LOOP
    return problem + (f": {cause}" if cause else ""), ONLY_MULTIPLY
