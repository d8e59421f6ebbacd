"""The tables of ``bigrams``: shifts of bigram logits, and the datums behind them."""

import pyarrow as pa

JOB = "bigrams"

BIGRAMS = pa.schema(
    [
        pa.field("first_step", pa.int32()),  # the shift is over these steps,
        pa.field("end_step", pa.int32()),  # this one not among them
        pa.field("rank", pa.int32()),  # by |shift| over these steps, from 0
        pa.field("token_id", pa.int32()),  # w, the token that predicts
        pa.field("token", pa.string()),
        pa.field("next_id", pa.int32()),  # v, the token predicted
        pa.field("next", pa.string()),
        pa.field("shift", pa.float64()),  # of the logit
        pa.field("carry", pa.float64()),  # of it, momentum's and weight decay's part
        pa.field("missed", pa.float64()),  # of it, what neither datums nor carry explain
    ]
)
"""One row a bigram, over a range of steps or for each step; carry and missed are NaN if datums were
not asked for."""

DATUMS = pa.schema(
    [
        pa.field("first_step", pa.int32()),
        pa.field("end_step", pa.int32()),
        pa.field("rank", pa.int32()),  # of the bigram
        pa.field("datum", pa.int32()),
        pa.field("contribution", pa.float64()),  # its part of the shift
        pa.field("share", pa.float64()),  # contribution / shift; add up to 1 but for the carry
    ]
)
"""One row a bigram and datum, the largest |contribution| first."""

TABLES = {"bigrams": BIGRAMS, "datums": DATUMS}
