"""The start of a run: may it begin here, and what stands in it before the first step."""

from collections.abc import Callable

import pyarrow as pa
from torch import Tensor

from capture.config.reading import differences
from capture.config.records import KINDS
from capture.config.settings import Config
from capture.corpus.datums import Corpus
from capture.engine.engine import Engine
from capture.engine.step_plan import Plan
from capture.errors import RunError
from capture.format import checkpoint
from capture.format.corpus_tables import corpus_tables
from capture.format.markers import START, Marker, segment_key, segments_there, write_marker
from capture.format.replay_markers import replay_key
from capture.format.run_yaml import KEY, describe_run, read_run_config
from capture.shards import encoding as shards
from capture.store import lease
from capture.store.store import Store
from capture.training.segments import put_bytes, put_table

PARTS = {
    *(KEY, lease.KEY),
    *("segments", "corpus", "checkpoints", "steps", "outliers", "evaluations", "factors"),
    *("tallies", "analysis", "report"),
}
"""Everything that a run may hold at its top level; nothing else is ever removed."""


def may_begin(store: Store, config: Config, *, resume: bool, overwrite: bool) -> bool:
    """Whether to start afresh (else: go on with the run); raises ``RunError`` if neither may be."""
    foreign = sorted({key.split("/")[0] for key in store.keys()} - PARTS)
    if foreign:
        problem = f"is not a run and not empty (it holds {foreign[0]})"
        raise RunError(store.uri, problem, "Choose another run.uri")
    if not store.exists(START) or overwrite:
        return True
    if not resume:
        remedy = "Add --resume to go on with it or --overwrite to replace it"
        raise RunError(store.uri, "holds a run already", remedy)
    changed = differences(read_run_config(store), config)
    if changed:
        problem = f"was made with another configuration ({'; '.join(changed)})"
        raise RunError(store.uri, problem, "Resume with the same one, or choose another run.uri")
    return False


def clear(store: Store) -> None:
    """Remove a run: its markers first, so that no reader sees half of one.

    A listing may lag; a marker that it lacks would be taken for one of the next run's. The lease
    stays: it is that of the capture which clears.
    """
    listed = store.keys()
    segments = segments_there(store, listed)
    added = [replay_key(segment, kind) for segment in segments for kind in KINDS]
    keys = {*listed, *map(segment_key, segments), *added} - {lease.KEY}
    for key in sorted(keys, key=lambda key: (key != START, not key.startswith("segments/"))):
        store.delete(key)


def begin(store: Store, plan: Plan, engine: Engine, may_commit: Callable[[], None]) -> None:
    """Write the configuration, the corpus and the initial weights, then the marker of the start.

    ``may_commit`` is called before the marker is written, and raises if it may not be.
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
    """The same of a run that is described so: its ``run.yaml``, its corpus by key."""
    files = [
        put_bytes(store, KEY, "config", described),
        put_bytes(store, checkpoint.key_of(0), "checkpoints", checkpoint.encode(weights)),
    ]
    files += [put_table(store, key, "corpus", rows) for key, rows in tables.items()]
    may_commit()
    write_marker(store, START, Marker(0, 0, tuple(files), retries=store.take_retries()))


def check_corpus(store: Store, corpus: Corpus) -> None:
    """A run goes on only with the text that it began with; raises ``RunError`` for another."""
    check_tables(store, corpus_tables(corpus))


def check_tables(store: Store, tables: dict[str, pa.Table]) -> None:
    """The same, by key; raises ``RunError``."""
    for key, rows in tables.items():
        where = f"{store.uri}/{key}"
        if not store.exists(key) or not shards.decode(store.get(key), where).equals(rows):
            problem = (
                f"was made with another text (its {key} differs from what the corpus gives now)"
            )
            remedy = "Restore the text; python-reference differs between versions of Python"
            raise RunError(store.uri, problem, remedy)
