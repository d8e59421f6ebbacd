"""Tables that ``bigrams`` writes: shifts of bigram logits, and contributions of datums to them."""

import pyarrow as pa

JOB = "bigrams"

BIGRAMS = pa.schema(
    [
        pa.field("first_step", pa.int32()),  # first step of the range
        pa.field("end_step", pa.int32()),  # step after the range
        pa.field("rank", pa.int32()),  # by |shift| in these steps, from 0
        pa.field("token_id", pa.int32()),  # w, the input token
        pa.field("token", pa.string()),
        pa.field("next_id", pa.int32()),  # v, the predicted token
        pa.field("next", pa.string()),
        pa.field("shift", pa.float64()),  # change of the logit
        pa.field("carry", pa.float64()),  # part due to momentum and weight decay
        pa.field("missed", pa.float64()),  # shift − all contributions − carry
    ]
)
"""One row per bigram and range of steps. ``carry`` and ``missed`` are NaN without contributions."""

DATUMS = pa.schema(
    [
        pa.field("first_step", pa.int32()),
        pa.field("end_step", pa.int32()),
        pa.field("rank", pa.int32()),  # rank of the bigram
        pa.field("datum", pa.int32()),
        pa.field("contribution", pa.float64()),  # part of the shift due to the datum
        pa.field("share", pa.float64()),  # contribution / shift; sums to 1 with carry / shift
    ]
)
"""One row per bigram and datum, largest |contribution| first."""

TABLES = {"bigrams": BIGRAMS, "datums": DATUMS}
