"""Damage any file of a run in every way.

The run lies in memory and has every kind of file: corpus, checkpoints, segments and the tables of
an analysis. Two older runs at the same location give stale copies of its files. One has the same
configuration, so that its shards are equal and its markers differ only in their times. The other
has another seed.
"""

import functools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pyarrow as pa
from hypothesis import assume
from hypothesis import strategies as st
from tiny_run import make_run

from analysis.jobs.tables import write_tables
from analysis.run.run import open_run
from capture.store import Store

Files = dict[str, bytes]
URI = "memory://damaged"
NUMBERS = pa.schema([pa.field("number", pa.int32()), pa.field("name", pa.string())])
KINDS = ("flip", "replace", "truncate", "extend", "delete", "swap", "stale")


@functools.cache
def versions() -> list[Files]:
    """Return the files of the three runs, oldest first. The last one is the run that is stored."""
    return [make_files(), make_files("run.seed=1"), make_files()]


def older() -> list[Files]:
    return versions()[:-1]


def intact() -> Files:
    return versions()[-1]


def make_files(*overrides: str) -> Files:
    """Capture the run, add the tables of an analysis, and return its files."""
    run = open_run(make_run(URI, "capture.factors.enabled=true", *overrides))
    frame = pd.DataFrame({"number": range(20), "name": [f"n{i}" for i in range(20)]})
    write_tables(run, "attribute", {"numbers": frame}, {"numbers": NUMBERS})
    store = Store(URI)
    return {key: store.get(key) for key in store.keys()}


@st.composite
def damages(draw: Any, within: str = "") -> tuple[str, Files, set[str]]:
    """Draw a kind of damage, the new contents of the damaged files, and the keys that are
    removed."""
    files = intact()
    keys = sorted(key for key in files if key.startswith(within))
    kind, key = draw(st.sampled_from(KINDS)), draw(st.sampled_from(keys))
    data = files[key]
    place = draw(st.integers(0, len(data) - 1))
    match kind:
        case "flip":
            changed = {key: with_byte(data, place, data[place] ^ 1 << draw(st.integers(0, 7)))}
        case "replace":
            changed = {key: with_byte(data, place, draw(st.integers(0, 255)))}
        case "truncate":
            changed = {key: data[:place]}
        case "extend":
            changed = {key: data + draw(st.binary(min_size=1, max_size=9))}
        case "delete":
            return kind, {}, {key}
        case "swap":
            other = draw(st.sampled_from(sorted(files)))
            changed = {key: files[other], other: data}
        case _:
            changed = {key: draw(st.sampled_from([run[key] for run in older()]))}
    assume(any(files[key] != data for key, data in changed.items()))
    return kind, changed, set()


def with_byte(data: bytes, place: int, byte: int) -> bytes:
    return data[:place] + bytes([byte]) + data[place + 1 :]


@contextmanager
def damaged(changed: Files, gone: Collection[str] = ()) -> Iterator[Store]:
    """Change some files of the run and remove others; restore all of them at the end."""
    files, store = intact(), Store(URI)
    for key, data in changed.items():
        store.put(key, data)
    for key in gone:
        store.delete(key)
    try:
        yield store
    finally:
        for key in {*changed, *gone}:
            if key in files:
                store.put(key, files[key])
            else:
                store.delete(key)
