"""Trainings of a run that differ in its data, or by a tiny change of its initial weights.

Shapes: D datum, M retraining, Q query.
"""

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from analysis.influence.judge.designs import Variation
from analysis.influence.judge.retrainings import read_kept, require_kept
from analysis.run.run import Run
from benchmarks.effects.values import Effects
from capture.engine.build import restore
from capture.engine.observer import to_device
from capture.format import checkpoint
from capture.format.chain import require_start
from capture.retraining.smoothness import change_weights
from capture.retraining.weighted_engine import WeightedEngine


def effects_after(effects: Effects, variations: Sequence[Variation]) -> np.ndarray:
    """Return the queries after each retraining, [M, Q]; makes those that the run lacks."""
    require_kept(effects.run, variations)
    return effects.at(read_kept(effects.run, one) for one in variations)


def effects_of_changed_weights(effects: Effects, size: float, count: int) -> np.ndarray:
    """Return the queries after training from initial weights that differ at random, [M, Q].

    ``size``: norm of the change relative to that of the weights.
    """
    return effects.at(trained_from_changed(effects.run, size, seed) for seed in range(count))


def trained_from_changed(run: Run, size: float, seed: int) -> Mapping[str, Tensor]:
    """Return the last weights of one such training."""
    past = run.gradients.replayable
    engine = WeightedEngine.of(past.plan)
    restore(engine, past.store, require_start(past.store))
    change_weights(engine, size, seed)
    token_NT, target_NT = to_device(past.plan.corpus.train, engine.device)
    for planned in islice(past.plan.planned_steps(0), run.steps_done):
        datum_N = torch.from_numpy(planned.datum_N)
        numbers = {"step": planned.step, "epoch": planned.epoch}
        engine.step(token_NT[datum_N], target_NT[datum_N], **numbers)
    return checkpoint.snapshot(engine.model)
