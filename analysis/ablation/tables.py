"""Tables that ablation writes into a run, and the meaning of each column."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

JOB = "ablate"

SUBJECT = [
    pa.field("level", pa.string()),  # neuron (a column), row or head
    pa.field("unit", pa.string()),  # for a head layers.L.self_attn
    pa.field("neuron", pa.int32()),  # number of the column, row or head
    pa.field("kind", pa.string()),  # replacement value: zero, mean or resample
]
GROUP = [field.with_name("group") if field.name == "neuron" else field for field in SUBJECT]
"""``SUBJECT`` with the column name of the attribution tables: ``group`` instead of ``neuron``."""

FLIPS = pa.schema(
    [
        *SUBJECT,
        pa.field("token", pa.string()),
        pa.field("proportion", pa.float64()),  # flips / count
        pa.field("count", pa.int64()),  # positions predicted as the token before or after
        pa.field("flips", pa.int64()),  # positions among these whose prediction changes
        pa.field("notable", pa.bool_()),  # selected for the neuron by attribution
        pa.field("token_id", pa.int32()),
        pa.field("low", pa.float64()),  # 95 % interval of proportion, likewise;
        pa.field("high", pa.float64()),  # NaN if fewer than two datums have the token
        pa.field("lost", pa.int64()),  # flips away from the token
        pa.field("gained", pa.int64()),  # flips to the token
    ]
)
"""One row per neuron and flipped token, most evidence first, by proportion, then count."""

CONTEXTS = pa.schema(
    [
        *SUBJECT,
        pa.field("token", pa.string()),  # the flipped token that this is a context of
        pa.field("datum", pa.int32()),
        pa.field("position", pa.int16()),
        pa.field("before", pa.string()),  # predicted token, clean model
        pa.field("after", pa.string()),  # predicted token, neuron ablated
        pa.field("target", pa.string()),  # true next token
        pa.field("context", pa.string()),  # … when the (before after) target took …
    ]
)
"""A few rows per neuron and flipped token; tokens by id, largest datum weight first."""

NEURONS = pa.schema(
    [
        *SUBJECT,
        pa.field("datums", pa.int32()),  # evaluated
        pa.field("positions", pa.int64()),  # evaluated
        pa.field("flips", pa.int64()),
        pa.field("flipped_tokens", pa.int32()),  # distinct tokens before or after
        pa.field("notable_tokens", pa.int32()),  # tokens selected by attribution
        pa.field("notable_flipped", pa.int32()),  # notable tokens that flip
        pa.field("notable_share", pa.float64()),  # share of notable predictions that flip
        pa.field("other_share", pa.float64()),  # share of all other predictions that flip
        pa.field("ratio", pa.float64()),  # notable_share / other_share
        pa.field("notable_low", pa.float64()),  # 95 % interval of notable_share: the
        pa.field("notable_high", pa.float64()),  # wider of bootstrap over datums and Wilson
        pa.field("other_low", pa.float64()),  # 95 % interval of other_share, likewise
        pa.field("other_high", pa.float64()),
        pa.field("scored_datums", pa.int32()),  # datums with log-probabilities
        pa.field("change", pa.float64()),  # mean of log p(target), ablated - clean, nats
        pa.field("change_low", pa.float64()),  # its 95 % interval over datums
        pa.field("change_high", pa.float64()),
        pa.field("attributed", pa.bool_()),  # evaluated on its own datums, not a random sample
        pa.field("rms_change", pa.float64()),  # root mean square of the changes, nats
        pa.field("notable_positions", pa.int64()),  # scored positions with a notable target
        pa.field("notable_change", pa.float64()),  # mean change of log p there, nats
        pa.field("notable_change_low", pa.float64()),  # its 95 % interval over datums; NaN if
        pa.field("notable_change_high", pa.float64()),  # fewer than two have such a target
        pa.field("other_positions", pa.int64()),  # scored positions with another target
        pa.field("other_change", pa.float64()),
        pa.field("other_change_low", pa.float64()),
        pa.field("other_change_high", pa.float64()),
        pa.field("difference", pa.float64()),  # notable_change - other_change; below 0: agreement
        pa.field("difference_low", pa.float64()),  # its 95 % interval over datums
        pa.field("difference_high", pa.float64()),
    ]
)
"""One row per subject, most evidence first. A share of zero positions is NaN."""

LAYERS = pa.schema(
    [
        pa.field("level", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("neurons", pa.int32()),  # number of ablated neurons
        pa.field("flipped_tokens", pa.float64()),  # mean over neurons
        pa.field("notable_share", pa.float64()),  # mean share of flipped tokens that are notable
        pa.field("flipped_low", pa.float64()),  # 95 % interval of flipped_tokens over neurons;
        pa.field("flipped_high", pa.float64()),  # NaN for a single neuron, and if all are equal
        pa.field("notable_low", pa.float64()),  # 95 % interval of notable_share over neurons,
        pa.field("notable_high", pa.float64()),  # likewise
    ]
)
"""One row per unit, in the model's order."""

TOKENS = pa.schema(
    [
        *GROUP,
        pa.field("token_id", pa.int32()),
        pa.field("token", pa.string()),
        pa.field("count", pa.int64()),  # scored positions with this target
        pa.field("change", pa.float64()),  # mean of log p(target), ablated - clean, nats
        pa.field("low", pa.float64()),  # 95 % interval of change over datums;
        pa.field("high", pa.float64()),  # NaN if fewer than two datums have the target
        pa.field("notable", pa.bool_()),  # selected for the subject by attribution
    ]
)
"""One row per subject and target, largest loss first."""

MOVES = pa.schema(
    [
        *GROUP,
        pa.field("before", pa.string()),  # predicted token, clean model
        pa.field("after", pa.string()),  # predicted token, subject ablated
        pa.field("count", pa.int64()),  # positions
    ]
)
"""One row per subject and pair of tokens, most frequent first."""

TABLES = {
    "flips": FLIPS,
    "contexts": CONTEXTS,
    "neurons": NEURONS,
    "layers": LAYERS,
    "tokens": TOKENS,
    "moves": MOVES,
}


@dataclass(frozen=True, eq=False)
class Ablation:
    """Results of ablating subjects of a run."""

    flips: pd.DataFrame
    """``FLIPS``"""
    contexts: pd.DataFrame
    """``CONTEXTS``"""
    neurons: pd.DataFrame
    """``NEURONS``"""
    layers: pd.DataFrame
    """``LAYERS``"""
    tokens: pd.DataFrame
    """``TOKENS``"""
    moves: pd.DataFrame
    """``MOVES``"""
    certified: float
    """Share of predictions decided without the logits of the whole vocabulary."""
