"""Law "split" while a run is captured: a datum's captured gradient is that of this datum alone.

The audit compares sums over datums, and a sum cannot see a wrong split. So before the first step,
and before steps drawn from the seed, one datum of each worker goes through the model alone, with
the same weights and masks. Its gradient must be the one that capture then records of the batch. It
is not where datums interact in the model, as through BatchNorm or a router that balances its load
over the batch.

Shapes: N datum, T token, V vocabulary.
"""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from capture.engine.engine import Engine
from capture.errors import SplitError
from capture.gradients.factored_algebra import dense
from capture.gradients.factors import Factors
from capture.models.hub import first_line

EVERY = 200
"""One step in so many is checked, on average, besides the first."""
UNCHECKED = "steps in which the split by datum could not be checked"
"""What a run says of such steps, followed by the reason; see ``Marker.unchecked``."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest difference by precision, relative to the gradient of a unit. Wrong splits differ by about
the gradient itself; sums in another order by 1e-6, and by 1e-2 with products in bfloat16."""
SMALL_SHARE = 2.0**-6
"""Differences are relative to at least this share of the whole gradient: that of a key's bias, for
example, is 0 but for rounding."""
REMEDY = "Nothing of the open segment was stored. Run: ontogeny selfcheck CONFIG"


def is_drawn(seed: int, step: int) -> bool:
    """Return whether the split is checked at a step, the same on every worker."""
    # A checksum spreads steps evenly, and takes a hundredth of the time of a generator.
    return zlib.crc32(f"{seed} {step}".encode()) % EVERY == 0


@dataclass(frozen=True)
class DatumAlone:
    """The gradient of one datum's share of the batch's loss, by a pass of this datum alone."""

    slot: int
    """Slot of the datum in the whole batch."""
    gradients: dict[str, Tensor]
    """Gradients by unit, on the CPU, so that the batch has the device's memory for itself."""


def datum_alone(
    engine: Engine, token_NT: Tensor, target_NT: Tensor, slot: int, step: int
) -> DatumAlone:
    """Return the gradient of the datum in one slot; weights, buffers and random state stay.

    Raises ``SplitError`` if the model cannot run on one datum.
    """
    model = engine.model
    # Other tensors with the same values: DeepSpeed has hooks on the gradients of the units.
    units = {name: own.detach().requires_grad_() for name, own in engine.units.items()}
    precision = torch.autocast(
        engine.device.type, torch.bfloat16, enabled=engine.config.precision == "bfloat16"
    )
    token_1T, target_1T = token_NT[slot : slot + 1], target_NT[slot : slot + 1]
    scored = slice(-1, None) if engine.last_only else slice(None)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [engine.device] if engine.device.type == "cuda" else []
    model.train()
    try:
        with torch.random.fork_rng(devices=devices), precision, engine.suppressing(step):
            masks = engine.masks([slot], step, token_NT.shape[1])
            logit_1TV = functional_call(model, units, (token_1T, masks))
    except (RuntimeError, ValueError) as error:
        problem = f"the model fails on a batch of one datum: {first_line(error)}"
        raise SplitError(f"step {step}", problem, REMEDY) from error
    lost = F.cross_entropy(logit_1TV[0, scored].float(), target_1T[0, scored], reduction="sum")
    grads = torch.autograd.grad(
        lost / target_NT.numel(), list(units.values()), allow_unused=True, materialize_grads=True
    )
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # BatchNorm's running statistics, for example
            if not torch.equal(buffer, kept[name]):
                buffer.copy_(kept[name])
    return DatumAlone(slot, {n: grad.cpu() for n, grad in zip(units, grads, strict=True)})


def require_split(
    engine: Engine, alone: DatumAlone, factors: Factors, first_slot: int, step: int
) -> None:
    """Raise ``SplitError`` unless the captured gradient of a datum is that of the datum alone.

    ``factors``: of this worker's slots, which begin at ``first_slot``. All workers must call this,
    each with a datum of its own; they raise together, so that none waits for another.
    """
    problem = split_problem(engine, alone, factors, first_slot)
    for found in engine.group.all_gather_object(problem):
        if found:
            raise SplitError(f"step {step}", found, REMEDY)


def split_problem(engine: Engine, alone: DatumAlone, factors: Factors, first_slot: int) -> str:
    """Return how the captured gradient of a datum differs from its own; empty if it does not."""
    row = alone.slot - first_slot
    floor = SMALL_SHARE * math.sqrt(sum(float(x.square().sum()) for x in alone.gradients.values()))
    worst, unit = 0.0, ""
    for name, wanted in alone.gradients.items():
        own = [use.map_tensors(lambda x: x[row : row + 1]) for use in factors[name]]
        found = dense(own, wanted.shape)[0].cpu()
        missed = float((found - wanted).norm())
        error = missed / max(float(wanted.norm()), floor) if missed else 0.0
        if not error <= worst:  # also true for NaN
            worst, unit = error, name
    # Gradients that are not finite are reported as divergence when the step has been taken.
    if worst <= TOLERANCE[engine.config.precision] or not math.isfinite(worst):
        return ""
    return (
        f"{unit}: the gradient captured for datum {alone.slot} of the batch differs by "
        f"{worst:.0%} from that of a pass of this datum alone; {cause_of_mixing(engine.model)}"
    )


def cause_of_mixing(model: nn.Module) -> str:
    """Return the module that probably mixes datums, or the kinds of modules that do."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{name} ({type(module).__name__}) normalizes over the batch"
    return (
        "a module mixes the datums of a batch or draws random numbers, or capture misreads how "
        "this parameter is used"
    )
