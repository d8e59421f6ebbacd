"""Tables of an analysis exist completely or not at all, whatever fails."""

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pytest
from refusals import snapshot
from tiny_run import copied, tiny_run

from analysis.attribution.tables import GROUPS
from analysis.jobs.tables import read_table, table_key, write_tables
from analysis.run.run import open_run
from capture.errors import RunError, StoreError
from capture.store import Store
from cluster.cli import main

SCHEMA = pa.schema([("value", pa.int32())])
NAMES: tuple[str, ...] = ("first", "second", "third")
SCHEMAS: dict[str, pa.Schema] = dict.fromkeys(NAMES, SCHEMA)


def frames(value: int) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame({"value": [value]}) for name in NAMES}


@pytest.fixture
def tabled() -> Iterator[str]:
    """Yield a run that holds tables of an earlier run of a job."""
    uri = "memory://bad-input/tabled"
    copied(tiny_run(), uri)
    write_tables(open_run(uri), "job", frames(1), SCHEMAS)
    yield uri
    copied("memory://bad-input/nothing", uri)


def stored_values(uri: str) -> set[int]:
    """Return the values in the job's files as other tools see them, with or without a marker."""
    run = open_run(uri)
    keys = [key for key in run.store.keys("analysis/job") if key.endswith(".parquet")]
    tables = [pa.parquet.read_table(pa.BufferReader(run.store.get(key))) for key in keys]
    return {value for table in tables for value in table["value"].to_pylist()}


@pytest.mark.parametrize("failing", [*NAMES, "marker"])
def test_tables_of_a_failed_write_are_absent_and_never_mixed(failing, tabled, monkeypatch):
    key = table_key("job", failing) if failing in NAMES else "analysis/job/tables.json"
    put = Store.put

    def put_or_fail(store: Store, where: str, data: bytes) -> None:
        if where == key:
            raise StoreError(where, "cannot be written: no space left")
        put(store, where, data)

    run = open_run(tabled)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "put", put_or_fail)
        with pytest.raises(StoreError, match="no space left"):
            write_tables(run, "job", frames(2), SCHEMAS)
    with pytest.raises(RunError, match="has no tables of job"):
        read_table(run, "job", "first", SCHEMA)
    assert not run.store.exists("analysis/job/tables.json")
    assert stored_values(tabled) <= {2}
    write_tables(run, "job", frames(3), SCHEMAS)
    assert [read_table(run, "job", name, SCHEMA)["value"].item() for name in NAMES] == [3, 3, 3]


def test_tables_that_cannot_be_encoded_leave_the_former_ones(tabled):
    before = snapshot(tabled)
    wrong = frames(2) | {"second": pd.DataFrame({"value": ["two"]})}
    with pytest.raises(pa.ArrowInvalid):
        write_tables(open_run(tabled), "job", wrong, SCHEMAS)
    assert snapshot(tabled) == before


def test_a_table_that_the_job_no_longer_writes_is_deleted(tabled):
    run = open_run(tabled)
    write_tables(run, "job", frames(2), {"first": SCHEMA})
    assert run.store.keys("analysis/job") == [
        "analysis/job/first.parquet",
        "analysis/job/tables.json",
    ]


def test_a_command_that_cannot_write_exits_with_2(tabled, monkeypatch, capsys):
    def full(store: Store, where: str, data: bytes) -> None:
        raise StoreError(f"{store.uri}/{where}", "cannot be written: no space left")

    monkeypatch.setattr(Store, "put", full)
    before = snapshot(tabled)
    assert main(["attribute", tabled, "--quiet"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"ontogeny: {tabled}/analysis/attribute/")
    assert printed.count("\n") == 1
    assert snapshot(tabled) == before


def test_attribution_without_any_evidence_succeeds(tabled, capsys):
    options = ["--evidence", "target", "--outliers", "unit", "--keep", "1e-9"]
    assert main(["attribute", tabled, *options]) == 0
    assert "No neuron has more evidence for a token" in capsys.readouterr().out
    assert not len(read_table(open_run(tabled), "attribute", "groups", GROUPS))
