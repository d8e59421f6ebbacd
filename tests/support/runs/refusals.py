"""Runs on which commands fail, and the message of a command that fails.

A test's command names a run in braces: ``{whole}`` is a run without tables, ``{attributed}`` one
with the tables of ``attribute``. ``refusing_runs`` makes the others.
"""

import functools
import json
import shlex

from tiny_run import copied, make_run, tiny_run

from capture.format.chain import read_segments, require_start
from capture.format.markers import START, checksum, encode
from capture.store import Store
from cluster.cli import main

READING_COMMANDS = {
    "attribute": "",
    "ablate": "",
    "activations": "",
    "neurons": "",
    "behaviour": "--contains w1",
    "bigrams": "",
    "faithfulness": "",
    "influence": "loss",
    "retrain": "--without 1",
    "lds": "loss",
    "suspects": "--unexpected",
    "silence": "--datums 1",
    "drift": "layers.1.linear2.weight",
    "directions": "layers.1.linear2.weight loss",
    "spectrum": "",
    "trajectory": "",
    "transitions": "",
    "quanta": "",
    "compare": "memory://bad-input/whole",
    "replay": "--record factors",
    "report": "",
    "serve": "--port 0",
    "info": "",
    "verify": "",
    "gc": "",
}
"""Every command that reads a run → its required options."""


@functools.cache
def refusing_runs() -> dict[str, str]:
    """Make the runs once; return their URIs by name."""
    names = ("whole", "attributed", "untrained", "newer", "outdated", "damaged")
    uris = {name: f"memory://bad-input/{name}" for name in names}
    for name in ("whole", "attributed"):
        copied(tiny_run(), uris[name])
    assert main(["attribute", uris["attributed"], "--quiet"]) == 0
    remove_segments(copied(tiny_run(), uris["untrained"]), keep=0)
    set_newer_schema(copied(tiny_run(), uris["newer"]))
    remove_segments(copied(uris["attributed"], uris["outdated"]), keep=3)
    damaged = copied(uris["attributed"], uris["damaged"])
    damaged.put("analysis/attribute/tables.json", b"{}")
    untallied = ("capture.tally.enabled=false", "training.epochs=1")
    uris["untallied"] = make_run("memory://bad-input/untallied", *untallied)
    only_norms = (
        "capture.units=[layers.*.norm1.weight]",
        "capture.outliers.k=9",
        "training.epochs=1",
    )
    uris["normed"] = make_run("memory://bad-input/normed", *only_norms)
    return uris | {"nowhere": "memory://bad-input/nowhere"}


def remove_segments(store: Store, *, keep: int) -> None:
    """Make the run one whose training stopped after ``keep`` segments, without leftover files."""
    kept = [require_start(store), *read_segments(store)[:keep]]
    named = {file.key for marker in kept for file in marker.files}
    recorded = ("steps/", "outliers/", "evaluations/", "checkpoints/", "tallies/")
    for key in store.keys():
        if key.startswith(recorded) and key not in named:
            store.delete(key)
    for key in [key for key in store.keys("segments") if key != START][keep:]:
        store.delete(key)


def set_newer_schema(store: Store) -> None:
    """Give all markers a schema version that this code does not know."""
    for key in store.keys("segments"):
        values = json.loads(store.get(key)) | {"schema_version": 99}
        del values["checksum"]
        store.put(key, encode(values | {"checksum": checksum(values)}))


def snapshot(uri: str) -> dict[str, bytes]:
    """Return all files of a run, by key."""
    store = Store(uri)
    return {key: store.get(key) for key in store.keys()}


def refusal(command: str, runs: dict[str, str], capsys) -> str:
    """Run a command that must fail; return the line that it prints.

    Asserts exit status 2, a single line on stderr, and that no run in the command has changed.
    """
    touched = [uri for name, uri in runs.items() if f"{{{name}}}" in command]
    before = [snapshot(uri) for uri in touched]
    code = main(shlex.split(command.format(**runs)))
    printed = capsys.readouterr()
    assert code == 2, printed.out
    assert printed.out == ""
    lines = printed.err.splitlines(keepends=True)
    if len(lines) == 2 and "{outdated}" in command:  # that run has lost its last segment
        assert "holds 21 of 24 steps" in lines.pop(0)
    (error,) = lines
    assert error.startswith("ontogeny: ")
    assert error.endswith(".\n")
    assert [snapshot(uri) for uri in touched] == before
    return error
