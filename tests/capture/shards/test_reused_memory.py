"""Large tables are made in memory that is used again, and never while someone holds its bytes."""

import numpy as np
import pyarrow as pa
import pytest

from capture.shards import encoding
from capture.shards.encoding import encode
from capture.shards.reused_memory import KEPT_BYTES, MEMORY, ReusedSink


@pytest.fixture(autouse=True)
def all_tables_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "REUSED_BYTES", 0)
    monkeypatch.setattr(MEMORY, "kept", None)


def table_of(seed: int, rows: int = 2_000) -> pa.Table:
    draw = np.random.default_rng(seed)
    return pa.table({"a": draw.integers(0, 2**40, rows), "b": draw.normal(size=rows)})


def address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def test_the_bytes_are_those_of_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    reused = bytes(encode(table_of(0)))
    monkeypatch.setattr(encoding, "REUSED_BYTES", 2**40)
    assert bytes(encode(table_of(0))) == reused


def test_bytes_that_are_held_do_not_change_when_another_table_is_encoded() -> None:
    held = encode(table_of(0))
    before, part = bytes(held), held[100:200]
    other = encode(table_of(1))
    assert bytes(held) == before
    assert bytes(other) != before
    del held
    encode(table_of(2))
    assert bytes(part) == before[100:200]


def test_memory_that_nobody_holds_is_used_again() -> None:
    first = encode(table_of(0))
    place = address(first)
    del first
    assert address(encode(table_of(1))) == place


def test_a_file_larger_than_expected_is_whole() -> None:
    sink = ReusedSink(10)
    pieces = [bytes([number]) * 3_000 for number in range(5)]
    for piece in pieces:
        assert sink.write(piece) == 3_000
    assert sink.getvalue() == b"".join(pieces)
    assert sink.tell() == 15_000


def test_a_thread_keeps_no_more_than_its_bound() -> None:
    assert len(MEMORY.take(KEPT_BYTES + 1)) > KEPT_BYTES
    assert MEMORY.kept is None
