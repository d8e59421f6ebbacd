"""Error messages of queries that a run cannot answer."""

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
from tiny_run import copied, make_run, tiny_run

from analysis.run.run import Run, open_run
from capture.errors import CaptureError, RunError, ShardError, UnitError
from capture.format.markers import Marker, read_marker, segment_key, write_marker
from capture.store import Store

WEIGHT = "layers.1.linear2.weight"


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(tiny_run())


@pytest.mark.parametrize(
    ("ask", "kind", "text"),
    [
        (
            lambda run: run.shifts("layers.1.linaer2.weight"),
            UnitError,
            "layers.1.linaer2.weight: was not captured. Did you mean layers.1.linear2.weight.",
        ),
        (
            lambda run: run.shifts([WEIGHT, "decoder.bias"]),
            UnitError,
            "decoder.bias: was not captured. Did you mean layers.1.norm2.bias.",
        ),
        (
            lambda run: run.shifts(WEIGHT, [3, 192]),
            UnitError,
            f"{WEIGHT}[192]: does not exist: the unit is 16 × 12, its indices are 0 to 191.",
        ),
        (
            lambda run: run.shifts(index=3),
            UnitError,
            "index: got 3 without a unit. Say which unit it indexes.",
        ),
        (
            lambda run: run.shifts(WEIGHT, 1.5),
            RunError,
            "index: got 1.5, must be a whole number or several.",
        ),
        (
            lambda run: run.shifts(steps=range(24, 30)),
            RunError,
            "memory://tiny-run: has steps 0 to 23, asked for 24 to 29. "
            "Steps are chosen as in steps=range(first, end).",
        ),
        (
            lambda run: run.shifts(steps=(0, 3)),
            RunError,
            "memory://tiny-run: steps=(0, 3) is not a range. Ask for steps=range(first, end).",
        ),
        (
            lambda run: run.shifts(datum=[2, 51]),
            RunError,
            "memory://tiny-run: has no datum 51: its datums are 0 to 50.",
        ),
        (
            lambda run: run.model(25),
            RunError,
            "memory://tiny-run: has no weights after 25 steps; it has 24.",
        ),
        (
            lambda run: run.datums("test"),
            RunError,
            "memory://tiny-run: has no corpus/test.parquet.",
        ),
    ],
)
def test_a_wrong_query_raises_one_clear_line(
    run: Run, ask: Callable[[Run], object], kind: type[CaptureError], text: str
) -> None:
    with pytest.raises(kind) as caught:
        ask(run)
    assert str(caught.value) == text
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (kind, text)


def test_a_missing_run_is_refused() -> None:
    with pytest.raises(RunError, match="memory://nowhere: holds no run"):
        open_run("memory://nowhere")


def test_a_run_without_a_segment_has_no_shifts() -> None:
    store = copied(tiny_run(), "memory://run-empty")
    for segment in range(4):
        store.delete(segment_key(segment))
    run = open_run(store.uri)
    assert run.steps().empty
    assert run.evaluations().empty
    assert run.model().training is False
    with pytest.raises(RunError, match="run-empty: holds no committed segment yet"):
        run.shifts()


def test_a_newer_schema_is_refused() -> None:
    store = copied(tiny_run(), "memory://run-newer")
    newer = replace(read_marker(store, segment_key(3)), schema_version=99)
    write_marker(store, segment_key(3), newer)
    with pytest.raises(RunError, match="has schema version 99"):
        open_run(store.uri)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda store, key: store.delete(key), "is missing"),
        (
            lambda store, key: store.put(key, store.get(key)[:-9]),
            r"holds .* bytes, its marker says",
        ),
        (lambda store, key: store.put(key, bytes(len(store.get(key)))), "is not readable: "),
        (lambda store, key: change_marker(store, more_rows), "holds 1,400 rows, its marker says 7"),
    ],
)
def test_a_damaged_shard_is_named(damage: Callable[[Store, str], object], problem: str) -> None:
    store = copied(tiny_run(), "memory://run-damaged")
    key = "outliers/segment-000000-w00.parquet"
    damage(store, key)
    with pytest.raises(ShardError, match=f"^{store.uri}/{key}: {problem}.*Run: ontogeny verify.$"):
        open_run(store.uri).shifts()


def change_marker(store: Store, change: Callable[[Marker], Marker]) -> None:
    write_marker(store, segment_key(0), change(read_marker(store, segment_key(0))))
    for segment in range(1, len(store.keys("segments")) - 1):  # the chain, made good
        write_marker(store, segment_key(segment), read_marker(store, segment_key(segment)))


def more_rows(marker: Marker) -> Marker:
    files = [replace(f, rows=7) if f.kind == "outliers" else f for f in marker.files]
    return replace(marker, files=tuple(files))


def test_identical_windows_share_a_text() -> None:
    """The corpus repeats one window, so several datums have the same text."""
    run = open_run(
        make_run(
            "memory://run-repeats", "corpus.window=1", "training.batch=40", "training.epochs=1"
        )
    )
    found = run.shifts(steps=range(3))
    texts = run.datums()["text"]
    assert found["datum"].tolist() == [texts[d] for d in found["datum_id"]]
