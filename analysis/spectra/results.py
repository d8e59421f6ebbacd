"""Turn a Gram matrix, its decomposition and left vectors into tables.

Shapes: S step, R step that is kept, K direction.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.spectra.concentration import NAMES, numbers_of
from analysis.spectra.config import SpectrumConfig
from analysis.spectra.directions import Directions
from analysis.spectra.gram import Decomposition, Treatment, singular_values, treated
from analysis.spectra.neurons import NeuronGroups, learning_times
from analysis.spectra.nulls import NULLS, null_gram, random_edge
from analysis.spectra.tables import DIRECTIONS, NEURONS, STEPS

NEURONS_SHOWN = 10
"""Groups that are listed of each direction."""


@dataclass(frozen=True, eq=False)
class Analysed:
    """A Gram matrix with what was asked of it."""

    config: SpectrumConfig
    step_S: np.ndarray
    gram_SS: np.ndarray
    entries: int
    """P, the number of parameters."""


def empty(schema: pa.Schema) -> pd.DataFrame:
    """Return a table without rows."""
    return schema.empty_table().to_pandas()


def treatments(config: SpectrumConfig, steps: int) -> list[Treatment]:
    """Return the chosen treatment, and each single one to compare it with."""
    skip = config.skip or max(1, steps // 10)
    others = (
        Treatment(),
        Treatment(subtract_mean=True),
        Treatment(skip=skip),
        Treatment(unit_length=True),
    )
    return list(dict.fromkeys([config.treatment, *others]))


def spectra_frames(
    found: Analysed, value_K: np.ndarray, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of numbers, and of the singular values of the chosen treatment."""
    config = found.config
    asked = treatments(config, len(found.step_S))
    values = {(one, "run"): [singular_values(treated(found.gram_SS, one))] for one in asked}
    for null in NULLS:
        for _ in range(config.draws):  # one draw in memory at a time
            drawn_SS = null_gram(null, found.gram_SS, found.entries, rng)
            for one in asked:
                drawn_K = singular_values(treated(drawn_SS, one))
                values.setdefault((one, null), []).append(drawn_K)
    rows = [
        number_row(one.name, matrix, values[one, matrix], config.cutoff, found.entries)
        for one in asked
        for matrix in ("run", *NULLS)
    ]
    means = {null: np.mean(values[config.treatment, null], 0) for null in NULLS}
    square_K = np.square(value_K)
    values_frame = pd.DataFrame(
        {
            "direction": np.arange(len(value_K)),
            "value": value_K,
            "share": square_K / square_K.sum(),
            "gaussian": means["gaussian"],
            "norms_kept": means["norms kept"],
        }
    )
    return pd.DataFrame(rows), values_frame


def number_row(
    treatment: str, matrix: str, values: list[np.ndarray], cutoff: float, entries: int
) -> dict:
    """Return a row of the table of numbers: means and standard deviations over draws."""
    numbers = [numbers_of(value_K, cutoff) for value_K in values]
    row = {
        "treatment": treatment,
        "matrix": matrix,
        "steps": len(values[0]),
        "draws": len(values),
    }
    edges = [random_edge(float((one**2).sum()), entries, len(one)) for one in values]
    over = [int((one > edge).sum()) for one, edge in zip(values, edges, strict=True)]
    columns = {name: [getattr(one, name) for one in numbers] for name in NAMES}
    for name, column in (columns | {"over_edge": over}).items():
        row[name] = float(np.mean(column))
        row[f"{name}_sd"] = float(np.std(column, ddof=1)) if len(column) > 1 else np.nan
    return row


def direction_frames(
    found: Analysed, decomposed: Decomposition
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of the first directions, and of their right vectors over time."""
    count = found.config.directions
    step_R = found.step_S[found.config.skip :]
    value_K = decomposed.value_K[:count]
    first = replace(decomposed, right_RK=decomposed.right_RK[:, :count])
    centre_K, spread_K = first.centres(step_R)
    square_R = np.diag(treated(found.gram_SS, found.config.treatment))
    directions = pd.DataFrame(
        {
            "direction": np.arange(count),
            "value": value_K,
            "share": value_K**2 / np.square(decomposed.value_K).sum(),
            "centre": centre_K,
            "spread": spread_K,
            "null_centre": square_R @ step_R / square_R.sum(),
        },
        columns=DIRECTIONS.names,
    )
    steps = pd.DataFrame(
        {
            "direction": np.repeat(np.arange(count), len(step_R)),
            "step": np.tile(step_R, count),
            "weight": first.right_RK.T.flatten(),
        },
        columns=STEPS.names,
    )
    return directions, steps


def neuron_frames(
    found: Analysed, groups: NeuronGroups, left: Directions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of the strongest groups of each direction, and of when each learned."""
    square_S = np.diag(found.gram_SS)
    learned = learning_times(groups.frame, left.moment_G3, square_S, found.step_S)
    frames = []
    for k in range(found.config.directions):
        share_G = left.square_GK[:, k] / left.square_GK[:, k].sum()
        chosen = np.argsort(-share_G, kind="stable")[:NEURONS_SHOWN]
        strongest = learned.iloc[chosen].assign(
            direction=k,
            share=share_G[chosen],
            expected=learned["entries"].to_numpy()[chosen] / found.entries,
        )
        frames.append(strongest[NEURONS.names])
    return pd.concat(frames, ignore_index=True), learned
