"""Tables of attribution: groups, tokens, windows of training, and datums."""

from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

JOB = "attribute"

GROUP = [
    pa.field("level", pa.string()),  # parameter, neuron, row, unit or head
    pa.field("unit", pa.string()),  # for a head layers.L.self_attn, both its units
    pa.field("group", pa.int32()),  # flat index, column, row, -1 or head, by level
]
"""Columns that identify a group, in every table."""
TOKEN = [pa.field("token_id", pa.int32()), pa.field("token", pa.string())]

GROUPS = pa.schema(
    [
        *GROUP,
        pa.field("rows", pa.int64()),  # outlier rows of the group that count
        pa.field("weight", pa.float64()),  # of all evidence of the group, over all tokens
        pa.field("tokens", pa.list_(pa.string())),  # chosen, strongest first; may be empty
    ]
)
"""One row per group that has evidence, by descending weight (with tallies, weight / mean weight of
the unit's neurons, because units differ in scale); pooled neurons come before parameters."""

TOKENS = pa.schema(
    [
        *GROUP,
        pa.field("rank", pa.int32()),  # in the group, 0 is the strongest
        *TOKEN,
        pa.field("score", pa.float64()),  # descending with rank; its meaning depends on the method
        pa.field("p", pa.float64()),  # probability of as much by chance, or NaN
        pa.field("q", pa.float64()),  # false discovery rate in the group, or NaN
        pa.field("count", pa.int64()),  # rows (times occurrences) or positions behind it
        pa.field("weight", pa.float64()),  # of the evidence for the token
        pa.field("expected", pa.float64()),  # weight that the background would give
        pa.field("relative_frequency", pa.float64()),  # weight / expected
        pa.field("up", pa.float64()),  # weight of rows with shift > 0, or NaN
        pa.field("down", pa.float64()),  # weight of the other rows, or NaN
        pa.field("strengthened", pa.float64()),  # weight of rows that moved away from zero, or NaN
        pa.field("weakened", pa.float64()),  # weight of the other rows, or NaN
    ]
)
"""One row per group and chosen token; groups in the order of GROUPS, tokens by rank."""

WINDOWS = pa.schema(
    [
        *GROUP,
        *TOKEN,
        pa.field("window", pa.int32()),  # of training, from 0
        pa.field("first_step", pa.int32()),
        pa.field("end_step", pa.int32()),  # one past the last
        pa.field("weight", pa.float64()),  # of the evidence from these steps
        pa.field("expected", pa.float64()),  # weight that the background of these steps would give
    ]
)
"""One row per row of TOKENS and window of training, in the order of TOKENS, then time."""

DATUMS = pa.schema(
    [
        *GROUP,
        pa.field("datum", pa.int32()),
        pa.field("rows", pa.int32()),  # outlier rows of the datum in the group
        pa.field("weight", pa.float64()),  # of these rows
        pa.field("step", pa.int32()),  # of the row of largest |shift| among them
        pa.field("position", pa.int16()),  # in the window, of that row
        pa.field("shift", pa.float32()),  # of that row, in units of the weight
    ]
)
"""One row per group and datum; groups in the order of GROUPS, datums by descending weight."""

PARAMETERS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("index", pa.int32()),  # flat index into the unit
        pa.field("row", pa.int32()),
        pa.field("column", pa.int32()),  # the neuron, in an MLP unit
        pa.field("rows", pa.int64()),  # outlier rows of the parameter
        pa.field("rank", pa.int32()),  # by rows among all weights, from 0
        pa.field("token", pa.string()),
        pa.field("count", pa.int64()),  # of the token in the evidence of these rows
        pa.field("frequency", pa.float64()),  # weight of the token / weight of all evidence
        pa.field("train_frequency", pa.float64()),  # the same in the background
        pa.field("relative_frequency", pa.float64()),  # frequency / train_frequency
        pa.field("token_id", pa.int32()),
    ]
)
"""One row per parameter and token chosen by *study*; by rank, then descending count."""

CONFIRMED = pa.schema(
    [
        *GROUP,
        pa.field("rank", pa.int32()),  # as in TOKENS
        *TOKEN,
        pa.field("positions", pa.int64()),  # held-out positions with the token as target
        pa.field("change", pa.float64()),  # mean of log p(token), ablated - clean, nats
        pa.field("low", pa.float64()),  # its 95 % interval (Student's t over positions)
        pa.field("high", pa.float64()),
        pa.field("initial_change", pa.float64()),  # the same as change in the initial weights
        pa.field("p", pa.float64()),  # of no effect, or of one that is usual for unnamed tokens
        pa.field("q", pa.float64()),  # false discovery rate over all pairs that were tested
        pa.field("confirmed", pa.bool_()),
        pa.field("rms_change", pa.float64()),  # of the group, over all held-out positions, nats
        pa.field("alive", pa.bool_()),  # whether this is 0.001 or more
        pa.field("first_step", pa.int32()),  # of the window with the most evidence
        pa.field("end_step", pa.int32()),  # one past its last step
    ]
)
"""One row per row of TOKENS that ablation can test; empty unless ``--confirm``. NaN: not tested,
because too few held-out positions have the token."""

NULLS = pa.schema(
    [
        pa.field("case", pa.string()),  # record, or one of the nulls
        pa.field("pairs", pa.int64()),  # (group, token) pairs that were tested
        pa.field("confirmed_pairs", pa.int64()),
        pa.field("groups", pa.int64()),  # groups with a tested pair
        pa.field("confirmed_groups", pa.int64()),  # groups with a confirmed pair
        pa.field("low", pa.float64()),  # 95 % Wilson interval of confirmed_groups / groups
        pa.field("high", pa.float64()),
    ]
)
"""How much is confirmed, of the record and of nulls; empty unless ``--confirm``."""

CONTRIBUTIONS = pa.schema(
    [
        *GROUP,
        pa.field("rank", pa.int32()),  # by |contribution|, from 0; the last two rows are sums
        *TOKEN,  # id -1: all other tokens; -2: decay of the initial weights
        pa.field("contribution", pa.float64()),  # of its lifetime shifts to the change of the group
        pa.field("share", pa.float64()),  # of the size of the change; NaN without a change
    ]
)
"""The tokens of each neuron with the largest |contribution|, all others, and decay. The shares of a
neuron sum to 1. Empty unless lifetime shifts of all steps are counted, for neurons."""

TABLES = {
    "groups": GROUPS,
    "tokens": TOKENS,
    "windows": WINDOWS,
    "datums": DATUMS,
    "parameters": PARAMETERS,
    "confirmed": CONFIRMED,
    "nulls": NULLS,
    "contributions": CONTRIBUTIONS,
}


@dataclass(frozen=True, eq=False)
class Attribution:
    """Result of ``attribute``: DataFrames."""

    groups: pd.DataFrame
    """``GROUPS``"""
    tokens: pd.DataFrame
    """``TOKENS``"""
    windows: pd.DataFrame
    """``WINDOWS``"""
    datums: pd.DataFrame
    """``DATUMS``"""
    parameters: pd.DataFrame
    """``PARAMETERS``"""
    confirmed: pd.DataFrame = field(default_factory=lambda: CONFIRMED.empty_table().to_pandas())
    """``CONFIRMED``"""
    nulls: pd.DataFrame = field(default_factory=lambda: NULLS.empty_table().to_pandas())
    """``NULLS``"""
    contributions: pd.DataFrame = field(
        default_factory=lambda: CONTRIBUTIONS.empty_table().to_pandas()
    )
    """``CONTRIBUTIONS``"""
