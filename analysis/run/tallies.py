"""Read a run's tallies: update norm and ablation estimate by token, neuron and window of training.

``capture.shifts.tallies`` defines both quantities. A query for one neuron reads only that neuron's
columns, a query for one token only the row groups that hold the token.

Shapes: V token of the vocabulary, I neuron of the unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.run.names import nearest, token_id
from analysis.run.run import Run
from analysis.run.scan import REMEDY, Shard, Wanted
from capture.errors import ConfigError, RunError, ShardError, UnitError
from capture.format.tally_tables import key_of, parse_key
from capture.shards.schema import tally_schema
from capture.shifts.tallies import BYS, By, tallied_units

KINDS = ("update_norm", "ablation_estimate")
"""Beginnings of the names of a neuron's columns."""


@dataclass(frozen=True, eq=False)
class UnitTally:
    """Tallies of one unit summed over some windows, by target or by input token."""

    count_V: np.ndarray
    """Number of positions of each token, int64."""
    update_norm_VI: np.ndarray
    """Σ norm of the updates of the neuron's weights at these positions, in units of the weight."""
    ablation_estimate_VI: np.ndarray
    """Σ first-order estimate of the loss increase there if the neuron were ablated, nats."""


def tally_units(run: Run) -> dict[str, int]:
    """Return the units that have tallies, each with its number of neurons.

    Raises ``RunError`` if the run has no tallies.
    """
    # A replay adds tallies to a run that was captured with them disabled.
    config = replace(run.config.capture.tally, enabled=True)
    units = tallied_units(run.layout, config)
    if not units or not run.shards("tallies"):
        problem = "holds no tallies"
        if run.config.capture.tally.enabled and run.steps_done < run.num_steps:
            problem += f" yet (a window of training is {window_steps(run)} steps)"
        raise RunError(run.uri, problem, "Capture with capture.tally.enabled=true")
    return units


def window_steps(run: Run) -> int:
    """Return the number of steps per window of training."""
    steps_per_epoch = run.num_steps // run.config.training.epochs
    return run.config.capture.tally.window_steps or steps_per_epoch


def tally_windows(run: Run) -> pd.DataFrame:
    """Return the windows of training whose tallies are committed.

    Returns:
        Columns window (from 0), first_step, and end_step (one past the last step).

    Raises:
        RunError: The run has no tallies.
        ShardError: A file is named as a window that the run does not have.

    Example:
        >>> ontogeny.tally_windows(run).columns.tolist()
        ['window', 'first_step', 'end_step']
    """
    tally_units(run)
    size = window_steps(run)
    windows = sorted({window_of(run, shard, size) for shard in run.shards("tallies")})
    ends = [min((window + 1) * size, run.num_steps) for window in windows]
    starts = [window * size for window in windows]
    return pd.DataFrame({"window": windows, "first_step": starts, "end_step": ends})


def window_of(run: Run, shard: Shard, size: int) -> int:
    """Return the window of ``size`` steps that a table belongs to, or raise ``ShardError``."""
    table = parse_key(shard.file.key)
    if table is None or table[2] * size >= run.num_steps:
        raise ShardError(shard.where, "is named as tallies and is of no window", REMEDY)
    return table[2]


def read_tally(
    run: Run, unit: str, by: By = "target", windows: Sequence[int] | None = None
) -> UnitTally:
    """Return a unit's tallies, summed over the given windows (all by default).

    Raises ``RunError`` if the run lacks them, ``UnitError`` for a unit without tallies, and
    ``ShardError`` for a table that is missing or malformed.
    """
    width = require_unit(run, unit)
    count_V = np.zeros(run.num_tokens, np.int64)
    update_norm_VI = np.zeros((run.num_tokens, width), np.float32)
    ablation_estimate_VI = np.zeros_like(update_norm_VI)
    names = [f"{kind}_{n}" for kind in KINDS for n in range(width)]
    for _, shard in shards_of(run, unit, by, windows):
        table = rows_of(run, shard, width, ["token_id", "count", *names])
        token_R = table["token_id"].to_numpy()
        count_V[token_R] += table["count"].to_numpy()
        values_R2I = np.stack([table[name].to_numpy() for name in names], axis=1)
        update_norm_VI[token_R] += values_R2I[:, :width]
        ablation_estimate_VI[token_R] += values_R2I[:, width:]
    return UnitTally(count_V, update_norm_VI, ablation_estimate_VI)


