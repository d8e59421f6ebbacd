"""With a store where one request in twenty fails, all work completes and every retry is counted.

The proxy of ``fault_proxy`` stands between the client and a real S3 server. The default suite runs
one capture and one attribution; ``make torture`` runs many, with more faults.
"""

import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_proxy import FAULTS, FaultInjector, Proxy, proxied
from rich.console import Console
from tiny import contents, make_run, tiny_config

from analysis.attribution.attribute import AttributionConfig, attribute, write_attribution
from analysis.jobs.tables import marker_key
from analysis.run.run import open_run
from capture.config.settings import Config
from capture.errors import StoreAwayError
from capture.format.markers import read_marker
from capture.maintenance.verify import verify
from capture.store import Store
from capture.store import s3 as s3_module
from capture.store.config import StoreConfig
from cluster.local.threads import run_job
from cluster.terminal.run_tables import show_run

pytestmark = pytest.mark.s3

HASTY = {"first_wait_seconds": 0.001, "connect_timeout_seconds": 2, "read_timeout_seconds": 0.4}
MANY = "capture.segment_steps=2"
"""Short segments, so that there are many requests."""
CONFIG = AttributionConfig()
Through = Callable[[FaultInjector], Proxy]


@pytest.fixture
def through(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Through]:
    """Return a function that starts a proxy and sends all requests of the test through it."""
    with ExitStack() as stack:

        def start(injector: FaultInjector) -> Proxy:
            proxy = stack.enter_context(proxied(injector))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            return proxy

        yield start


def hasty(folder: Path, uri: str) -> Config:
    """The tiny run at a URI, with short timeouts so that a test need not wait for stalls."""
    settings = [f"store.{name}={value}" for name, value in HASTY.items()]
    return tiny_config(folder, f"run.uri={uri}", MANY, *settings)


def survive(s3: str, through: Through, tmp_path: Path, injector: FaultInjector) -> None:
    """Capture, verify and attribute with faults; compare with a run without faults."""
    make_run(tiny_config(tmp_path, MANY, name="calm"))
    wanted = contents(str(tmp_path / "calm"))
    through(injector)
    config = hasty(tmp_path, s3)
    make_run(config)
    store = Store(s3, config.store)
    assert contents(s3, config.store) == wanted
    assert verify(store) == []
    run, calm = open_run(s3, config.store), open_run(str(tmp_path / "calm"))
    found = attribute(run, run_job, CONFIG)
    write_attribution(run, found)
    wanted_tables = attribute(calm, run_job, CONFIG)
    for name in ("groups", "tokens", "datums"):
        assert vars(found)[name].equals(vars(wanted_tables)[name])
    assert verify(store) == []
    captured = sum(marker.retries for marker in (run.start, *run.segments))
    attributed = read_marker(run.store, marker_key("attribute")).retries
    assert captured > 0
    print(f"{injector.requests.total()} requests, {dict(injector.faults)}")
    print(f"retries: {captured} in capture, {attributed} in attribute")
    shown = retries_shown_by_info(s3, config.store)
    assert f"capture {captured}" in shown
    assert attributed == 0 or f"attribute {attributed}" in shown


def retries_shown_by_info(uri: str, config: StoreConfig) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_run(console, open_run(uri, config))
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    return next(line for line in lines if line.startswith("retries"))


@pytest.mark.slow
def test_a_capture_and_an_attribution_survive(s3, s3_server, through, tmp_path) -> None:
    injector = FaultInjector(s3_server.port, rate=0.05, seed=4)
    survive(s3, through, tmp_path, injector)
    assert injector.faults.total() >= 5


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_a_capture_survives_more_faults(s3, s3_server, through, tmp_path, seed) -> None:
    injector = FaultInjector(s3_server.port, rate=0.2, seed=seed)
    survive(s3, through, tmp_path, injector)
    assert set(injector.faults) == set(FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_retried_and_counted(s3, s3_server, through, monkeypatch, fault):
    """Every other request fails in one way; small, large and multipart values stay intact."""
    monkeypatch.setattr(s3_module, "PART_BYTES", 2**18)
    injector = FaultInjector(s3_server.port)
    monkeypatch.setattr(injector, "draw_fault", every_other(injector, fault))
    through(injector)
    store = Store(s3, StoreConfig(**{**HASTY, "read_timeout_seconds": 0.1}))
    values = {f"k/{size}": random.Random(size).randbytes(size) for size in (0, 1, 5000, 2**20)}
    for key, data in values.items():
        store.put(key, data)
    assert {key: store.get(key) for key in store.keys()} == values
    with store.open("k/5000") as file:
        file.seek(100)
        assert file.read(1000) == values["k/5000"][100:1100]
    assert store.put_if_absent("lease", b"mine")
    assert not store.put_if_absent("lease", b"yours")
    store.delete("k/1")
    assert not store.exists("k/1")
    assert store.retries >= 10 if fault != "truncated" else store.retries >= 4


def every_other(injector: FaultInjector, fault):
    requests = iter(range(10**9))

    def fate(method: str):
        return fault if next(requests) % 2 == 0 else None

    return fate


def test_an_unreachable_store_raises_its_own_error(s3, s3_server, through) -> None:
    injector = FaultInjector(s3_server.port)
    proxy = through(injector)
    store = Store(s3, StoreConfig(**HASTY, retries=5))
    store.put("a", b"x")
    injector.away = True
    with pytest.raises(StoreAwayError, match=r"broke off: .*\(tried 6 times\). Try again later"):
        store.get("a")
    injector.away = False
    assert store.get("a") == b"x"
    assert store.retries == 5
    assert proxy.endpoint not in json.dumps(store.keys())


def test_losing_the_store_within_a_query_is_not_reported_as_damage(
    s3, s3_server, through, tmp_path
) -> None:
    injector = FaultInjector(s3_server.port)
    through(injector)
    config = tiny_config(tmp_path, f"run.uri={s3}", "store.first_wait_seconds=0.001")
    make_run(config)
    run = open_run(s3, config.store)
    shard = run.shards("outliers")[0]

    def cut_off() -> None:
        with shard.reading() as file:
            injector.away = True
            file.read_row_groups([0])

    with pytest.raises(StoreAwayError, match="broke off"):
        cut_off()
    injector.away = False
    assert len(run.shifts()) == 28 * 4 * 30


def test_taking_retries_resets_their_count(s3, s3_server, through, monkeypatch) -> None:
    injector = FaultInjector(s3_server.port)
    monkeypatch.setattr(injector, "draw_fault", every_other(injector, "503"))
    through(injector)
    store = Store(s3, StoreConfig(**HASTY))
    store.put("a", b"x")
    store.put("b", b"x")
    assert store.take_retries() == 2
    assert store.take_retries() == 0
    store.get("a")
    assert (store.take_retries(), store.retries) == (1, 3)
