"""Footers are verified once while they are in use, and bytes at every read."""

import io

import numpy as np
import pyarrow as pa
import pytest

from capture.errors import ShardError
from capture.shards import encoding, verified_parquet
from capture.shards.verified_parquet import open_parquet


def read(data: bytes) -> pa.Table:
    with open_parquet(io.BytesIO(data), "shard", num_bytes=len(data)) as file:
        return file.read()


def test_equal_footers_are_verified_once_and_their_bytes_at_every_read():
    verified_parquet.verified_again.cache_clear()
    table = pa.table({"step": [1, 2, 3], "loss": [0.5, 0.25, 0.125]})
    data = bytes(encoding.encode(table))
    assert read(data)["step"].to_pylist() == read(data)["step"].to_pylist() == [1, 2, 3]
    info = verified_parquet.verified_again.cache_info()
    assert (info.misses, info.hits) == (1, 1)
    damaged = bytearray(data)
    damaged[4] ^= 1
    with pytest.raises(ShardError, match="checksum of its column"):
        read(bytes(damaged))
    assert read(data)["loss"].to_pylist() == [0.5, 0.25, 0.125]


def test_a_footer_that_was_verified_is_refused_in_a_file_of_another_size():
    loss = np.random.default_rng(0).normal(size=1000)  # more bytes than the footer has
    data = bytes(encoding.encode(pa.table({"loss": loss})))
    assert read(data).num_rows == 1000
    footer = 8 + int.from_bytes(data[-8:-4], "little")
    with pytest.raises(ShardError, match="lies outside the file"):
        read(data[:4] + data[-footer:])