def neuron_history(run: Run, unit: str, neuron: int, by: By = "target") -> pd.DataFrame:
    """Return the tallies of one neuron, one row per window and token that occurs in it.

    Args:
        run: The run.
        unit: An MLP unit, as in ``layers.2.linear2.weight``.
        neuron: Index of one of the unit's inputs.
        by: Count a position for its target token or for its input token.

    Returns:
        Columns window, token_id, token, count (number of positions), update_norm (Σ norm of the
        updates, units of the weight) and ablation_estimate (Σ first-order estimate of the loss
        increase if the neuron were ablated, nats).

    Raises:
        RunError: The run has no tallies.
        UnitError: The unit has no tallies, or no such neuron.
        ShardError: A table is missing or malformed.

    Example:
        >>> history = ontogeny.neuron_history(run, "layers.1.linear2.weight", 3)
        >>> most = history.groupby("token")["update_norm"].sum().nlargest(5)
    """
    width = require_unit(run, unit)
    if not 0 <= neuron < width:
        raise UnitError(f"{unit} neuron {neuron}", f"does not exist: they are 0 to {width - 1}")
    columns = ["token_id", "count", *(f"{kind}_{neuron}" for kind in KINDS)]
    tables = []
    for window, shard in shards_of(run, unit, by, None):
        table = rows_of(run, shard, width, columns).to_pandas()
        table.columns = ["token_id", "count", *KINDS]
        table.insert(0, "window", np.int32(window))
        tables.append(table)
    found = pd.concat(tables, ignore_index=True)
    found.insert(2, "token", np.array(run.tokens, object)[found["token_id"]])
    return found


def token_history(run: Run, token: str, by: By = "target") -> pd.DataFrame:
    """Return the tallies of one token, one row per neuron and window in which it occurs.

    Args:
        run: The run.
        token: A token of the vocabulary.
        by: Count the token's positions as target or as input.

    Returns:
        Columns unit, neuron, window, count, update_norm and ablation_estimate, as in
        ``neuron_history``.

    Raises:
        RunError: The run has no tallies.
        ConfigError: The token is not in the vocabulary, or never occurs.
        ShardError: A table is missing or malformed.

    Example:
        >>> history = ontogeny.token_history(run, run.tokens[1])
        >>> helped = history.groupby(["unit", "neuron"])["ablation_estimate"].sum().nlargest(5)
    """
    wanted = {"token_id": [token_id(run.tokens, token)]}
    found = []
    for unit, width in tally_units(run).items():
        kinds = {kind: [f"{kind}_{n}" for n in range(width)] for kind in KINDS}
        columns = ["token_id", "count", *(name for names in kinds.values() for name in names)]
        for window, shard in shards_of(run, unit, by, None):
            for row in rows_of(run, shard, width, columns, wanted).to_pylist():
                values = {kind: [row[name] for name in names] for kind, names in kinds.items()}
                labels = {"unit": unit, "neuron": range(width)}
                counts = {"window": window, "count": row["count"]}
                found.append(pd.DataFrame({**labels, **counts, **values}))
    if not found:
        raise ConfigError(token, f"never occurs as {by} in the windows that are tallied")
    return pd.concat(found, ignore_index=True)


def require_unit(run: Run, unit: str) -> int:
    """Return the unit's number of neurons; raise ``UnitError`` if it has no tallies."""
    units = tally_units(run)
    if unit not in units:
        raise UnitError(unit, "has no tallies", nearest(unit, list(units)))
    return units[unit]


def shards_of(
    run: Run, unit: str, by: By, windows: Sequence[int] | None
) -> list[tuple[int, Shard]]:
    """Return each window with the unit's table of it.

    Raises ``RunError`` for a window without tallies, ``ShardError`` if only this table is missing.
    """
    assert by in BYS, by
    committed = tally_windows(run)["window"].tolist()
    wanted = committed if windows is None else windows
    shards = {shard.file.key: shard for shard in run.shards("tallies")}
    for window in wanted:
        key = key_of(unit, by, window)
        if window not in committed:
            problem = f"has no tallies of window {window}; committed are {committed}"
            raise RunError(run.uri, problem)
        if key not in shards:
            problem = f"is missing, or left out as damaged; window {window} has other tallies"
            raise ShardError(f"{run.uri}/{key}", problem, REMEDY)
    return [(window, shards[key_of(unit, by, window)]) for window in wanted]


def rows_of(
    run: Run, shard: Shard, width: int, columns: Sequence[str], wanted: Wanted | None = None
) -> pa.Table:
    """Return the wanted rows of a table; ``columns`` must include ``token_id``.

    Raises ``ShardError`` unless its token ids are of the vocabulary, ascending, without repeats.
    """
    schema = tally_schema(width)
    table = shard.rows_of(pa.schema([schema.field(name) for name in columns]), wanted)
    token_R = table["token_id"].to_numpy()
    if len(token_R) and not 0 <= token_R.min() <= token_R.max() < run.num_tokens:
        problem = f"has tokens {token_R.min()} to {token_R.max()}, not 0 to {run.num_tokens - 1}"
        raise ShardError(shard.where, problem, REMEDY)
    if (np.diff(token_R) <= 0).any():
        raise ShardError(shard.where, "has tokens out of order", REMEDY)
    return table
