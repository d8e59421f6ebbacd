"""What sets of datums still contribute to the last weights: the sums of their lifetime shifts.

A lifetime shift (``capture.optim.lifetime``) is linear in its gradient. So the sum over a set needs
one gradient a step, that of the summed losses of its datums in the batch, and it is known for every
trained parameter, captured or not. One backward replay serves all sets. With the set of all datums,
contributions and what decay left of the initial weights sum to the last weights (law 11).

Memory: for each set one float64 copy of all weights, beside the states of a segment.

Shapes: N datum of a step (slot), D training datum.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from analysis.influence.path_formulas import applied_updates
from analysis.run.run import Run
from capture.optim.lifetime import Persistence

if TYPE_CHECKING:
    from capture.unrolled.states import BackwardStep

Weights = dict[str, Tensor]
Report = Callable[[int, int], None]


def contributions(
    run: Run,
    sets: Sequence[np.ndarray],
    report: Report = lambda done, wanted: None,
    *,
    max_bytes: int | None = None,
) -> list[Weights]:
    """Return the sum of the lifetime shifts of each set of datums, by parameter, float64.

    ``sets``: datum ids. A datum counts in every step that trained on it. ``max_bytes``: bound on
    the memory for states of training. Raises what replay raises, and ``ConfigError`` for a run that
    cannot be replayed.
    """
    from capture.unrolled.states import MAX_BYTES, backward_steps  # loads the training engine

    past, markers = run.gradients.replayable, [run.start, *run.segments]
    config = past.plan.config.training.optimizer
    member_SD = np.zeros((len(sets), run.num_datums), bool)
    for row, datums in enumerate(sets):
        member_SD[row, datums] = True
    found: list[Weights] = [{} for _ in sets]
    after: dict[str, Persistence] = {}
    bound = MAX_BYTES if max_bytes is None else max_bytes
    steps = range(run.steps_done)
    for done, step in enumerate(backward_steps(past, markers, steps, max_bytes=bound), 1):
        moments, rate, weights = step.after.moments, step.learning_rate, step.before.weights
        updates = applied_updates(config, step.step, rate, step.clip, weights, moments)
        left = {name: after.get(name, Persistence()) for name in updates}
        for total, gradient in zip(found, set_gradients(step, member_SD), strict=True):
            for name, own in gradient.items():
                if name in updates:
                    shift = left[name].of_gradient(updates[name]) * own.double()
                    total[name] = total[name] + shift if name in total else shift
        after |= {name: left[name].before(update) for name, update in updates.items()}
        report(done, len(steps))
    whole = dict(run.network().named_parameters())
    nothing = {name: torch.zeros_like(own, dtype=torch.float64) for name, own in whole.items()}
    return [{name: total.get(name, own).cpu() for name, own in nothing.items()} for total in found]


def set_gradients(step: "BackwardStep", member_SD: np.ndarray) -> list[Weights]:
    """Return the gradient of the step's loss that each set's datums cause; empty without any."""
    present_SN = member_SD[:, step.planned.datum_N]
    found: list[Weights] = [{} for _ in member_SD]
    for slots in step.loss.micro_batches if present_SN.any() else ():
        leaves = {name: own.clone().requires_grad_() for name, own in step.before.weights.items()}
        loss_N = step.loss.shares(leaves, slots).sum(1)
        for total, present_N in zip(found, present_SN[:, slots.start : slots.stop], strict=True):
            if not present_N.any():
                continue
            chosen = loss_N[torch.from_numpy(present_N).to(loss_N.device)].sum()
            parts = torch.autograd.grad(
                chosen, list(leaves.values()), retain_graph=True, allow_unused=True
            )
            for name, own in zip(leaves, parts, strict=True):
                if own is not None:
                    total[name] = total[name] + own if name in total else own
    return found
