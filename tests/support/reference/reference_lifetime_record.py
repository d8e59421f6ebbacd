"""Slow, obvious reference for the record of lifetime shifts: dense gradients times coefficients.

Shapes: t step, N datum, S unit's shape, P captured parameter, K kept.
"""

from collections.abc import Mapping

import numpy as np
import torch
from reference_lifetime import last_weights

from analysis.run.run import Run


def dense_lifetime_shifts(run: Run) -> Mapping[tuple[int, int], np.ndarray]:
    """Return the lifetime shifts of each (step, slot), float64 [P].

    The coefficients of a step are the last weights of a training that starts at 0 and applies a
    gradient of 1 in this step and 0 in all others, with the preconditioners of the real one.
    """
    steps, config = run.steps(), run.config.training.optimizer
    datum_tN: list[list[int]] = [list(datums) for datums in steps["datums"].tolist()]
    found = {(t, n): [] for t, datum_N in enumerate(datum_tN) for n in range(len(datum_N))}
    for unit in run.layout.names:
        start = run.checkpoint(0)[unit].double()
        gradient_tNS = [
            torch.stack([torch.from_numpy(run.gradient(t, n, unit)).double() for n in datum_N])
            for t, datum_N in enumerate(datum_tN)
        ]
        clip_t, rates = steps["clip"].tolist(), steps["learning_rate"].tolist()
        given_tS = [c * own.sum(0) for c, own in zip(clip_t, gradient_tNS, strict=True)]
        zero = torch.zeros_like(start)
        for t, (clip, own_NS) in enumerate(zip(clip_t, gradient_tNS, strict=True)):
            impulse_tS = [zero + clip if s == t else zero for s in range(len(rates))]
            by_S = last_weights(config, start, given_tS, rates, impulse_tS, zero)
            for slot, own_S in enumerate(own_NS):
                found[t, slot].append((by_S * own_S).flatten().numpy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def largest(shift_P: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k largest |shift|, ascending; ties go to the lowest."""
    order_P = np.lexsort((np.arange(len(shift_P)), -np.abs(shift_P)))
    return np.sort(order_P[:k])
