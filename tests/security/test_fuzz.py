"""Fuzz tests of the readers of markers, configurations and Parquet.

Each case is a real file with some changes, or noise. A reader must accept it or raise
``CaptureError``; it must not hang or use much memory. Half of the changed markers get a valid
checksum, so that the checks after that of the checksum run too.
"""

import io
import json
import random
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import yaml
from damage import intact
from hostile import table_bytes
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from capture.config.reading import make_config, read_config
from capture.errors import CaptureError
from capture.format.markers import START, checksum, encode, read_marker, segment_key
from capture.format.run_yaml import parse_run_yaml
from capture.shards.column_chunks import footer_length
from capture.shards.verified_parquet import open_parquet
from capture.store import Store

SEEDS = st.integers(0, 2**40)
SHORT = settings(max_examples=150, deadline=20_000)
FEW = settings(SHORT, max_examples=40)
MAX_GROWTH_MIB = 600
EXTREME_VALUES: list[Any] = [
    *(0, -1, 1, 2**31, 2**53, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "../x", "/", "\0", "\ud800", "9" * 50, "${oc.env:HOME}", "*", "é" * 99, "a" * 9999),
    *(None, True, False, [], {}, [[]], {"a": {}}, [None] * 50, {"": None}, {"1": 2}),
]


