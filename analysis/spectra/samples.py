"""The sampled form of the spectrum: random steps, several times, as where all are too many.

For each sample, the directions whose singular values exceed the cutoff span a space; the residual
says how much of the other steps lies outside it: ‖c − U Uᵀ c‖ / ‖c‖. All follows from the Gram
matrix of all steps: with A such that U = C A, Uᵀ c is Aᵀ G's column of that step.

Shapes: S step, M sampled step, K direction.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.spectra.concentration import NAMES, numbers_of
from analysis.spectra.gram import coefficients, decompose

SAMPLES = pa.schema(
    [
        pa.field("sample", pa.int32()),
        pa.field("steps", pa.int32()),  # sampled
        *(pa.field(name, pa.float64()) for name in NAMES),
        pa.field("residual", pa.float64()),  # mean ‖outside the directions‖ / ‖step‖ of the others
        pa.field("residual_norm", pa.float64()),  # mean ‖outside the directions‖, units of the step
    ]
)


def sampled_spectra(
    gram_SS: np.ndarray, size: int, repeats: int, rng: np.random.Generator, cutoff: float
) -> pd.DataFrame:
    """Return ``SAMPLES``: ``repeats`` times the spectrum of ``size`` random steps.

    ``size`` must not exceed the number of steps; at that number the residual is NaN.
    """
    rows = []
    for sample in range(repeats):
        chosen_M = np.sort(rng.choice(len(gram_SS), size, replace=False))
        numbers, residual, norm = one_sample(gram_SS, chosen_M, cutoff)
        rows.append((sample, size, *(vars(numbers)[name] for name in NAMES), residual, norm))
    return pd.DataFrame(rows, columns=SAMPLES.names)


def one_sample(gram_SS: np.ndarray, chosen_M: np.ndarray, cutoff: float):
    """Return the numbers of the sampled steps, and mean relative and absolute residual."""
    found = decompose(gram_SS[np.ix_(chosen_M, chosen_M)])
    numbers = numbers_of(found.value_K, cutoff)
    others = np.setdiff1d(np.arange(len(gram_SS)), chosen_M)
    if not len(others):
        return numbers, np.nan, np.nan
    part_MK = coefficients(np.eye(len(chosen_M)), found, int(numbers.over_cutoff))
    inside_SK = gram_SS[np.ix_(others, chosen_M)] @ part_MK
    length_S = np.sqrt(np.diag(gram_SS)[others].clip(0))
    outside_S = np.sqrt((length_S**2 - np.square(inside_SK).sum(1)).clip(0))
    there_S = length_S > 0
    relative = float((outside_S[there_S] / length_S[there_S]).mean()) if there_S.any() else np.nan
    return numbers, relative, float(outside_S.mean())
