"""Contrasts of two classes of datums by unit, head and neuron: three measures, each with a test.

- *rows*: the share of a datum's outlier rows in the group. A datum has the same number of rows at
  every visit, so shares are compositional: if one group has more, others have less.
- *shift*: Σ|shift| of the datum's rows in the group per visit, in units of the weight. It also
  increases if the datum's loss is larger everywhere.
- *target*: the share as in *rows*, compared within the selected datums: rows at marked positions
  (those with the behaviour's target) against rows at all other positions.

Shapes: K chosen datum, S selected datum, C cell, G group of a level.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.behaviour.contrast import (
    BootstrapSettings,
    Contrast,
    paired_contrast,
    weighted_contrast,
)
from analysis.behaviour.datum_sums import Cells, DatumSums
from analysis.behaviour.matching import MatchedControls
from analysis.levels import (
    IN_PROJECTION,
    NO_BLOCKS,
    OUT_PROJECTION,
    Groups,
    Level,
    groups_at,
    is_mlp,
)
from analysis.measures.multiple_testing import benjamini_hochberg
from capture.gradients.layout import Layout
from capture.parts.found_parts import HeadBlocks

CONTRASTS = pa.schema(
    [
        pa.field("level", pa.string()),  # unit, head or neuron
        pa.field("unit", pa.string()),
        pa.field("group", pa.int32()),  # -1, head or column, by level
        pa.field("measure", pa.string()),  # rows, shift or target
        pa.field("selected_mean", pa.float64()),  # per datum: share of rows, or weight units
        pa.field("control_mean", pa.float64()),
        pa.field("ratio", pa.float64()),  # selected / control; NaN if the control mean is 0
        pa.field("difference", pa.float64()),  # selected − control
        pa.field("low", pa.float64()),  # 95 % bootstrap interval of the difference, over datums
        pa.field("high", pa.float64()),
        pa.field("p", pa.float64()),  # two-sided, Welch (rows, shift) or paired t (target)
        pa.field("q", pa.float64()),  # Benjamini-Hochberg within level and measure
    ]
)
"""One row per group and measure, by measure, then p."""

LEVELS: dict[Level, str] = {"unit": "units", "head": "heads", "neuron": "neurons"}
"""Level → name of its table."""


def captured_levels(
    layout: Layout, heads: int | None, blocks: Mapping[str, HeadBlocks] = NO_BLOCKS
) -> list[Groups]:
    """The groups of each level of which the run captured a unit; as for ``groups_at``."""
    names = layout.names
    present: dict[Level, bool] = {
        "unit": True,
        "head": any(
            name in blocks
            if blocks
            else heads is not None and name.endswith((IN_PROJECTION, OUT_PROJECTION))
            for name in names
        ),
        "neuron": any(is_mlp(name, layout) for name in names),
    }
    given = {"heads": heads, "blocks": blocks}
    return [groups_at(level, layout, **given) for level in present if present[level]]


def compare_classes(
    cells: Cells,
    sums: DatumSums,
    matched: MatchedControls,
    visits_K: np.ndarray,
    bootstrap: BootstrapSettings,
) -> Iterator[tuple[Level, pd.DataFrame]]:
    """Yield ``CONTRASTS`` of the measures rows and shift for each level.

    ``matched`` has indices of the chosen datums instead of ids.
    """
    times_K = np.bincount(matched.control_SK.ravel(), minlength=len(visits_K))
    control_K = np.flatnonzero(times_K)
    measured = {"rows": shares(sums.rows_JC), "shift": sums.shift_JC / visits_K[:, None]}
    for measure, x_KC in measured.items():
        for level, groups in enumerate(cells.levels):
            x_KG = cells.at(level, x_KC)
            found = weighted_contrast(
                x_KG[matched.selected_S],
                x_KG[control_K],
                times_K[control_K],
                bootstrap,
            )
            yield groups.level, contrast_table(groups, measure, found)


def compare_positions(
    cells: Cells, sums: DatumSums, selected_S: np.ndarray, bootstrap: BootstrapSettings
) -> Iterator[tuple[Level, pd.DataFrame]]:
    """Yield ``CONTRASTS`` of the measure target for each level.

    Only datums with rows at marked and at other positions count; fewer than two give no table.
    """
    at_SC = sums.marked_JC[selected_S]
    rest_SC = sums.rows_JC[selected_S] - at_SC
    both_S = (at_SC.sum(1) > 0) & (rest_SC.sum(1) > 0)
    if both_S.sum() < 2:
        return
    for level, groups in enumerate(cells.levels):
        found = paired_contrast(
            cells.at(level, shares(at_SC[both_S])),
            cells.at(level, shares(rest_SC[both_S])),
            bootstrap,
        )
        yield groups.level, contrast_table(groups, "target", found)


def shares(rows_KC: np.ndarray) -> np.ndarray:
    """Share of each cell in a datum's rows; 0 for a datum without rows."""
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
