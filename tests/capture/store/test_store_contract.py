"""The contract of a store, tested in memory, in a local folder and on a real S3 server."""

import io
import pickle
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from capture.errors import StoreError
from capture.store import Store
from capture.store import s3 as s3_module

STORES = ["memory", "folder", pytest.param("s3", marks=pytest.mark.s3)]
ODD_KEYS = ["a b/c", "ü/☃ + % & = ? # ' \" .bin", "a.b-c_d~e/(1)!*;:@$,", "UP/up", "x" * 200]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    if request.param == "s3":
        yield Store(f"{request.getfixturevalue('s3')}/the run")
    elif request.param == "folder":
        yield Store(str(tmp_path / "the run"))
    else:
        store = Store(f"memory://{tmp_path.name}/the run")
        yield store
        for key in store.keys():
            store.delete(key)


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.keys() == []
    assert store.keys("a/b") == []
    assert not store.exists("a")
    for verb in (store.get, store.open, store.modified):
        with pytest.raises(FileNotFoundError):
            verb("a/b")
    store.delete("a/b")


def test_a_read_returns_the_last_put(store: Store) -> None:
    for data in (b"first", b"second and longer", b"", memoryview(b"third")):
        store.put("a/b", data)
        assert store.get("a/b") == bytes(data)
        assert store.keys() == ["a/b"]
        with store.open("a/b") as file:
            assert file.read() == bytes(data)


def test_a_listing_is_up_to_date(store: Store) -> None:
    for number in range(5):
        store.put(f"f/{number}", b"x")
        assert store.keys("f") == store.keys() == [f"f/{n}" for n in range(number + 1)]
    other = Store(store.uri)
    other.delete("f/2")
    other.put("f/9", b"y")
    assert store.keys() == ["f/0", "f/1", "f/3", "f/4", "f/9"]
    assert not store.exists("f/2")


def test_keys_are_listed_by_folder_and_sorted(store: Store) -> None:
    for key in ("b/2", "a", "b/1", "b/c/3", "bb/1", "b.c"):
        store.put(key, key.encode())
    assert store.keys() == ["a", "b.c", "b/1", "b/2", "b/c/3", "bb/1"]
    assert store.keys("b") == ["b/1", "b/2", "b/c/3"]
    assert store.keys("b/c") == ["b/c/3"]
    assert [store.exists(key) for key in ("a", "b", "b/c", "b/c/3")] == [True, False, False, True]
    store.delete("b/1")
    assert store.keys("b") == ["b/2", "b/c/3"]


def test_stores_with_a_common_prefix_are_separate(store: Store) -> None:
    beside = Store(f"{store.uri}-2")
    store.put("a", b"1")
    beside.put("b", b"2")
    assert (store.keys(), beside.keys()) == (["a"], ["b"])
    beside.delete("b")


def test_keys_with_odd_characters_work(store: Store) -> None:
    for key in ODD_KEYS:
        store.put(key, key.encode())
    assert store.keys() == sorted(ODD_KEYS)
    assert [store.get(key).decode() for key in ODD_KEYS] == ODD_KEYS
    for key in ODD_KEYS:
        store.delete(key)
    assert store.keys() == []


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/x", "", "a\\..\\x", "a\0b", "a//b", "./a", "a/", "."]
)
def test_a_key_outside_the_run_is_refused(store: Store, key: str) -> None:
    verbs = (store.get, store.open, store.exists, store.delete, store.modified)
    for verb in verbs:
        with pytest.raises(StoreError, match="is not a key of a run"):
            verb(key)
    for put in (store.put, store.put_if_absent):
        with pytest.raises(StoreError, match="is not a key of a run"):
            put(key, b"x")


def test_more_keys_than_one_page_are_listed(store: Store) -> None:
    keys = [f"many/{number:05d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"."), keys))
    assert store.keys() == store.keys("many") == keys


def test_a_large_value_is_uploaded_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 * 2**20)
    data = random.Random(0).randbytes(12 * 2**20 + 1)
    store.put("large", b"was smaller")
    store.put("large", memoryview(data))
    assert store.get("large") == data
    assert store.keys() == ["large"]
    with store.open("large") as file:
        assert file.seek(0, io.SEEK_END) == len(data)


def test_any_range_can_be_read(store: Store) -> None:
    data = random.Random(1).randbytes(10_000)
    store.put("a", data)
    with store.open("a") as file:
        for start, size in ((0, 1), (9_999, 5), (5_000, 2_500), (10_000, 3), (0, 10_000), (7, 0)):
            assert file.seek(start) == file.tell() == start
            assert file.read(size) == data[start : start + size]
        file.seek(-4, io.SEEK_END)
        assert file.read() == data[-4:]


def test_arrow_reads_from_an_open_value(store: Store) -> None:
    table = pa.table({"x": range(5000), "y": [float(i) for i in range(5000)]})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, row_group_size=500)
    store.put("t.parquet", sink.getvalue().to_pybytes())
    with store.open("t.parquet") as file:
        read = parquet.ParquetFile(file).read_row_groups([3, 7], columns=["y"])
    assert read["y"].to_pylist() == [*range(1500, 2000), *range(3500, 4000)]


def test_concurrent_writers_of_different_keys_do_not_interfere(store: Store) -> None:
    def work(number: int) -> bool:
        data = random.Random(number).randbytes(20_000 + number)
        store.put(f"t/{number}", data)
        return store.get(f"t/{number}") == data and Store(store.uri).exists(f"t/{number}")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(48)))
    assert len(store.keys()) == 48


def test_concurrent_writers_of_one_key_leave_one_whole_value(store: Store) -> None:
    values = [bytes([number]) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda value: store.put("a", value), values))
        assert store.get("a") in values


def test_put_if_absent_keeps_an_existing_value(store: Store) -> None:
    assert store.put_if_absent("a/lease", b"mine")
    assert not store.put_if_absent("a/lease", b"yours")
    assert store.get("a/lease") == b"mine"
    store.delete("a/lease")
    assert store.put_if_absent("a/lease", b"yours")
    assert store.keys() == ["a/lease"]


def test_modified_is_the_time_of_the_last_put(store: Store) -> None:
    store.put("a", b"x")
    modified = store.modified("a")
    assert abs(modified.replace(tzinfo=modified.tzinfo or UTC) - datetime.now(UTC)) < timedelta(
        minutes=1
    )


def test_a_store_can_be_pickled(store: Store) -> None:
    store.put("a", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert again.get("a") == b"x"
    assert (again.uri, again.retries) == (store.uri, 0)


def test_a_trailing_slash_changes_nothing(store: Store) -> None:
    store.put("a", b"x")
    assert Store(f"{store.uri}/").keys() == ["a"]
    assert store.unfinished() == []