def many_examples(cases: int) -> settings:
    """Return settings for the long form: new random cases on every run, without shrinking."""
    return settings(SHORT, max_examples=cases, derandomize=False, phases=[Phase.generate])


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Assert after all tests that the peak of memory grew by less than the limit."""
    intact()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < MAX_GROWTH_MIB


# --- changes --------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with a few changed, removed, repeated or inserted; sometimes only noise."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(300))
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        place, length = rng.randrange(len(result) + 1), rng.choice([1, 1, 2, 4, 8, 60])
        piece = result[place : place + length]
        with_noise = [rng.randbytes(len(piece)), b"", piece * 2, piece + rng.randbytes(length)]
        extremes = [b"\xff" * len(piece), b"\0" * len(piece), b"\x80" * len(piece)]
        result[place : place + length] = rng.choice([*with_noise, *extremes])
    return bytes(result)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Return the nested value with one inner value replaced, removed, repeated or moved."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(EXTREME_VALUES)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        kept = [value[:place], value[:place] + value[place:] * 2]
        return rng.choice(
            [*kept, [*value[:place], mutate_value(value[place], rng), *value[place + 1 :]]]
        )
    key = rng.choice(list(value))
    rest = {name: inner for name, inner in value.items() if name != key}
    more: list[Callable[[], Any]] = [
        lambda: rest,
        lambda: value | {str(rng.choice(EXTREME_VALUES)): rng.choice(EXTREME_VALUES)},
        lambda: value | {key: mutate_value(value[key], rng)},
        lambda: value | {key: mutate_value(value[key], rng)},
        lambda: value | {key: rng.choice(list(value.values()))},
    ]
    return rng.choice(more)()


# --- markers --------------------------------------------------------------------------------------


def marker_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    key = rng.choice([START, segment_key(1)])
    data = (
        mutate_bytes(intact()[key], rng)
        if rng.random() < 0.3
        else mutate_marker(intact()[key], rng)
    )
    store = Store("memory://fuzz")
    store.put(key, data)
    try:
        marker = read_marker(store, key)
    except CaptureError:
        return
    assert all(0 <= file.num_bytes < 2**53 and ".." not in file.key for file in marker.files)


def mutate_marker(data: bytes, rng: random.Random) -> bytes:
    """Return the marker with changed values; half of the time with a valid checksum."""
    values = json.loads(data)
    values.pop("checksum")
    for _ in range(rng.choice([1, 1, 2, 4])):
        values = mutate_value(values, rng)
    if not isinstance(values, dict) or rng.random() < 0.5:
        return json.dumps(values, indent=1).encode()
    return encode(values | {"checksum": checksum(values)})


@given(seed=SEEDS)
@SHORT
def test_a_marker_is_read_or_refused(seed):
    marker_is_read_or_refused(seed)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@given(seed=SEEDS)
@many_examples(26_000)
def test_any_of_many_markers_is_read_or_refused(seed):
    marker_is_read_or_refused(seed)


# --- configurations -------------------------------------------------------------------------------


def config_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    text = intact()["run.yaml"]
    if rng.random() < 0.5:
        data = mutate_bytes(text, rng)
    else:
        data = yaml.safe_dump(mutate_value(yaml.safe_load(text), rng)).encode()
    try:
        values = parse_run_yaml(data, "run.yaml")
        make_config(values["config"], where="run.yaml")
    except CaptureError:
        return


def override_is_read_or_refused(key: str, text: str) -> None:
    try:
        read_config(None, [f"{key}={text}"])
    except CaptureError:
        return


KEYS = st.sampled_from(
    ["run.seed", "capture.units", "training.epochs", "corpus.path", "model", "x"]
)


@given(seed=SEEDS)
@FEW
def test_a_configuration_is_read_or_refused(seed):
    config_is_read_or_refused(seed)


@given(key=KEYS, text=st.text(max_size=30))
@example(key="run.seed", text="9" * 5000)
@example(key="run.seed", text="2001-99-99")
@example(key="capture.units", text="[" * 40)
@FEW
def test_an_override_is_read_or_refused(key, text):
    override_is_read_or_refused(key, text)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@given(seed=SEEDS)
@many_examples(4_500)
def test_any_of_many_configurations_is_read_or_refused(seed):
    config_is_read_or_refused(seed)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@given(key=KEYS, text=st.text(max_size=30))
@many_examples(1_500)
def test_any_of_many_overrides_is_read_or_refused(key, text):
    override_is_read_or_refused(key, text)


# --- Parquet --------------------------------------------------------------------------------------


def shard_is_read_or_refused(seed: int) -> None:
    """Mutate the footer or the pages and read without a marker, whose checksum would refuse all."""
    rng = random.Random(seed)
    ours = [
        intact()[key] for key in ("outliers/segment-000001-w00.parquet", "corpus/vocab.parquet")
    ]
    data = rng.choice([*ours, ORDINARY_PARQUET])
    footer = footer_length(data[-8:]) + 8
    if rng.random() < 0.6:
        tail = mutate_bytes(data[-footer:-8], rng)
        data = data[:-footer] + tail + len(tail).to_bytes(4, "little") + b"PAR1"
    else:
        start, end = 4, len(data) - footer
        size = len(data)
        data = data[:start] + mutate_bytes(data[start:end], rng) + data[end:]
        data = data if len(data) == size or rng.random() < 0.5 else data[:size]
    try:
        with open_parquet(io.BytesIO(data), "shard", num_bytes=len(data)) as file:
            file.read().validate(full=True)
    except CaptureError:
        return


# Our own shards have checksums in their pages; this file has none, so that decoding is reached.
ORDINARY_PARQUET = table_bytes(
    pa.table(
        {
            "number": pa.array(range(300), pa.int32()),
            "unit": pa.array(["a", "b", "c"] * 100).dictionary_encode(),
            "items": pa.array([[1, 2], [], [3]] * 100, pa.list_(pa.int32())),
            "text": pa.array([f"word {i}" for i in range(300)]),
        }
    ),
    row_group_size=100,
)


@given(seed=SEEDS)
@example(seed=19583)  # a row group that claims 2^31 rows of 100 values
@SHORT
def test_a_shard_is_read_or_refused(seed):
    shard_is_read_or_refused(seed)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@given(seed=SEEDS)
@many_examples(20_000)
def test_any_of_many_shards_is_read_or_refused(seed):
    shard_is_read_or_refused(seed)
