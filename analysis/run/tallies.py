"""Read a run's tallies: how much every token moved and used every neuron, window by window.

What mass and use are stands in ``capture.shifts.tallies``. A question about one neuron or one
token reads that neuron's columns or that token's row groups only.

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
from capture.format.tally_tables import key_of, table_of
from capture.shards.schema import tally_schema
from capture.shifts.tallies import BYS, By, tallied_units


@dataclass(frozen=True, eq=False)
class UnitTally:
    """Tallies of one unit over some windows, by target or by input token."""

    count_V: np.ndarray
    """Positions of each token, int64."""
    mass_VI: np.ndarray
    """How far the neuron's weights were moved at these positions, in units of the weight."""
    use_VI: np.ndarray
    """First-order increase of their loss if the neuron were removed, summed, nats."""


def tally_units(run: Run) -> dict[str, int]:
    """The units with tallies and their number of neurons; raises ``RunError`` if none has."""
    config = replace(run.config.capture.tally, enabled=True)  # replaying adds them whatever it says
    units = tallied_units(run.layout, config)
    if not units or not run.shards("tallies"):
        problem = "holds no tallies"
        if run.config.capture.tally.enabled and run.steps_done < run.num_steps:
            problem += f" yet (a window of training is {window_steps(run)} steps)"
        raise RunError(run.uri, problem, "Capture with capture.tally.enabled=true")
    return units


def window_steps(run: Run) -> int:
    """Steps per window of training."""
    steps_per_epoch = run.num_steps // run.config.training.epochs
    return run.config.capture.tally.window_steps or steps_per_epoch


def tally_windows(run: Run) -> pd.DataFrame:
    """The windows whose tallies are committed: window, first_step, end_step.

    Raises ``RunError`` where the run has none, ``ShardError`` for a file that is no window's.
    """
    tally_units(run)
    size = window_steps(run)
    windows = sorted({window_of(run, shard, size) for shard in run.shards("tallies")})
    ends = [min((window + 1) * size, run.num_steps) for window in windows]
    starts = [window * size for window in windows]
    return pd.DataFrame({"window": windows, "first_step": starts, "end_step": ends})


def window_of(run: Run, shard: Shard, size: int) -> int:
    """Which window of ``size`` steps a table is of; raises ``ShardError`` if of none."""
    table = table_of(shard.file.key)
    if table is None or table[2] * size >= run.num_steps:
        raise ShardError(shard.where, "is named as tallies and is of no window", REMEDY)
    return table[2]


def read_tally(
    run: Run, unit: str, by: By = "target", windows: Sequence[int] | None = None
) -> UnitTally:
    """A unit's tallies, summed over windows (all by default).

    Raises ``RunError`` where the run has none of these, ``UnitError`` for a unit without tallies,
    ``ShardError`` for a table that is missing or not what tallies are.
    """
    width = require_unit(run, unit)
    count_V = np.zeros(run.num_tokens, np.int64)
    mass_VI, use_VI = (np.zeros((run.num_tokens, width), np.float32) for _ in range(2))
    names = [f"{kind}_{n}" for kind in ("mass", "use") for n in range(width)]
    for _, shard in shards_of(run, unit, by, windows):
        table = rows_of(run, shard, width, ["token_id", "count", *names])
        token_R = table["token_id"].to_numpy()
        count_V[token_R] += table["count"].to_numpy()
        values_R2I = np.stack([table[name].to_numpy() for name in names], axis=1)
        mass_VI[token_R] += values_R2I[:, :width]
        use_VI[token_R] += values_R2I[:, width:]
    return UnitTally(count_V, mass_VI, use_VI)


def neuron_history(run: Run, unit: str, neuron: int, by: By = "target") -> pd.DataFrame:
    """One neuron, every token and window: window, token_id, token, count, mass, use.

    Mass is in units of the weight, use in nats; both are sums over ``count`` positions. Raises
    as ``read_tally`` does, and ``UnitError`` for a neuron out of range.
    """
    width = require_unit(run, unit)
    if not 0 <= neuron < width:
        raise UnitError(f"{unit} neuron {neuron}", f"does not exist: they are 0 to {width - 1}")
    columns = ["token_id", "count", f"mass_{neuron}", f"use_{neuron}"]
    tables = []
    for window, shard in shards_of(run, unit, by, None):
        table = rows_of(run, shard, width, columns).to_pandas()
        table.columns = ["token_id", "count", "mass", "use"]
        table.insert(0, "window", np.int32(window))
        tables.append(table)
    found = pd.concat(tables, ignore_index=True)
    found.insert(2, "token", np.array(run.tokens, object)[found["token_id"]])
    return found


def token_history(run: Run, token: str, by: By = "target") -> pd.DataFrame:
    """One token, every neuron and window: unit, neuron, window, count, mass, use.

    Units as in ``neuron_history``. Raises ``ConfigError`` for an unknown token, and as
    ``read_tally`` does.
    """
    wanted = {"token_id": [token_id(run.tokens, token)]}
    found = []
    for unit, width in tally_units(run).items():
        kinds = {kind: [f"{kind}_{n}" for n in range(width)] for kind in ("mass", "use")}
        columns = ["token_id", "count", *kinds["mass"], *kinds["use"]]
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
    """The unit's number of neurons; raises ``UnitError`` if it has no tallies."""
    units = tally_units(run)
    if unit not in units:
        raise UnitError(unit, "has no tallies", nearest(unit, list(units)))
    return units[unit]


def shards_of(
    run: Run, unit: str, by: By, windows: Sequence[int] | None
) -> list[tuple[int, Shard]]:
    """Windows and a unit's tables of them; raises ``RunError`` for a window without any table,
    ``ShardError`` where only this one is missing."""
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
    """The wanted rows of a table, ``token_id`` among the columns; raises ``ShardError`` unless
    its tokens are the vocabulary's, ascending, each once."""
    schema = tally_schema(width)
    table = shard.rows_of(pa.schema([schema.field(name) for name in columns]), wanted)
    token_R = table["token_id"].to_numpy()
    if len(token_R) and not 0 <= token_R.min() <= token_R.max() < run.num_tokens:
        problem = f"has tokens {token_R.min()} to {token_R.max()}, not 0 to {run.num_tokens - 1}"
        raise ShardError(shard.where, problem, REMEDY)
    if (np.diff(token_R) <= 0).any():
        raise ShardError(shard.where, "has tokens out of order", REMEDY)
    return table
