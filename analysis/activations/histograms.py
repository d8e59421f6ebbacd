"""How the activations of some neurons are spread: the values at chosen positions, counted in bins.

Shapes: N datum, T position, M position of any datum, V token, I neuron of a unit, C chosen neuron,
B bin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.activations.scores import (
    By,
    Report,
    activation_blocks,
    blocks_of,
    mlp_units,
    require_neuron,
    unit_inputs,
    with_progress,
)
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import joined
from analysis.run.run import Run
from capture.models.transformer import LanguageModel

NUM_BINS = 30
MAX_DATUMS = 2000
"""Datums that ``neuron_histograms`` looks at."""

HISTOGRAMS = pa.schema(
    [
        pa.field("figure", pa.int32()),  # of the comparisons; 0: taught tokens against others
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # column of the unit
        pa.field("group", pa.string()),  # "taught" or "other" (figure 0), or a token
        pa.field("low", pa.float64()),  # the bin's bounds: low ≤ activation < high,
        pa.field("high", pa.float64()),  # the last one's high included
        pa.field("count", pa.int64()),  # positions
        pa.field("share", pa.float64()),  # of the group's positions; 0 where it has none
    ]
)
"""One row a group and bin, bins ascending; those of one figure (or neuron, in figure 0) agree."""


def label_tokens(run: Run, by: By) -> np.ndarray:
    """The token that each position of the training datums counts for, int32 [N, T]."""
    return run.target_NT if by == "target" else run.token_NT


def activations_at(
    model: LanguageModel,
    token_NT: np.ndarray,
    place_M: np.ndarray,
    unit: str,
    column_C: Sequence[int],
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> np.ndarray:
    """Activations of neurons of one unit at places (datum · T + position), float32 [M, C].

    Only the datums of these places take a forward pass.
    """
    datum_M, position_M = np.divmod(place_M, token_NT.shape[1])
    datum_N, row_M = np.unique(datum_M, return_inverse=True)
    blocks = blocks_of(len(datum_N))
    found = sweep(ReadActivations(model, token_NT[datum_N], unit, tuple(column_C)), blocks)
    return np.concatenate(list(with_progress(found, blocks, report)))[row_M, position_M]


@dataclass(frozen=True, eq=False)
class ReadActivations:
    """The work over blocks of datums: activations of some neurons, [N, T, C]."""

    model: LanguageModel
    token_NT: np.ndarray
    unit: str
    column_C: tuple[int, ...]

    def to(self, device: str) -> "ReadActivations":
        return replace(self, model=self.model.to(device))

    def __call__(self, block: slice) -> np.ndarray:
        inputs = unit_inputs(self.model, self.token_NT[block], [self.unit])
        return inputs[self.unit][:, :, list(self.column_C)]


# --- bins -----------------------------------------------------------------------------------------


def bin_bounds(low: float, high: float) -> np.ndarray:
    """Bounds of equal bins over a range, ascending, [B + 1]; of width 1 in all where it is none."""
    return np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)


def bins_of(x_M: np.ndarray, bound_B: np.ndarray) -> np.ndarray:
    """The bin of each value within the bounds."""
    return np.clip(np.searchsorted(bound_B, x_M, side="right") - 1, 0, NUM_BINS - 1)


def histogram(bound_B: np.ndarray, count_B: np.ndarray, **names: str | int) -> pd.DataFrame:
    """``HISTOGRAMS`` of one group."""
    share_B = count_B / max(count_B.sum(), 1)
    values = {"low": bound_B[:-1], "high": bound_B[1:], "count": count_B, "share": share_B}
    return pd.DataFrame(names | values)


# --- many neurons: taught tokens against others ---------------------------------------------------


def neuron_histograms(
    run: Run,
    taught: Mapping[tuple[str, int], Sequence[int] | np.ndarray],
    by: By = "target",
    max_datums: int = MAX_DATUMS,
    seed: int = 0,
    report: Report | None = None,
) -> pd.DataFrame:
    """``HISTOGRAMS`` of each (unit, neuron): where its taught tokens (ids) are, and elsewhere.

    Of the run's last model, on a random sample of the training datums whose activations are held
    in memory: 56 MB a unit asked about, for 2,000 of the study's datums. A neuron's bins span its
    own range. Raises ``RunError`` where nothing is committed, ``UnitError`` for a neuron that
    the model lacks.
    """
    run.require_shards("steps")
    units = list(dict.fromkeys(unit for unit, _ in taught))
    if not units:
        return joined([], HISTOGRAMS)
    model = run.model()
    for unit, neuron in taught:
        require_neuron(model, unit, neuron)
    sample_N = np.random.default_rng(seed).permutation(run.num_datums)[:max_datums]
    label_M = label_tokens(run, by)[sample_N].ravel()
    blocks = [x for _, x in activation_blocks(model, run.token_NT[sample_N], units, report)]
    frames = []
    for unit in units:
        x_IM = np.concatenate([x.pop(unit).reshape(-1, mlp_units(model)[unit]) for x in blocks]).T
        own = {neuron: tokens for (other, neuron), tokens in taught.items() if other == unit}
        for neuron, tokens in own.items():
            is_taught_V = np.zeros(run.num_tokens, bool)
            is_taught_V[np.asarray(tokens, np.int64)] = True
            frames += attributed_against_others(unit, neuron, x_IM[neuron], is_taught_V[label_M])
    return joined([pd.concat(frames)], HISTOGRAMS)


def attributed_against_others(
    unit: str, neuron: int, x_M: np.ndarray, is_taught_M: np.ndarray
) -> list[pd.DataFrame]:
    """``HISTOGRAMS`` of both groups of one neuron's positions."""
    bound_B = bin_bounds(float(x_M.min()), float(x_M.max()))
    bin_M = bins_of(x_M, bound_B)
    count_2B = np.bincount(bin_M + NUM_BINS * is_taught_M, minlength=2 * NUM_BINS).reshape(2, -1)
    groups = {"taught": count_2B[1], "other": count_2B[0]}
    return [
        histogram(bound_B, count_B, figure=0, unit=unit, neuron=neuron, group=group)
        for group, count_B in groups.items()
    ]
