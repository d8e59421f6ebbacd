"""What two classes of datums moved, by unit, head and neuron: three measures, each with a test.

- *rows*: the share of a datum's outlier rows that lie in the group. A datum has the same number of
  rows at every visit, so shares are compositional: what one group gains, others must lose.
- *shift*: Σ |shift| of the datum's rows in the group, for each visit, in units of the weight. It
  also rises where the datum's loss is larger all over.
- *target*: the share as in *rows*, but within the selected datums: of their rows at marked
  positions (those with the target that the behaviour is about) against their rows at all others.

Shapes: K chosen datum, S selected datum, C cell, G group of a level.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.behaviour.contrast import Contrast, Draw, paired_contrast, weighted_contrast
from analysis.behaviour.datum_sums import Cells, DatumSums
from analysis.behaviour.matching import Matched
from analysis.levels import IN_PROJECTION, OUT_PROJECTION, Groups, Level, groups_at, is_mlp
from analysis.measures.multiple_testing import benjamini_hochberg
from capture.gradients.layout import Layout

CONTRASTS = pa.schema(
    [
        pa.field("level", pa.string()),  # unit, head or neuron
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),  # -1 for a unit; head; column
        pa.field("measure", pa.string()),  # rows, shift or target
        pa.field("selected_mean", pa.float64()),  # per datum: share of rows, or weight units
        pa.field("control_mean", pa.float64()),
        pa.field("ratio", pa.float64()),  # of these; NaN where the controls have nothing
        pa.field("difference", pa.float64()),  # selected less control
        pa.field("low", pa.float64()),  # 95 % bootstrap interval of the difference, over datums
        pa.field("high", pa.float64()),
        pa.field("p", pa.float64()),  # two-sided, Welch (rows, shift) or paired t (target)
        pa.field("q", pa.float64()),  # Benjamini-Hochberg within level and measure
    ]
)
"""One row a group and measure; by measure, then p."""

LEVELS: dict[Level, str] = {"unit": "units", "head": "heads", "neuron": "neurons"}
"""Level → its table."""


def captured_levels(layout: Layout, heads: int) -> list[Groups]:
    """The groups of every level that the run captured any units of."""
    names = layout.names
    present: dict[Level, bool] = {
        "unit": True,
        "head": any(name.endswith((IN_PROJECTION, OUT_PROJECTION)) for name in names),
        "neuron": any(is_mlp(name, layout) for name in names),
    }
    return [groups_at(level, layout, heads=heads) for level in present if present[level]]


def compare_classes(
    cells: Cells, sums: DatumSums, places: Matched, visits_K: np.ndarray, draw: Draw
) -> Iterator[tuple[Level, pd.DataFrame]]:
    """rows and shift at every level, as ``CONTRASTS``. ``places`` are among the chosen datums."""
    times_K = np.bincount(places.control_SK.ravel(), minlength=len(visits_K))
    control_K = np.flatnonzero(times_K)
    measured = {"rows": shares(sums.rows_JC), "shift": sums.shift_JC / visits_K[:, None]}
    for measure, x_KC in measured.items():
        for place, groups in enumerate(cells.levels):
            x_KG = cells.at(place, x_KC)
            found = weighted_contrast(
                x_KG[places.selected_S],
                x_KG[control_K],
                times_K[control_K],
                draw,
            )
            yield groups.level, contrast_table(groups, measure, found)


def compare_positions(
    cells: Cells, sums: DatumSums, selected_S: np.ndarray, draw: Draw
) -> Iterator[tuple[Level, pd.DataFrame]]:
    """target at every level: rows at marked positions against the others of the same datums."""
    at_SC = sums.marked_JC[selected_S]
    rest_SC = sums.rows_JC[selected_S] - at_SC
    both_S = (at_SC.sum(1) > 0) & (rest_SC.sum(1) > 0)
    if both_S.sum() < 2:
        return
    for place, groups in enumerate(cells.levels):
        found = paired_contrast(
            cells.at(place, shares(at_SC[both_S])),
            cells.at(place, shares(rest_SC[both_S])),
            draw,
        )
        yield groups.level, contrast_table(groups, "target", found)


def shares(rows_KC: np.ndarray) -> np.ndarray:
    """Each cell's share of a datum's rows; 0 for a datum that has none."""
    return rows_KC / np.maximum(rows_KC.sum(1, keepdims=True), 1)


def contrast_table(groups: Groups, measure: str, found: Contrast) -> pd.DataFrame:
    """``CONTRASTS`` of one level and measure, smallest p first."""
    table = groups.frame.assign(
        measure=measure,
        selected_mean=found.first_mean,
        control_mean=found.second_mean,
        ratio=found.ratio,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        q=benjamini_hochberg(found.p),
    )
    order = np.lexsort((-np.abs(found.difference), found.p))
    return table.iloc[order]
