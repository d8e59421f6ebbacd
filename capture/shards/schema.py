"""Arrow schemas of the tables in a run, with the unit and row order of each.

Files outlive the code, so every change here increments ``SCHEMA_VERSION``. Golden tests pin the
schemas.
"""

from collections.abc import Mapping

import pyarrow as pa

SCHEMA_VERSION = 3

OUTLIERS = pa.schema(
    [
        pa.field("step", pa.int32()),  # optimizer update, from 0 over the whole run
        pa.field("slot", pa.int16()),  # row of the datum in its batch
        pa.field("datum", pa.int32()),  # row of corpus/datums.parquet
        pa.field("unit", pa.dictionary(pa.int16(), pa.string())),  # parameter tensor
        pa.field("index", pa.int32()),  # flat (row-major) index of the weight in the unit
        pa.field("shift", pa.float32()),  # change of the weight due to this datum
        pa.field("position", pa.int16()),  # token position that contributes most to the shift
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

TASK_EVALUATIONS = pa.schema(
    [
        *EVALUATIONS,
        pa.field("accuracy", pa.float64()),  # share of the targets that are the likeliest token
        pa.field("datum_accuracy", pa.float64()),  # share of the datums of which every target is
    ]
)
"""Evaluations of a run on a task, as opposed to a text."""

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

PLANTED = pa.schema(
    [
        pa.field("datum", pa.int32()),  # row of corpus/datums.parquet
        pa.field("kind", pa.string()),  # plant (a backdoor), scramble or flip
        pa.field("position", pa.int16()),  # place of the trigger's first token, or 0
    ]
)
"""Sorted by datum. Only runs in which something was planted have this table."""


def tally_schema(num_neurons: int) -> pa.Schema:
    """Return the schema of one unit's tallies in one window: one row per token, by token id."""
    numbers = range(num_neurons)
    return pa.schema(
        [
            pa.field("window", pa.int32()),  # window of training, from 0; the same in all rows
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


def factor_schema(precisions: Mapping[str, str], packing: str) -> pa.Schema:
    """Return the schema of a factor table: one row per datum and step, sorted by step and slot.

    ``precisions`` maps each array's name to its precision. The table's metadata describes the
    arrays. With the ``packing`` "planes", floats are stored as two byte planes, see
    ``capture.shards.float_planes``; with "plain", as they are in memory, lowest byte first.
    """
    fields = [
        pa.field("step", pa.int32()),
        pa.field("slot", pa.int16()),
        pa.field("datum", pa.int32()),
        pa.field("scale", pa.float64()),  # shift = scale · (preconditioned) gradient
    ]
    for name, precision in precisions.items():
        if precision == "int32":
            fields.append(pa.field(name, pa.list_(pa.int32())))  # token ids
            continue
        strings = [f"{name}_high", f"{name}_low"] if packing == "planes" else [name]
        fields += [pa.field(string, pa.binary()) for string in strings]
        if precision == "float16":
            fields.append(pa.field(f"{name}_exponent", pa.int16()))  # multiply by 2 to this power
            fields.append(
                pa.field(f"{name}_error", pa.float32())
            )  # largest absolute error of the row
    return pa.schema(fields)
