"""Train a run again with other weights of its datums, in the same order and with the same seeds.

Everything else stays: initial weights, order, learning rates, dropout masks, clipping, and the
number of datums by which the mean loss divides. With all weights 1 the last checkpoint comes out
with the same bits. Steps before the first changed weight need not be taken: training starts at the
last checkpoint before it.
"""

import math
from collections.abc import Callable
from itertools import islice

import torch

from capture.engine.build import restore
from capture.engine.left_out import batch_of
from capture.engine.observer import to_device
from capture.errors import InfluenceError
from capture.format import checkpoint
from capture.format.chain import read_segments, require_start
from capture.optim.optimizer import Tensors
from capture.replay.segments import ReplayableRun, as_captured
from capture.retraining.weighted_engine import WeightedEngine
from capture.retraining.weighting import Weighting

Report = Callable[[int, int], None]
"""Called after every step with the number of steps taken and to take."""


def retrain(
    run: ReplayableRun,
    weighting: Weighting,
    *,
    first_step: int | None = None,
    end_step: int | None = None,
    report: Report = lambda done, wanted: None,
) -> Tensors:
    """Return the weights (as in a checkpoint, on the CPU) after training with these data weights.

    ``first_step``: take at least the steps from this one on; None: those from the first changed
    weight on. ``end_step``: number of updates of the result; None: those that the run committed.

    Raises ``InfluenceError`` if training diverges, and ``ShardError`` for a missing checkpoint.
    """
    markers = [require_start(run.store), *read_segments(run.store)]
    end_step = markers[-1].end_step if end_step is None else end_step
    if first_step is None:
        first_step = weighting.first_change(run.plan, end_step)
    marker = [marker for marker in markers if marker.end_step <= first_step][-1]
    engine = WeightedEngine.of(run.plan)
    restore(engine, run.store, marker)
    count = end_step - marker.end_step
    token_NT, target_NT = to_device(run.plan.corpus.train, engine.device)
    for planned in islice(run.plan.planned_steps(marker.end_step), count):
        batch = batch_of(run.plan, token_NT, target_NT, planned)
        weight_N = torch.from_numpy(weighting.of_batch(planned.step, planned.datum_N))
        with as_captured(run):
            step = engine.weighted_step(*batch, weight_N, step=planned.step, epoch=planned.epoch)
        if not math.isfinite(step.loss + step.gradient_norm):
            problem = f"retraining with these weights has diverged (loss {step.loss:g})"
            raise InfluenceError(f"step {planned.step}", problem, "Choose weights nearer to 1")
        report(planned.step + 1 - marker.end_step, count)
    return checkpoint.snapshot(engine.model)
