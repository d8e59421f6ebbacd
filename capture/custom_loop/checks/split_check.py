"""Law "split": a datum's captured gradient equals that of a pass of this datum alone.

The audit compares sums over datums, and a sum cannot see a wrong split. So the model is called
again with one datum's row of every input. The loss gradient that came back to this datum's rows of
the outputs is sent through that pass. The result must be the gradient that was captured for the
datum. It is not where datums interact inside the model (BatchNorm), or where an axis that is not
the datum's was taken for it (time-first modules, a head on selected positions).

A model with dropout is run without it, for the batch and for the datum, because the datum's own
mask cannot be drawn again.

Shapes: N datum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.custom_loop.checks.model_calls import ModelCall
from capture.custom_loop.checks.output_gradients import last_outputs
from capture.custom_loop.checks.own_part import NotComparableError, OwnPart
from capture.custom_loop.packing.documents import Cut, Documents
from capture.gradients.factored_algebra import dense
from capture.gradients.parameter_use import ParameterUse

TOLERANCE = 1e-3
"""Largest difference, relative to the gradient of a unit. Wrong splits differ by 0.1 and more, sums
in another order by about 1e-6."""
HALF_TOLERANCE = 5e-2
"""Like ``TOLERANCE``, under autocast, where products of other shapes are rounded differently."""
FLOOR = 1e-5
"""Differences below this part of the gradient of all units are rounding: the true gradient of a key
bias, for example, is 0."""

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Mismatch:
    """The largest difference between batch and datum."""

    what: str
    """A unit, or "the loss gradient at an output"."""
    difference: float
    """Norm of the difference, relative to the larger of the two; NaN if they have other shapes."""


def check_split(
    units: Mapping[str, nn.Parameter],
    calls: Sequence[ModelCall],
    uses: Sequence[ParameterUse],
    slot: int,
    documents: Documents | None = None,
) -> Mismatch | None:
    """Compare the captured gradient of the datum in ``slot`` with a pass of this datum alone.

    ``calls``: those that one backward pass came through, with their δ; ``uses``: those that it
    reached, as captured; ``documents``: if rows hold several datums. Returns None if one way to cut
    the inputs gives the captured gradients, and otherwise what differs in the closest of them.
    """
    own_part = OwnPart(slot, uses[0].num_datums, documents)
    captured = captured_gradients(uses, units, slot, documents)
    tolerance = tolerance_of(calls, uses)
    worst = Mismatch("the outputs", math.nan)
    for cut in own_part.ways_to_cut(calls):
        try:
            alone = gradients_alone(units, calls, cut, own_part, tolerance)
        except (NotComparableError, RuntimeError, ValueError, IndexError, TypeError):
            continue  # the model does not take inputs that are cut like this
        rest = plus(captured, times(alone.known, -1))
        own = plus(alone.known, times(alone.scaled, share_of(alone.scaled, rest)))
        found = alone.loss_mismatch or largest_difference(captured, own, tolerance)
        if found is None:
            return None
        if not worst.difference <= found.difference:
            worst = found
    return worst


def tolerance_of(calls: Sequence[ModelCall], uses: Sequence[ParameterUse]) -> float:
    """Return the largest difference that rounding explains; models may turn autocast on inside."""
    has_autocast = any(call.autocast.enabled for call in calls)
    deltas = [use.delta for use in uses if use.delta is not None]
    has_halves = any(delta.dtype.itemsize < 4 for delta in deltas)
    return HALF_TOLERANCE if has_autocast or has_halves else TOLERANCE


def captured_gradients(
    uses: Sequence[ParameterUse],
    units: Mapping[str, nn.Parameter],
    slot: int,
    documents: Documents | None,
) -> Gradients:
    """Return the captured gradient of one datum by unit, over the units that were reached."""
    found: Gradients = {}
    for use in uses:
        for name, role in use.roles.items():
            whole = use.factor(role, Tensor.float)
            if documents is None:
                own = whole.map_tensors(lambda x: x[slot : slot + 1])
            else:
                own = documents.of_slot(name, whole, slot)
            gradient = dense([own], units[name].shape)[0]
            found[name] = found[name] + gradient if name in found else gradient
    return found


@dataclass(frozen=True)
class Alone:
    """Result of a pass of one datum."""

    known: Gradients
    scaled: Gradients
    """Gradients to be added that are known up to one factor only: the loss came out of the model as
    a number, and the share that the datum's loss has in the batch's is not known."""
    loss_mismatch: Mismatch | None
    """How the loss gradient at an output differs, if the model computes the loss itself."""


def gradients_alone(
    units: Mapping[str, nn.Parameter],
    calls: Sequence[ModelCall],
    cut: Cut,
    own_part: OwnPart,
    tolerance: float,
) -> Alone:
    known, scaled, mismatch = Gradients(), Gradients(), None
    for call in calls:
        outputs = call.run_again(cut)
        if len(outputs) != len(call.outputs):
            raise NotComparableError
        call.masks |= own_part.masks(call.outputs, outputs)
        deltas = {
            number: own_part.of_delta(delta, outputs[number].shape)
            for number, delta in call.deltas.items()
            if delta.dim()
        }
        losses = {n: delta for n, delta in call.deltas.items() if not delta.dim()}
        last = last_outputs(outputs, deltas)
        sent, share = {n: deltas[n] for n in last}, None
        if losses and last:
            direct = {
                n: own_part.of_delta(x, outputs[n].shape)
                for n, x in (call.direct or {}).items()
                if n in deltas
            }
            inside = {n: deltas[n] - direct.get(n, 0) for n in last}
            share, found = compare_losses(outputs, losses, inside, tolerance)
            mismatch, sent = mismatch or found, direct
        known = plus(known, backward(outputs, sent, units))
        of_losses = backward(outputs, losses, units)
        if share is None:
            scaled = plus(scaled, of_losses)
        else:
            known = plus(known, times(of_losses, share))
    return Alone(known, scaled, mismatch)


def backward(
    outputs: Sequence[Tensor], sent: Mapping[int, Tensor], units: Mapping[str, nn.Parameter]
) -> Gradients:
    """Return the gradients of units for these δ at outputs, by number."""
    if not sent:
        return {}
    grads = torch.autograd.grad(
        [outputs[number] for number in sent],
        list(units.values()),
        list(sent.values()),
        retain_graph=True,
        allow_unused=True,
    )
    return {name: x for name, x in zip(units, grads, strict=True) if x is not None}


def compare_losses(
    outputs: Sequence[Tensor],
    losses: Mapping[int, Tensor],
    inside: Mapping[int, Tensor],
    tolerance: float,
) -> tuple[float | None, Mismatch | None]:
    """Compare the loss gradient of the datum's own loss with its part of the batch's.

    ``losses``: δ at losses that the module computed; ``inside``: what came back from these, at the
    datum's last outputs. Own and batch's are equal but for one factor, the share of the datum,
    unless the loss of the batch mixes datums. Returns the factor, and what differs; the factor is
    None if the losses are computed from none of these outputs.
    """
    grads = torch.autograd.grad(
        [outputs[number] for number in losses],
        [outputs[number] for number in inside],
        list(losses.values()),
        retain_graph=True,
        allow_unused=True,
    )
    pairs = {
        f"the loss gradient at output {n}": (x, inside[n])
        for n, x in zip(inside, grads, strict=True)
        if x is not None
    }
    if not pairs:
        return None, None
    own = {name: pair[0] for name, pair in pairs.items()}
    batch = {name: pair[1] for name, pair in pairs.items()}
    factor = share_of(own, batch)
    return factor, largest_difference(batch, times(own, factor), tolerance)


def share_of(own: Gradients, wanted: Gradients) -> float:
    """Return the one factor that brings ``own`` closest to ``wanted``."""
    shared = [name for name in own if name in wanted]
    product = sum(float((own[name] * wanted[name]).sum()) for name in shared)
    square = sum(float(own[name].square().sum()) for name in shared)
    return product / square if square else 1.0


def plus(one: Gradients, other: Gradients) -> Gradients:
    """Return the sum; a unit that is missing in one has gradient 0 there."""
    both = {name: one[name] + other[name] for name in one if name in other}
    return {**one, **other, **both}


def times(gradients: Gradients, factor: float) -> Gradients:
    return {name: gradient * factor for name, gradient in gradients.items()}


def largest_difference(captured: Gradients, alone: Gradients, tolerance: float) -> Mismatch | None:
    """Return what differs most, or None if everything is equal to ``tolerance``."""
    norm = math.sqrt(sum(float(x.square().sum()) for x in captured.values()))
    worst = None
    for name in {*captured, *alone}:
        pair = [found[name] for found in (captured, alone) if name in found]
        missed = (pair[0] - pair[1]).norm() if len(pair) == 2 else pair[0].norm()
        most = max(float(x.norm()) for x in pair)
        if not float(missed) <= tolerance * most + FLOOR * norm:
            relative = float(missed) / most
            if worst is None or not relative <= worst.difference:
                worst = Mismatch(name, relative)
    return worst
