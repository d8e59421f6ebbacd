"""How many bytes of a run on S3 a query fetches, and in how many requests."""

import time
from contextlib import nullcontext

import numpy as np
import pytest
from fault_proxy import FaultInjector, proxied
from tiny import make_run, tiny_config

from analysis.run.run import Run, open_run
from capture.errors import ShardError
from capture.format.markers import File, Marker, segment_key, write_marker
from capture.shards import encoding as shards
from capture.shards.schema import OUTLIERS
from capture.store import Store
from capture.store import s3 as s3_module
from capture.store.parallel import map_in_parallel
from capture.training.segments import OpenSegment, outlier_table
from cluster.cli import main

pytestmark = pytest.mark.s3


def replace_outliers(run: Run, num_rows: int) -> None:
    """Replace the first segment's outlier shard by a realistic one of ``num_rows``."""
    segment = run.segments[0]
    rng = np.random.default_rng(0)
    column_M = rng.integers(0, run.layout.size, num_rows)
    rows = {
        "step": rng.integers(0, segment.end_step, num_rows).astype(np.int32),
        "slot": rng.integers(0, 4, num_rows).astype(np.int16),
        "datum": rng.integers(0, run.num_datums, num_rows).astype(np.int32),
        "column": column_M,
        "shift": rng.normal(size=num_rows).astype(np.float32),
        "position": rng.integers(0, 8, num_rows).astype(np.int16),
    }
    table = outlier_table(OpenSegment(0, outliers=[rows]), run.layout)
    assert table.schema.equals(OUTLIERS)
    old = segment.files_of("outliers")[0]
    data = shards.encode(table)
    run.store.put(old.key, data)
    others = [file for file in segment.files if file.kind != "outliers"]
    files = (*others, File.of(old.key, "outliers", data, num_rows))
    write_marker(run.store, segment_key(0), Marker(0, segment.end_step, files))


def test_info_asks_for_several_segments_at_a_time(s3, s3_server, tmp_path, monkeypatch):
    """About six requests a segment: one after the other, a long run takes minutes to open."""
    config = tiny_config(tmp_path, f"run.uri={s3}", "training.epochs=1", "capture.segment_steps=2")
    make_run(config)
    faults = FaultInjector(s3_server.port, delay_seconds=0.02)
    with proxied(faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        began = time.monotonic()
        assert main(["info", s3]) == 0
        seconds = time.monotonic() - began
    requests = faults.requests.total()
    print(f"{requests} requests, {faults.most_at_once} at once, {seconds:.2f} s")
    assert requests > 40
    assert faults.most_at_once >= 4


@pytest.mark.parametrize("broken", [[], [2], [5, 2], [0, 9]])
def test_the_first_item_that_fails_ends_the_work_as_in_a_plain_loop(broken: list[int]):
    begun: list[int] = []
    got: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02 if item == min(broken, default=-1) else 0)  # a later failure is earlier
        if item in broken:
            raise ShardError(str(item), "is bad")
        return item * 10

    with pytest.raises(ShardError) if broken else nullcontext() as raised:
        got.extend(map_in_parallel(work, range(10), 3))
    assert got == [item * 10 for item in range(min(broken, default=10))]
    if raised:
        assert raised.value.where == str(min(broken))
        assert len(begun) <= min(broken) + 3


def test_parts_of_an_upload_are_sent_several_at_a_time(s3, s3_server, monkeypatch):
    faults = FaultInjector(s3_server.port, delay_seconds=0.02)
    parts = s3_module.PARTS_AT_ONCE + 4
    data = bytes(range(256)) * 2**10 * parts
    with proxied(faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(s3_module, "PART_BYTES", len(data) // parts)
        Store(s3).put("large", data)
        assert Store(s3).get("large") == data
    assert faults.requests["PUT"] == parts
    assert 4 < faults.most_at_once <= s3_module.PARTS_AT_ONCE


def test_a_query_for_one_weight_fetches_few_per_cent_of_a_shard(
    s3, s3_server, tmp_path, monkeypatch
):
    make_run(
        tiny_config(tmp_path, f"run.uri={s3}", "training.epochs=1", "capture.segment_steps=99")
    )
    replace_outliers(open_run(s3), 2_000_000)
    faults = FaultInjector(s3_server.port)
    with proxied(faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        run = open_run(s3)
        size = sum(file.num_bytes for part in run.segments for file in part.files_of("outliers"))
        unit = run.layout.names[len(run.layout.names) // 2]
        faults.requests.clear()
        found = run.shifts(unit, 17)
    fetched = sum(n for path, n in faults.fetched.items() if "/outliers/" in path)
    print(f"{size:,} bytes, fetched {fetched:,} ({fetched / size:.1%}) by {dict(faults.requests)}")
    assert len(found) > 100
    assert set(found["unit"]) == {unit}
    assert size > 10 * 2**20
    assert 0 < fetched <= 0.05 * size
    assert faults.requests["GET"] <= 20


def test_a_query_for_one_gradient_fetches_few_columns(s3, s3_server, tmp_path, monkeypatch):
    settings = ["corpus.window=35", "model.width=64", "model.hidden=64", "model.heads=2"]
    settings += ["corpus.validation_share=0.1", "training.epochs=1"]
    settings += ["capture.factors.enabled=true", f"run.uri={s3}"]
    make_run(tiny_config(tmp_path, *settings))
    faults = FaultInjector(s3_server.port)
    with proxied(faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        run = open_run(s3)
        step, datum = 1, run.steps()["datums"][1][2]
        faults.requests.clear()
        found = run.gradient(step, datum, "layers.0.linear2.weight")
    size = sum(shard.file.num_bytes for shard in run.shards("factors"))
    fetched = sum(n for path, n in faults.fetched.items() if "/factors/" in path)
    print(f"{size:,} bytes, fetched {fetched:,} ({fetched / size:.1%}) by {dict(faults.requests)}")
    assert found.any()
    assert size > 2**20
    assert 0 < fetched <= 2**16 + 4 * 2 * 35 * 64 * 4 + 2**10, (
        "more than the footer, and four rows of δ and a with their page headers"
    )
    assert faults.requests["GET"] <= 20
