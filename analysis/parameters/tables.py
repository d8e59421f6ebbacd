"""Tables of the question about one parameter."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

JOB = "parameter"

ABOUT = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("index", pa.int64()),  # flat index into the unit
        pa.field("row", pa.int32()),  # of a unit with two axes, else -1
        pa.field("column", pa.int32()),
        pa.field("evidence", pa.string()),  # window, target or input
        pa.field("rows", pa.int64()),  # outlier rows of the parameter in these steps
        pa.field("datums", pa.int64()),  # distinct datums among them
        pa.field("tokens", pa.int64()),  # tokens that these rows count for, with repeats
        pa.field("first_step", pa.int32()),  # of the first row
        pa.field("last_step", pa.int32()),
        pa.field("up", pa.float64()),  # share of rows with shift > 0
        pa.field("shift", pa.float64()),  # sum of these shifts, in units of the weight
        pa.field("largest", pa.float64()),  # the largest |shift|
        pa.field("least_count", pa.int64()),  # smallest count of a token in the next column
        pa.field("chance", pa.float64()),  # see tokens.chance_of
    ]
)
"""One row."""

TOKENS = pa.schema(
    [
        pa.field("token_id", pa.int32()),
        pa.field("token", pa.string()),
        pa.field("count", pa.int64()),  # in the evidence, with repeats
        pa.field("frequency", pa.float64()),  # count / tokens of the evidence
        pa.field("train_frequency", pa.float64()),  # the same of all datums of these steps
        pa.field("relative_frequency", pa.float64()),  # frequency / train_frequency
        pa.field("frequency_rank", pa.int32()),  # by descending relative frequency, from 0
        pa.field("count_rank", pa.int32()),  # by descending count, from 0
        pa.field("chosen_rank", pa.int32()),  # among the tokens that ``select`` chose, else -1
        pa.field("beyond_chance", pa.bool_()),  # count ≥ least_count, relative frequency > chance
    ]
)
"""One row per token of the evidence, by frequency_rank."""

TABLES = {"tokens": TOKENS, "about": ABOUT}


@dataclass(frozen=True, eq=False)
class ParameterTokens:
    """Result of ``parameter_tokens``: DataFrames."""

    tokens: pd.DataFrame
    """``TOKENS``"""
    about: pd.DataFrame
    """``ABOUT``"""
