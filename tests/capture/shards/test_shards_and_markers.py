"""Laws 5 and 7 for stores, shards and markers: reading returns what was written, or raises."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from checkout import ROOT
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tiny import make_run, tiny_config

from capture.errors import RunError, ShardError, StoreError
from capture.format.chain import read_segments, require_start
from capture.format.markers import File, Marker, read_marker, segment_key, write_marker
from capture.maintenance.verify import Finding, verify
from capture.shards import encoding as shards
from capture.shards import schema
from capture.store import Store
from capture.training.segments import stable_order


@pytest.fixture(params=["folder", "file", "memory"])
def store(request, tmp_path) -> Store:
    uris = {
        "folder": str(tmp_path / "run"),
        "file": f"file://{tmp_path}/run",
        "memory": f"memory://{tmp_path.name}/run",
    }
    return Store(uris[request.param])


@given(data=st.binary(max_size=1000), again=st.binary(max_size=100))
def test_a_key_holds_its_last_value(data, again):
    store = Store("memory://law")
    store.put("a/b.bin", data)
    store.put("a/b.bin", again)
    assert store.get("a/b.bin") == again


def test_a_store_lists_reads_and_deletes_keys(store):
    assert store.keys() == []
    for key in ("b/2", "a", "b/1", "b/c/3"):
        store.put(key, key.encode())
    assert store.keys() == ["a", "b/1", "b/2", "b/c/3"]
    assert store.keys("b") == ["b/1", "b/2", "b/c/3"]
    assert store.keys("absent") == []
    with store.open("b/c/3") as file:
        file.seek(2)
        assert file.read(2) == b"c/"
    assert store.exists("b/1")
    assert not store.exists("b")
    store.delete("b/1")
    store.delete("b/1")
    assert store.keys("b") == ["b/2", "b/c/3"]
    with pytest.raises(FileNotFoundError):
        store.get("b/1")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", "", "a\\..\\x", "a\0b"])
def test_a_key_outside_the_run_is_refused(store, key):
    for verb in (store.get, store.open, store.exists, store.delete):
        with pytest.raises(StoreError, match="is not a key of a run"):
            verb(key)
    with pytest.raises(StoreError, match="is not a key of a run"):
        store.put(key, b"x")


def test_an_unfinished_write_is_not_listed(tmp_path):
    store = Store(str(tmp_path))
    store.put("a/b", b"whole")
    (tmp_path / "a" / ".b.half").write_bytes(b"who")
    assert store.keys() == ["a/b"]


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/a: cannot be written"):
        Store(str(tmp_path / "file")).put("a", b"x")
    with pytest.raises(StoreError, match="nosuch://x: cannot be opened"):
        Store("nosuch://x")


OUTLIER_ROW = {
    "step": st.integers(0, 2**31 - 1),
    "slot": st.integers(0, 2**15 - 1),
    "datum": st.integers(0, 2**31 - 1),
    "unit": st.sampled_from(["a.weight", "b.bias"]),
    "index": st.integers(0, 2**31 - 1),
    "shift": st.floats(width=32, allow_nan=False),
    "position": st.integers(0, 2**15 - 1),
}


@given(rows=st.lists(st.fixed_dictionaries(OUTLIER_ROW), max_size=30))
def test_writing_then_reading_a_shard_is_identity(rows):
    units = pa.DictionaryArray.from_arrays(
        pa.array([["a.weight", "b.bias"].index(row["unit"]) for row in rows], pa.int16()),
        pa.array(["a.weight", "b.bias"]),
    )
    columns = {name: pa.array([row[name] for row in rows]) for name in OUTLIER_ROW} | {
        "unit": units
    }
    table = pa.table(columns).cast(schema.OUTLIERS)
    data = shards.encode(table)
    assert parquet.read_metadata(pa.BufferReader(data)).num_rows == len(rows)
    again = shards.decode(bytes(data))
    assert again.cast(schema.OUTLIERS).to_pylist() == table.to_pylist()
    assert bytes(shards.encode(table)) == bytes(data)


def test_a_process_that_has_read_waits_for_arrow_s_threads_at_its_end():
    """Without the wait, one process in ten was aborted by a thread that held bytes of Python."""
    data = bytes(shards.encode(pa.table({"count": pa.array([1, 2], pa.int64())})))
    code = (
        "import atexit, time\n"
        "atexit.register = lambda what, *more: what is time.sleep and print('waits')\n"
        "from capture.shards import decode\n"
        f"for _ in range(2): decode({data!r}, 'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "waits\n", done.stderr


@pytest.mark.parametrize("dashes", [8, 16, 64, 400])
def test_tokens_of_dashes_are_not_taken_for_the_place_of_checksums(dashes):
    """Statistics in the footer hold the least and the largest token."""
    words = pa.table({"token": ["-" * dashes, "a"], "count": pa.array([1, 2], pa.int64())})
    data = bytes(shards.encode(words))
    assert shards.decode(data, "words.parquet").equals(words)


def test_schemas_equal_the_golden_file():
    names = ("OUTLIERS", "STEPS", "EVALUATIONS", "VOCABULARY", "DATUMS")
    schemas = {name: getattr(schema, name) for name in names}
    schemas["tally_schema(1)"] = schema.tally_schema(1)
    found = {name: {field.name: str(field.type) for field in s} for name, s in schemas.items()}
    golden = Path(__file__).parents[2] / "golden" / f"schema-{schema.SCHEMA_VERSION}.json"
    assert found == json.loads(golden.read_text())


def test_each_column_has_the_encoding_for_its_type(tmp_path):
    make_run(tiny_config(tmp_path))
    shard = parquet.ParquetFile(str(tmp_path / "run/outliers/segment-000000-w00.parquet"))
    group = shard.metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    encodings = {column.path_in_schema: set(column.encodings) for column in columns}
    assert "BYTE_STREAM_SPLIT" in encodings["shift"]
    assert all("DELTA_BINARY_PACKED" in encodings[name] for name in ("step", "index", "datum"))
    assert {column.compression for column in columns} == {"ZSTD"}
    assert shard.schema_arrow.metadata[shards.VERSION_KEY] == str(schema.SCHEMA_VERSION).encode()


@given(seed=st.integers(0, 1000), size=st.integers(0, 200), top=st.sampled_from([1, 70, 10**6]))
def test_stable_order_equals_numpy_s(seed, size, top):
    column = np.random.default_rng(seed).integers(0, top, size)
    np.testing.assert_array_equal(stable_order(column), np.argsort(column, kind="stable"))


MARKER = Marker(0, 8, (File.of("steps/x.parquet", "steps", b"abc", 8),))


def test_a_marker_is_read_as_written_and_any_damage_is_found():
    store = Store("memory://markers")
    write_marker(store, "segments/start.json", Marker(0, 0, ()))
    write_marker(store, "segments/segment-000000.json", MARKER)
    found = read_marker(store, "segments/segment-000000.json")
    assert (found.first_step, found.end_step, found.files) == (0, 8, MARKER.files)
    assert found.written_at.endswith("+00:00")
    intact = store.get("segments/segment-000000.json")
    for place in random.Random(0).sample(range(len(intact)), 60):
        damaged = intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :]
        store.put("segments/segment-000000.json", damaged)
        with pytest.raises(ShardError):
            read_marker(store, "segments/segment-000000.json")


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "{}", '{"files": 3}', "[" * 100_000])
def test_an_invalid_marker_is_refused(text):
    store = Store("memory://nonsense")
    store.put("segments/start.json", text.encode())
    with pytest.raises(ShardError, match=r"start\.json: is not a readable marker"):
        require_start(store)


def test_a_marker_of_a_newer_schema_asks_for_a_newer_version(monkeypatch):
    store = Store("memory://newer")
    newer = Marker(0, 8, MARKER.files, schema_version=schema.SCHEMA_VERSION + 1)
    write_marker(store, "segments/start.json", newer)
    with pytest.raises(RunError, match=r"has schema version 4, this version of ontogeny reads 3"):
        require_start(store)


def test_a_gap_between_segments_is_named():
    store = Store("memory://gap")
    write_marker(store, "segments/start.json", Marker(0, 0, ()))
    for segment in (0, 1, 2):
        write_marker(store, segment_key(segment), Marker(8 * segment, 8 * segment + 8, ()))
    store.delete(segment_key(1))
    with pytest.raises(ShardError, match=r"segment-000001\.json: is missing although"):
        read_segments(store)


@pytest.fixture
def run(tmp_path) -> Path:
    make_run(tiny_config(tmp_path, "training.epochs=1"))
    return tmp_path / "run"


def findings(run: Path) -> list[tuple[str, str]]:
    return [(f.key, f.state) for f in verify(Store(str(run)))]


def test_an_intact_run_has_no_findings_and_every_file_is_read(run):
    read: list[File] = []
    assert verify(Store(str(run)), read.append) == []
    markers = {key for key in Store(str(run)).keys() if key.startswith("segments/")}
    assert {file.key for file in read} | markers == set(Store(str(run)).keys())


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_byte_anywhere_is_found(run, seed):
    rng = random.Random(seed)
    key = rng.choice(Store(str(run)).keys())
    data = bytearray((run / key).read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    (run / key).write_bytes(data)
    assert (key, "damaged") in findings(run)


def test_truncated_missing_swapped_and_unlisted_files_are_named(run):
    first, second = sorted((run / "outliers").iterdir())[:2]
    (run / "steps/segment-000000.parquet").unlink()
    checkpoint = run / "checkpoints/step-000008.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    (run / "outliers/extra.parquet").write_bytes(b"?")
    assert sorted(findings(run)) == [
        ("checkpoints/step-000008.safetensors", "damaged"),
        ("outliers/extra.parquet", "unlisted"),
        ("outliers/segment-000000-w00.parquet", "damaged"),
        ("outliers/segment-000001-w00.parquet", "damaged"),
        ("steps/segment-000000.parquet", "missing"),
    ]


def test_a_lost_marker_in_the_middle_is_named(run):
    (run / "segments/segment-000000.json").unlink()
    found = verify(Store(str(run)))
    wanted = Finding("segments/segment-000000.json", "missing", "a later segment exists")
    assert wanted in found


def test_a_store_without_a_run_is_named(tmp_path):
    with pytest.raises(RunError, match=r"holds no run\. Make one with: ontogeny capture"):
        verify(Store(str(tmp_path)))
