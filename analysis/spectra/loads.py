"""What each datum has of a direction: ⟨u, its part of the step⟩ for a left singular vector u.

Gradients are used in factored form: for Σ_t l_t r_tᵀ, the product is Σ_t l_t · (u r_t).

Shapes: N datum of a step, T position, R row of a unit, C column, D datum of the run, K direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.spectra.reading import Report, StepSource, UnitGradients, silent
from capture.gradients.factored_algebra import entries
from capture.gradients.factors import Factor


def along(uses: list[Factor], direction_RC: Tensor) -> Tensor:
    """Return ⟨direction, gradient⟩ of each datum, [N]; the direction has the unit's shape."""
    return torch.stack([along_use(use, direction_RC) for use in uses]).sum(0)


def along_use(use: Factor, direction: Tensor) -> Tensor:
    if use.kind == "outer":
        left_NTR, right_NTC = use.sides
        return (left_NTR * (right_NTC @ direction.reshape(left_NTR.shape[2], -1).T)).sum((1, 2))
    if use.kind == "rows":
        assert use.token_NT is not None
        return (direction[use.token_NT] * use.delta_NTO).sum((1, 2))
    return entries(use) @ direction.flatten()


@dataclass(frozen=True, eq=False)
class StepLoads:
    """Loads of one step's datums on each direction."""

    step: int
    datum_N: list[int]
    load_NK: np.ndarray


def step_loads(
    source: StepSource, direction_K: Mapping[str, Tensor], report: Report = silent
) -> list[StepLoads]:
    """Return the loads of all datums in all steps, by step.

    ``direction_K``: by unit, [K, *shape of the unit], float32.
    """
    found: dict[int, dict[int, np.ndarray]] = {step: {} for step in source.steps}
    for part in source.gradients(list(direction_K), report):
        load_NK = loads_of(part, direction_K[part.unit])
        here = found[part.step]
        for datum, load_K in zip(part.datum_N, load_NK, strict=True):
            here[datum] = here[datum] + load_K if datum in here else load_K
    return [StepLoads(s, list(own), np.stack(list(own.values()))) for s, own in found.items()]


def loads_of(part: UnitGradients, direction_K: Tensor) -> np.ndarray:
    """Return the loads of one unit's gradients, float64 [N, K]."""
    columns = [along(part.uses, direction * part.multiplier) for direction in direction_K]
    return torch.stack(columns, 1).double().numpy()


def strongest_datums(steps: list[StepLoads], datums: int, most: int) -> pd.DataFrame:
    """Return the datums with the largest absolute loads on each direction, summed over steps.

    ``datums``: number of datums of the run. Columns direction, datum, load, steps (in which the
    datum was), step (of its largest load), and z: the distance of the load from what the datum
    would have if the loads of each batch were dealt at random among its datums, in standard
    deviations of that.
    """
    num_directions = steps[0].load_NK.shape[1]
    sum_DK, mean_DK, variance_DK = (np.zeros((datums, num_directions)) for _ in range(3))
    largest_DK, when_DK = np.zeros((datums, num_directions)), np.zeros((datums, num_directions))
    count_D = np.zeros(datums, np.int32)
    for found in steps:
        here = np.array(found.datum_N)
        sum_DK[here] += found.load_NK
        mean_DK[here] += found.load_NK.mean(0)
        variance_DK[here] += found.load_NK.var(0)
        count_D[here] += 1
        larger_NK = np.abs(found.load_NK) > largest_DK[here]
        when_DK[here] = np.where(larger_NK, found.step, when_DK[here])
        largest_DK[here] = np.maximum(np.abs(found.load_NK), largest_DK[here])
    deviation_DK = np.sqrt(variance_DK)
    z_DK = np.divide(
        sum_DK - mean_DK, deviation_DK, out=np.zeros_like(sum_DK), where=deviation_DK > 0
    )
    frames = []
    for k in range(num_directions):
        chosen = np.argsort(-np.abs(sum_DK[:, k]), kind="stable")[:most]
        chosen = chosen[count_D[chosen] > 0]
        frames.append(
            pd.DataFrame(
                {
                    "direction": k,
                    "datum": chosen,
                    "load": sum_DK[chosen, k],
                    "steps": count_D[chosen],
                    "step": when_DK[chosen, k],
                    "z": z_DK[chosen, k],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)
