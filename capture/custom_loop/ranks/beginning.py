"""Begin a run, or continue one: the first rank writes and holds the lease, the others follow it."""

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from torch import Tensor

from capture.config.reading import leaves
from capture.config.settings import Config, to_values
from capture.custom_loop.ranks.agreement import Ranks, Values
from capture.custom_loop.step_inputs import StepPosition
from capture.errors import ConfigError, RunError
from capture.format.chain import require_start
from capture.format.markers import START, Marker, read_marker
from capture.shards import encoding as shards
from capture.store import Store, lease
from capture.training.run_start import begins_new_run, check_tables, clear_run, put_start

IN_MEMORY = "memory:"
BEGIN = "the beginning of the run"


def begin_run(
    stack: ExitStack,
    ranks: Ranks,
    target: Store,
    config: Config,
    description: bytes,
    weights: dict[str, Tensor],
    tables: Mapping[str, pa.Table],
    *,
    resume: bool,
    overwrite: bool,
) -> Callable[[], None]:
    """Begin the run or check the one that goes on; return what allows a rank to write a segment.

    The lease is held until ``stack`` closes. Raises ``RunError`` if the run cannot begin or is not
    the same on all ranks.
    """

    def begin() -> Callable[[], None]:
        # Check before taking the lease, so that a refused run stays untouched; then under it.
        lease.stale_lease(target)
        begins_new_run(target, config, resume=resume, overwrite=overwrite)
        held = stack.enter_context(lease.hold_lease(target, lambda event: None, owner))
        if begins_new_run(target, config, resume=resume, overwrite=overwrite):
            clear_run(target)
            put_start(target, description, weights, dict(tables), held.require)
        else:
            check_tables(target, dict(tables))
        return held.require

    owner = uuid.uuid4().hex
    if ranks.size == 1:
        return begin()
    require_shared(ranks, target, config, tables)
    may_commit = ranks.attempt(begin) if ranks.rank == 0 else None
    start = ranks.attempt(lambda: require_start(target).checksum) if ranks.rank == 0 else None
    first, *_ = ranks.agree(BEGIN, {"owner": owner, "start": start})
    if may_commit is None:
        may_commit = partial(lease.require, target, first["owner"])
        ranks.attempt(lambda: require_visible(target, first["start"], may_commit))
    ranks.agree(BEGIN)
    return may_commit


def require_shared(
    ranks: Ranks, target: Store, config: Config, tables: Mapping[str, pa.Table]
) -> None:
    """Raise an error if the ranks describe different runs, or one that they cannot share."""
    if target.uri.startswith(IN_MEMORY):
        problem = f"is {target.uri}, which the processes cannot share"
        raise ConfigError("run", problem, "Use a folder that all of them see, or s3://")
    found = ranks.agree(BEGIN, described(config, tables))
    for rank, own in enumerate(found):
        differing = [key for key, value in own.items() if found[0].get(key) != value]
        if differing:
            key = min(differing, key=lambda name: (name != "run.uri", name))
            problem = f"has {key} = {own[key]}, rank 0 has {found[0].get(key)}"
            raise RunError(f"rank {rank}", problem, "Call ontogeny.record alike on all ranks")


def described(config: Config, tables: Mapping[str, pa.Table]) -> Values:
    """Return what must be the same on all ranks, by name."""
    values: dict[str, Any] = {key: str(value) for key, value in leaves(to_values(config))}
    digests = {k: hashlib.sha256(shards.encode(rows)).hexdigest() for k, rows in tables.items()}
    return {**values, **digests}


def require_visible(target: Store, start: str, may_commit: Callable[[], None]) -> None:
    """Raise ``RunError`` unless this rank sees the run that the first rank has begun."""
    if not target.exists(START) or read_marker(target, START).checksum != start:
        problem = "this rank does not see the run that rank 0 has begun"
        raise RunError(target.uri, problem, "Use storage that all processes share")
    may_commit()


@dataclass(frozen=True)
class StepsBefore:
    """How the steps of a run's first and last segments were taken."""

    num_ranks: int
    counts: frozenset[int]
    """Numbers of datums in a step, over all ranks."""


def steps_before(target: Store, segments: Sequence[Marker]) -> StepsBefore | None:
    """Return how the steps of these segments were taken; None without any.

    The number of ranks is that of the last one. It is 1 for a run that stores neither outliers nor
    factors, which does not say.
    """
    files = [file for segment in segments for file in segment.files_of("steps")[:1]]
    if not files:
        return None
    tables = [shards.decode(target.get(each.key), f"{target.uri}/{each.key}") for each in files]
    counts = {len(datums) for rows in tables for datums in rows["datums"].to_pylist()}
    last = segments[-1]
    keys = [each.key for kind in ("outliers", "factors") for each in last.files_of(kind)]
    workers = {found[1] for key in keys if (found := re.search(r"-w(\d+)", key))}
    return StepsBefore(max(1, len(workers)), frozenset(counts))


def first_position(store: Store, last: Marker) -> StepPosition:
    """Return the position of the next step, in the epoch of the last step that is stored.

    ``last``: marker of the last committed segment, or of the start of the run.
    """
    if not last.files_of("steps"):
        return StepPosition(last.end_step, 0, 0)
    row = last_row(store, last)
    return StepPosition(last.end_step, row["epoch"], row["batch"] + 1)


def last_row(store: Store, last: Marker) -> dict[str, Any]:
    """Return the row of a segment's last step in the table ``steps``."""
    file = last.files_of("steps")[0]
    rows = shards.decode(store.get(file.key), f"{store.uri}/{file.key}")
    return rows.slice(rows.num_rows - 1).to_pylist()[0]
