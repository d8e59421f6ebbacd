"""Start a run: check that it may begin here, and write what precedes its first step."""

from collections.abc import Callable

import pyarrow as pa
from torch import Tensor

from capture.config.reading import differences
from capture.config.records import KINDS
from capture.config.settings import Config
from capture.corpus.datums import Corpus
from capture.engine.engine import Engine
from capture.engine.step_plan import StepPlan
from capture.errors import RunError
from capture.format import checkpoint, window_markers
from capture.format.chain import existing_segments, read_segments
from capture.format.corpus_tables import corpus_tables
from capture.format.markers import START, Marker, segment_key, write_marker
from capture.format.replay_markers import replay_key
from capture.format.run_yaml import KEY, describe_run, read_run_config
from capture.shards import encoding as shards
from capture.store import Store, lease
from capture.training.segments import put_bytes, put_table

TOP_LEVEL_NAMES = {
    *(KEY, lease.KEY),
    *("segments", "corpus", "checkpoints", "steps", "outliers", "evaluations", "factors"),
    *("tallies", "analysis", "report"),
}
"""All names that a run may have at its top level. Nothing else is ever removed."""


def begins_new_run(store: Store, config: Config, *, resume: bool, overwrite: bool) -> bool:
    """Return True if a new run begins here, False if the existing one is resumed.

    Raises ``RunError`` if the folder holds something else, if a run exists and neither option is
    set, or if the run to resume has another configuration.
    """
    foreign = sorted({key.split("/")[0] for key in store.keys()} - TOP_LEVEL_NAMES)
    if foreign:
        problem = f"is not a run and not empty (it holds {foreign[0]})"
        raise RunError(store.uri, problem, "Choose another run.uri")
    if not store.exists(START) or overwrite:
        return True
    if not resume:
        own = config.run.loop == "own"
        if own and not read_segments(store):
            return True  # a recording that was refused at its first step holds nothing to lose
        go_on, replace = ("resume=True", "overwrite=True") if own else ("--resume", "--overwrite")
        remedy = f"Add {go_on} to go on with it or {replace} to replace it"
        raise RunError(store.uri, "holds a run already", remedy)
    changed = differences(read_run_config(store), config)
    if changed:
        problem = f"was made with another configuration ({'; '.join(changed)})"
        raise RunError(store.uri, problem, "Resume with the same one, or choose another run.uri")
    return False


def clear_run(store: Store, alive: Callable[[], None] = lambda: None) -> None:
    """Remove a run: its markers first, so that no reader sees half of it.

    The lease stays, because the capture that clears the run holds it. ``alive`` is called after
    every file.
    """
    # A listing may lag behind. A marker that it misses would later count as one of the new run, so
    # markers are also looked for by their keys.
    listed = store.keys()
    segments = existing_segments(store, listed)
    added = [replay_key(segment, kind) for segment in segments for kind in KINDS]
    keys = {*listed, *map(segment_key, segments), *added, window_markers.KEY} - {lease.KEY}
    for key in sorted(keys, key=lambda key: (key != START, not key.startswith("segments/"))):
        store.delete(key)
        alive()


def begin_run(store: Store, plan: StepPlan, engine: Engine, may_commit: Callable[[], None]) -> None:
    """Write the configuration, the corpus and the initial weights, then the start marker.

    ``may_commit`` is called before the marker is written and raises if it may not be written.
    """
    described = describe_run(plan.config, engine.device)
    put_start(store, described, engine.snapshot(), corpus_tables(plan.corpus), may_commit)


def put_start(
    store: Store,
    described: bytes,
    weights: dict[str, Tensor],
    tables: dict[str, pa.Table],
    may_commit: Callable[[], None],
) -> None:
    """Like ``begin_run``, but takes the text of ``run.yaml`` and the corpus tables by key."""
    files = [
        put_bytes(store, KEY, "config", described),
        put_bytes(store, checkpoint.key_of(0), "checkpoints", checkpoint.encode(weights)),
    ]
    files += [put_table(store, key, "corpus", rows) for key, rows in tables.items()]
    may_commit()
    write_marker(store, START, Marker(0, 0, tuple(files), retries=store.take_retries()))


def check_corpus(store: Store, corpus: Corpus) -> None:
    """Raise ``RunError`` if the run was started with another text."""
    check_tables(store, corpus_tables(corpus))


def check_tables(store: Store, tables: dict[str, pa.Table]) -> None:
    """Like ``check_corpus``, but takes the tables of the corpus by key."""
    for key, rows in tables.items():
        where = f"{store.uri}/{key}"
        if not store.exists(key) or not shards.decode(store.get(key), where).equals(rows):
            problem = (
                f"was made with another text (its {key} differs from what the corpus gives now)"
            )
            remedy = "Restore the text; python-reference differs between versions of Python"
            raise RunError(store.uri, problem, remedy)
