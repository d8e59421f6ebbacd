"""Rows of a small layout, and the jobs that read them."""

from typing import Any

import numpy as np
import pyarrow as pa

from analysis.attribution.collect import CollectEvidence
from analysis.attribution.outlier_weights import RowReader, RowWeighting, Weight
from analysis.attribution.start_weights import StartWeights
from analysis.attribution.strongest_rows import GroupDatumPairs
from analysis.attribution.token_history import TokenHistoryJob
from analysis.levels import groups_at
from capture.gradients.layout import Layout
from capture.shards.schema import OUTLIERS
from capture.store import Store

LAYOUT = Layout({"a.linear1.weight": (3, 4), "a.linear1.bias": (3,), "b.linear2.weight": (5, 2)})
DATUMS, WINDOW, TOKENS, STEPS = 6, 8, 9, 9
READER = RowReader(LAYOUT, DATUMS, WINDOW)
GROUPS = groups_at("neuron", LAYOUT, heads=1)
TOKEN_NT = np.random.default_rng(5).integers(TOKENS, size=(DATUMS, WINDOW)).astype(np.int32)
WEIGHTS_2P = np.random.default_rng(6).choice([-1, 0, 0.5, 2], size=(2, LAYOUT.size))
STARTS = StartWeights(Store("memory://nowhere"), LAYOUT, (0, 4))
STARTS.kept.update(zip((0, 4), WEIGHTS_2P.astype(np.float32), strict=True))


def random_rows(num_rows: int, seed: int) -> pa.Table:
    """Return outlier rows in random order; shifts are multiples of 1/8, whose sums are exact."""
    rng = np.random.default_rng(seed)
    unit_M = rng.integers(len(LAYOUT.names), size=num_rows).astype(np.int16)
    columns = {
        "step": rng.integers(STEPS, size=num_rows),
        "slot": rng.integers(4, size=num_rows),
        "datum": rng.integers(DATUMS, size=num_rows),
        "unit": pa.DictionaryArray.from_arrays(unit_M, LAYOUT.names),
        "index": rng.integers(np.array(LAYOUT.sizes)[unit_M]),
        "shift": rng.choice([-4, -1, 1, 2, 8], size=num_rows) / 8,
        "position": rng.integers(WINDOW, size=num_rows),
    }
    return pa.table(columns).cast(OUTLIERS)


def collect_job(weight: Weight, token_NT: np.ndarray | None = TOKEN_NT) -> CollectEvidence:
    return CollectEvidence(READER, GROUPS, RowWeighting(weight, STARTS), token_NT, TOKENS)


def history_job(weight: Weight, *, whole_windows: bool) -> TokenHistoryJob:
    """Return a job with two windows of training and chosen tokens for most groups, not all."""
    group_J, token_J = np.divmod(np.arange(0, GROUPS.num_groups * TOKENS, 2), TOKENS)
    group_K, datum_K = np.divmod(np.arange(1, GROUPS.num_groups * DATUMS, 3), DATUMS)
    return TokenHistoryJob(
        reader=READER,
        groups=GROUPS,
        weighting=RowWeighting(weight, STARTS),
        weights=STARTS,
        token_NT=TOKEN_NT,
        whole_windows=whole_windows,
        group_J=group_J,
        token_J=token_J,
        num_tokens=TOKENS,
        first_steps=np.array([0, 5]),
        pairs=GroupDatumPairs(group_K, datum_K, GROUPS.num_groups, DATUMS),
        pair_group_P=GROUPS.group_P,
    )


def arrays(answer: object) -> list[Any]:
    """Return all arrays within an answer, as bytes."""
    if isinstance(answer, np.ndarray):
        return [answer.shape, answer.dtype, answer.tobytes()]
    if isinstance(answer, int):
        return [answer]
    return [arrays(value) for value in vars(answer).values()]
