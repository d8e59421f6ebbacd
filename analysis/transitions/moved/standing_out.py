"""Which datums or neurons stand out inside a window of steps, against before and after.

An entity stands out by z: the smaller of (mean inside − mean before) and (mean inside − mean
after), in units of its standard error, so that a share that only rises or only falls does not stand
out. The null moves the window over the other steps: p is the share of all entities in all windows
of the same length elsewhere whose z is at least as large. The steps of the true window take no part
in the null. Moving whole windows keeps the correlation between neighbouring steps. False
discoveries are controlled over all entities (Benjamini and Hochberg 1995).

The words are about the record: an entity *moved* more in the window. That says nothing about what
the model would be without it.

Shapes: E entry (an entity in a step), N entity, W window, V values.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.measures.multiple_testing import benjamini_hochberg
from analysis.transitions.moved.activity import Sums

MOST_WINDOWS = 40
"""Windows of the null."""
FEWEST_WINDOWS = 3
PRIOR = 4.0
"""Weight of the pooled variance in that of an entity, in observations."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Shares of entities by step. With ``dense``, an entity without an entry in a step has 0."""

    sums: Sums
    num_entities: int
    num_steps: int
    dense: bool

    def moments(self, steps: list[range]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return number, sum and sum of squares of each entity's shares in ranges of steps, [N]."""
        inside = np.zeros(self.num_steps, bool)
        for part in steps:
            inside[part.start : part.stop] = True
        kept = inside[self.sums.step_E]
        number_E, value_E = self.sums.number_E[kept], self.sums.sum_E[kept]
        count_N, sum_N, square_N = (
            np.bincount(number_E, weights, minlength=self.num_entities)
            for weights in (None, value_E, value_E**2)
        )
        if self.dense:
            count_N = np.full(self.num_entities, inside.sum())
        return count_N.astype(np.float64), sum_N, square_N


def stand_out(entries: Entries, window: range) -> pd.DataFrame | None:
    """Return number, inside, before, after, z, p and q of each entity seen inside and outside.

    Returns None if fewer than ``FEWEST_WINDOWS`` windows fit into the other steps, or no step comes
    before the window, or after it, so that there is one difference where the null has two.
    """
    if window.start == 0 or window.stop >= entries.num_steps:
        return None
    others = null_windows(window, entries.num_steps)
    if len(others) < FEWEST_WINDOWS:
        return None
    parts = contrast(entries, window, window)
    null = [contrast(entries, other, window)["z"] for other in others]
    null_V = np.sort(np.concatenate([z_N[np.isfinite(z_N)] for z_N in null]))
    found = pd.DataFrame({"number": np.arange(entries.num_entities), **parts})
    found = found[np.isfinite(found["z"])]
    above = len(null_V) - np.searchsorted(null_V, found["z"].to_numpy() - 1e-12)
    found["p"] = (1 + above) / (1 + len(null_V))
    found["q"] = benjamini_hochberg(found["p"].to_numpy()) if len(found) else found["p"]
    return found.sort_values(["q", "z"], ascending=[True, False], kind="stable", ignore_index=True)


def null_windows(window: range, num_steps: int) -> list[range]:
    """Return up to ``MOST_WINDOWS`` windows of the same length that do not touch the window, each
    with steps before and after it."""
    length = len(window)
    starts = [
        start
        for start in range(1, num_steps - length)
        if start + length <= window.start or start >= window.stop
    ]
    if not starts:
        return []
    apart = max(1, len(starts) // MOST_WINDOWS)
    return [range(start, start + length) for start in starts[apart // 2 :: apart][:MOST_WINDOWS]]


def spreads(entries: Entries, steps: list[range]) -> np.ndarray:
    """Return the standard deviation of each entity's share in these steps, shrunk to that of all
    entities, [N]."""
    count_N, sum_N, square_N = entries.moments(steps)
    seen_N = np.maximum(count_N, 1)
    within_N = np.maximum(square_N - sum_N**2 / seen_N, 0)
    freedom = np.maximum(count_N - 1, 0)
    if freedom.sum() > 0:
        pooled = within_N.sum() / freedom.sum()
    else:  # no entity was seen twice: how they differ from each other
        pooled = square_N.sum() / seen_N.sum() - (sum_N.sum() / seen_N.sum()) ** 2
    variance_N = (within_N + PRIOR * pooled) / (freedom + PRIOR)
    return np.sqrt(np.maximum(variance_N, 1e-300))


def contrast(entries: Entries, window: range, excluded: range) -> dict[str, np.ndarray]:
    """Return inside, before, after and z of each entity, [N]; NaN where it was in no such step.

    The steps of ``excluded`` (the true window) are in neither side. The window itself takes no part
    in the standard error, neither in the true place nor elsewhere: the null would be narrower.
    """
    sides = {
        "before": without(range(window.start), excluded),
        "after": without(range(window.stop, entries.num_steps), excluded),
    }
    spread_N = spreads(entries, sides["before"] + sides["after"])
    count_N, sum_N, _ = entries.moments([window])
    means, zs = {"inside": mean(sum_N, count_N)}, []
    for name, steps in sides.items():
        other_N, total_N, _ = entries.moments(steps)
        means[name] = mean(total_N, other_N)
        with np.errstate(divide="ignore", invalid="ignore"):
            error_N = spread_N * np.sqrt(1 / count_N + 1 / other_N)
            zs.append((means["inside"] - means[name]) / error_N)
    return means | {"z": np.fmin(*zs)}


def mean(sum_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    return np.divide(sum_N, count_N, out=np.full(len(sum_N), np.nan), where=count_N > 0)


def without(side: range, excluded: range) -> list[range]:
    """Return the steps of a side that are not excluded."""
    return [
        range(side.start, max(side.start, min(side.stop, excluded.start))),
        range(min(side.stop, max(side.start, excluded.stop)), side.stop),
    ]
