"""A small run for tests of readers: captured once per process, in memory."""

import functools
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from capture.config.reading import read_config
from capture.shards import encoding as shards
from capture.store import Store
from capture.training.loop import capture_run

ROWS_PER_GROUP = 64
"""Small row groups, so that a shard of this run has many."""
SETTINGS = [
    *("corpus.kind=text", "corpus.window=8", "corpus.test_share=0", "corpus.validation_share=0.12"),
    *("model.layers=2", "model.width=16", "model.hidden=12", "model.heads=2"),
    *("training.batch=4", "training.epochs=2", "training.device=cpu"),
    *("capture.segment_steps=7", "capture.outliers.k=50"),
]


@functools.cache
def tiny_run() -> str:
    """Return the URI of a run of 24 steps in 4 segments on 51 datums.

    Tests must not change it; ``copied`` makes a copy.
    """
    return make_run("memory://tiny-run")


def make_run(uri: str, *overrides: str) -> str:
    """Capture a run on a small text in which the next word depends on the present one."""
    words = np.array([f"w{i}" for i in range(12)] + [".", ","])
    rng = np.random.default_rng(0)
    ids = np.cumsum(rng.choice([1, 2, 5], size=460)) % len(words)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(" ".join(words[ids]))
        config = read_config(None, [f"run.uri={uri}", f"corpus.path={path}", *SETTINGS, *overrides])
        with mock.patch.object(shards, "ROWS_PER_GROUP", ROWS_PER_GROUP):
            capture_run(config, lambda event: None, overwrite=True)
    return uri


def copied(uri: str, target: str) -> Store:
    """Return a copy of a run that a test may damage."""
    source, target_store = Store(uri), Store(target)
    old, keys = target_store.keys(), source.keys()
    for key in old:
        target_store.delete(key)
    for key in keys:
        target_store.put(key, source.get(key))
    return target_store
