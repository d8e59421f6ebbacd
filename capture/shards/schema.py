"""What the tables of a run hold: Arrow schemas, with units and order. They outlive the code.

A change of any of these raises ``SCHEMA_VERSION``; golden tests pin them.
"""

from collections.abc import Mapping

import pyarrow as pa

SCHEMA_VERSION = 2

OUTLIERS = pa.schema(
    [
        pa.field("step", pa.int32()),  # optimizer update, from 0 over the whole run
        pa.field("slot", pa.int16()),  # the datum's place in its batch
        pa.field("datum", pa.int32()),  # row of corpus/datums.parquet
        pa.field("unit", pa.dictionary(pa.int16(), pa.string())),  # parameter tensor
        pa.field("index", pa.int32()),  # flat (row-major) index into the unit
        pa.field("shift", pa.float32()),  # change of the weight due to this datum
        pa.field("position", pa.int16()),  # token position that contributes most to it
    ]
)
"""Sorted by unit (alphabetically), index, step, slot."""

STEPS = pa.schema(
    [
        pa.field("step", pa.int32()),
        pa.field("epoch", pa.int16()),  # from 0
        pa.field("batch", pa.int32()),  # from 0 in the epoch
        pa.field("learning_rate", pa.float64()),
        pa.field("gradient_norm", pa.float32()),  # of the whole model, before clipping
        pa.field("clip", pa.float32()),  # factor applied to the gradient, at most 1
        pa.field("loss", pa.float32()),  # mean cross-entropy of the batch, nats per token
        pa.field("audit_error", pa.float32()),  # |Σ shifts - applied change| / |applied change|
        pa.field("datums", pa.list_(pa.int32())),  # by slot
    ]
)

EVALUATIONS = pa.schema(
    [
        pa.field("step", pa.int32()),  # steps done before the evaluation
        pa.field("epoch", pa.int16()),
        pa.field("split", pa.string()),  # validation or test
        pa.field("loss", pa.float64()),  # nats per token, dropout off
        pa.field("perplexity", pa.float64()),  # exp(loss)
        pa.field("tokens", pa.int64()),
    ]
)

VOCABULARY = pa.schema(
    [
        pa.field("token_id", pa.int32()),
        pa.field("token", pa.string()),
        pa.field("count", pa.int64()),  # occurrences in the training text
    ]
)

DATUMS = pa.schema(
    [
        pa.field("datum", pa.int32()),
        pa.field("tokens", pa.list_(pa.int32())),  # the window; targets are the tokens one later
        pa.field("last_target", pa.int32()),  # target of the last position
        pa.field("text", pa.string()),  # tokens joined by spaces
    ]
)


def tally_schema(num_neurons: int) -> pa.Schema:
    """Tallies of one unit by one kind of token in one window: a row a token, ascending."""
    numbers = range(num_neurons)
    return pa.schema(
        [
            pa.field("window", pa.int32()),  # of training, from 0; the same in all rows
            pa.field("token_id", pa.int32()),
            pa.field("count", pa.int64()),  # positions of the token in the window
            # norms of the updates of each neuron's weights, summed, in units of the weight
            *(pa.field(f"update_norm_{n}", pa.float32()) for n in numbers),
            # first-order estimate of the loss increase if the neuron were set to 0, summed, nats
            *(pa.field(f"ablation_estimate_{n}", pa.float32()) for n in numbers),
        ]
    )


def stored_name(column: str, version: int) -> str:
    """Return the name that a file of an earlier schema version has for a column.

    Before version 2, tally columns were ``mass_N`` (update norm) and ``use_N`` (ablation estimate).
    """
    former = {"update_norm": "mass", "ablation_estimate": "use"} if version < 2 else {}
    kind, _, number = column.rpartition("_")
    return f"{former[kind]}_{number}" if kind in former else column


def factor_schema(precisions: Mapping[str, str]) -> pa.Schema:
    """Factors of a few steps: a row a datum and step, ascending by step and slot.

    ``precisions``: of each array, by name; what the arrays are, the table's metadata tells.
    """
    fields = [
        pa.field("step", pa.int32()),
        pa.field("slot", pa.int16()),
        pa.field("datum", pa.int32()),
        pa.field("scale", pa.float64()),  # a gradient times this (and a preconditioner) is a shift
    ]
    for name, precision in precisions.items():
        if precision == "int32":
            fields.append(pa.field(name, pa.list_(pa.int32())))  # tokens
            continue
        # see capture.float_planes
        fields.append(pa.field(f"{name}_high", pa.binary()))
        fields.append(pa.field(f"{name}_low", pa.binary()))
        if precision == "float16":
            fields.append(pa.field(f"{name}_exponent", pa.int16()))  # times 2 to this
            fields.append(pa.field(f"{name}_error", pa.float32()))  # largest, of all its numbers
    return pa.schema(fields)
