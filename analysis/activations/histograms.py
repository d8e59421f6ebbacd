"""Histograms of neurons' activations at chosen positions.

Shapes: N datum, T position, M position of any datum, V token, I neuron of a unit, C chosen neuron,
B bin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.activations.quantities import (
    Quantity,
    Report,
    activation_blocks,
    blocks_of,
    measure,
    require_entry,
    units_of,
    with_progress,
)
from analysis.activations.scores import By
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import concat_frames
from analysis.run.run import Run
from capture.parts import KnownModel

NUM_BINS = 30
MAX_DATUMS = 2000
"""Default number of datums that ``neuron_histograms`` samples."""

HISTOGRAMS = pa.schema(
    [
        pa.field("figure", pa.int32()),  # see comparisons; 0: attributed tokens and others
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # number of the neuron (row, head) in the unit
        pa.field("group", pa.string()),  # a token; in figure 0 "attributed" or "other"
        pa.field("low", pa.float64()),  # the bin's bounds: low ≤ activation < high,
        pa.field("high", pa.float64()),  # the last bin includes its high
        pa.field("count", pa.int64()),  # positions
        pa.field("share", pa.float64()),  # count / positions of the group; 0 if it has none
    ]
)
"""One row per group and bin, bins ascending. A figure (in figure 0 a neuron) has the same bins."""


def label_tokens(run: Run, by: By) -> np.ndarray:
    """Return the token that each position of the training datums counts for, int32 [N, T]."""
    return run.target_NT if by == "target" else run.token_NT


def activations_at(
    model: KnownModel,
    token_NT: np.ndarray,
    index_M: np.ndarray,
    unit: str,
    column_C: Sequence[int],
    quantity: Quantity = "inputs",
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> np.ndarray:
    """Return a quantity of some entries of one unit at flat indices, float32 [M, C].

    A flat index is datum · T + position. Only the datums of these positions take a forward pass.
    ``report`` is called with the number of those datums done and their total.
    """
    datum_M, position_M = np.divmod(index_M, token_NT.shape[1])
    datum_N, row_M = np.unique(datum_M, return_inverse=True)
    blocks = blocks_of(len(datum_N))
    work = ReadActivations(model, token_NT[datum_N], unit, tuple(column_C), quantity)
    found = sweep(work, blocks)
    return np.concatenate(list(with_progress(found, blocks, report)))[row_M, position_M]


@dataclass(frozen=True, eq=False)
class ReadActivations:
    """Sweep work over blocks of datums: return a quantity of some entries, [N, T, C]."""

    model: KnownModel
    token_NT: np.ndarray
    unit: str
    column_C: tuple[int, ...]
    quantity: Quantity = "inputs"

    def to(self, device: str) -> "ReadActivations":
        return replace(self, model=self.model.to(device))

    def __call__(self, block: slice) -> np.ndarray:
        found = measure(self.model, self.token_NT[block], [self.unit], self.quantity)
        return found[self.unit][:, :, list(self.column_C)]


# --- bins -----------------------------------------------------------------------------------------


def bin_bounds(low: float, high: float) -> np.ndarray:
    """Return the bounds of ``NUM_BINS`` equal bins over a range, ascending, [B + 1].

    An empty range is widened to width 1.
    """
    return np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)


def bins_of(x_M: np.ndarray, bound_B: np.ndarray) -> np.ndarray:
    """Return the bin of each value, [M]; the last bin includes its upper bound."""
    return np.clip(np.searchsorted(bound_B, x_M, side="right") - 1, 0, NUM_BINS - 1)


def histogram(bound_B: np.ndarray, count_B: np.ndarray, **names: str | int) -> pd.DataFrame:
    """Build ``HISTOGRAMS`` of one group."""
    share_B = count_B / max(count_B.sum(), 1)
    values = {"low": bound_B[:-1], "high": bound_B[1:], "count": count_B, "share": share_B}
    return pd.DataFrame(names | values)


# --- many neurons: attributed tokens against others -----------------------------------------------


def neuron_histograms(
    run: Run,
    attributed: Mapping[tuple[str, int], Sequence[int] | np.ndarray],
    by: By = "target",
    max_datums: int = MAX_DATUMS,
    seed: int = 0,
    report: Report | None = None,
) -> pd.DataFrame:
    """Build ``HISTOGRAMS`` of each neuron: at positions of its attributed tokens, and elsewhere.

    ``attributed`` maps (unit, neuron) to token ids. Activations come from the run's last model on a
    random sample of the training datums and stay in memory: 56 MB per unit for 2,000 of the study's
    datums. A neuron's bins span its own range. Raises ``RunError`` if the run has no committed
    segment, and ``UnitError`` for a neuron that the model does not have.
    """
    run.require_shards("steps")
    units = list(dict.fromkeys(unit for unit, _ in attributed))
    if not units:
        return concat_frames([], HISTOGRAMS)
    model = run.parted()
    for unit, neuron in attributed:
        require_entry(model, unit, neuron)
    sample_N = np.random.default_rng(seed).permutation(run.num_datums)[:max_datums]
    label_M = label_tokens(run, by)[sample_N].ravel()
    measured = activation_blocks(model, run.token_NT[sample_N], units, report=report)
    blocks = [x for _, x in measured]
    frames = []
    for unit in units:
        x_IM = np.concatenate([x.pop(unit).reshape(-1, units_of(model)[unit]) for x in blocks]).T
        own = {neuron: tokens for (other, neuron), tokens in attributed.items() if other == unit}
        for neuron, tokens in own.items():
            is_attributed_V = np.zeros(run.num_tokens, bool)
            is_attributed_V[np.asarray(tokens, np.int64)] = True
            frames += attributed_against_others(
                unit, neuron, x_IM[neuron], is_attributed_V[label_M]
            )
    return concat_frames([pd.concat(frames)], HISTOGRAMS)


def attributed_against_others(
    unit: str, neuron: int, x_M: np.ndarray, is_attributed_M: np.ndarray
) -> list[pd.DataFrame]:
    """Build ``HISTOGRAMS`` of both groups of one neuron's positions."""
    bound_B = bin_bounds(float(x_M.min()), float(x_M.max()))
    bin_M = bins_of(x_M, bound_B)
    count_2B = np.bincount(bin_M + NUM_BINS * is_attributed_M, minlength=2 * NUM_BINS).reshape(
        2, -1
    )
    groups = {"attributed": count_2B[1], "other": count_2B[0]}
    return [
        histogram(bound_B, count_B, figure=0, unit=unit, neuron=neuron, group=group)
        for group, count_B in groups.items()
    ]
