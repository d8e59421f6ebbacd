"""What ablation leaves in a run: its tables, and what each column means."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

JOB = "ablate"

SUBJECT = [
    pa.field("level", pa.string()),  # neuron (a column), row or head
    pa.field("unit", pa.string()),  # for a head layers.L.self_attn
    pa.field("neuron", pa.int32()),  # number of the column, row or head
    pa.field("kind", pa.string()),  # what stood in for it: zero, mean or resample
]
GROUP = [field.with_name("group") if field.name == "neuron" else field for field in SUBJECT]
"""The same, as the tables of attribution call it."""

FLIPS = pa.schema(
    [
        *SUBJECT,
        pa.field("token", pa.string()),
        pa.field("proportion", pa.float64()),  # flips / count
        pa.field("count", pa.int64()),  # positions predicted as the token before or after
        pa.field("flips", pa.int64()),  # those where the predictions differ
        pa.field("notable", pa.bool_()),  # found for the neuron by attribution
        pa.field("token_id", pa.int32()),
        pa.field("low", pa.float64()),  # 95 % interval of proportion over datums;
        pa.field("high", pa.float64()),  # NaN if fewer than two datums have the token
        pa.field("lost", pa.int64()),  # flips away from the token
        pa.field("gained", pa.int64()),  # flips to the token
    ]
)
"""One row a neuron and token with a flip; neurons strongest first, by proportion, then count."""

CONTEXTS = pa.schema(
    [
        *SUBJECT,
        pa.field("token", pa.string()),  # the flipped token that this is a context of
        pa.field("datum", pa.int32()),
        pa.field("position", pa.int16()),
        pa.field("before", pa.string()),  # predicted token, nothing ablated
        pa.field("after", pa.string()),  # predicted token without the neuron
        pa.field("target", pa.string()),  # the true one
        pa.field("context", pa.string()),  # … when the (before after) target took …
    ]
)
"""A few rows a neuron and flipped token; tokens by id, most attributed datums first."""

NEURONS = pa.schema(
    [
        *SUBJECT,
        pa.field("datums", pa.int32()),  # evaluated
        pa.field("positions", pa.int64()),  # evaluated
        pa.field("flips", pa.int64()),
        pa.field("flipped_tokens", pa.int32()),  # distinct, before or after
        pa.field("notable_tokens", pa.int32()),  # found by attribution
        pa.field("notable_flipped", pa.int32()),  # both
        pa.field("notable_share", pa.float64()),  # of positions predicted notable, those that flip
        pa.field("other_share", pa.float64()),  # of all other positions, those that flip
        pa.field("ratio", pa.float64()),  # notable_share / other_share; above 1 they agree
        pa.field("notable_low", pa.float64()),  # 95 % interval of notable_share over datums
        pa.field("notable_high", pa.float64()),
        pa.field("other_low", pa.float64()),  # 95 % interval of other_share over datums
        pa.field("other_high", pa.float64()),
        pa.field("scored_datums", pa.int32()),  # those where log-probabilities were computed
        pa.field("change", pa.float64()),  # mean log p(target) ablated - clean there, nats
        pa.field("change_low", pa.float64()),  # its 95 % interval over datums
        pa.field("change_high", pa.float64()),
        pa.field("attributed", pa.bool_()),  # evaluated on its own datums, not on a random sample
    ]
)
"""One row a subject, strongest first. A share of no positions is NaN."""

LAYERS = pa.schema(
    [
        pa.field("level", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("neurons", pa.int32()),  # ablated
        pa.field("flipped_tokens", pa.float64()),  # mean over these
        pa.field("notable_share", pa.float64()),  # mean share of flipped tokens that are notable
        pa.field("flipped_low", pa.float64()),  # 95 % interval of flipped_tokens over neurons;
        pa.field("flipped_high", pa.float64()),  # NaN for a single neuron
        pa.field("notable_low", pa.float64()),  # 95 % interval of notable_share over neurons
        pa.field("notable_high", pa.float64()),
    ]
)
"""One row a unit, in the model's order."""

TOKENS = pa.schema(
    [
        *GROUP,
        pa.field("token_id", pa.int32()),
        pa.field("token", pa.string()),
        pa.field("count", pa.int64()),  # scored positions whose target it is
        pa.field("change", pa.float64()),  # mean log p(target) ablated - clean there, nats
        pa.field("low", pa.float64()),  # 95 % interval of change over datums;
        pa.field("high", pa.float64()),  # NaN if fewer than two datums have the target
    ]
)
"""One row a subject and target; what loses most first."""

MOVES = pa.schema(
    [
        *GROUP,
        pa.field("before", pa.string()),  # predicted token, nothing ablated
        pa.field("after", pa.string()),  # predicted token without the subject
        pa.field("count", pa.int64()),  # positions
    ]
)
"""One row a subject and pair of tokens; the most frequent first."""

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
    """What ablating subjects of a run did."""

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
    """Share of predictions that were certain without the whole vocabulary's logits."""
