"""Tables of an analysis exist completely or not at all, whatever fails."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pytest
from refusals import snapshot
from tiny_run import copied, tiny_run

import ontogeny
from analysis.attribution.tables import GROUPS
from analysis.jobs.question import Question
from analysis.jobs.tables import (
    check_set_name,
    read_question,
    read_table,
    require_tables,
    table_key,
    table_set,
    table_sets,
    write_tables,
)
from analysis.run.run import open_run
from capture.errors import ConfigError, RunError, StoreError
from capture.maintenance.garbage import find_garbage
from capture.maintenance.verify import verify
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
    assert printed.startswith(f"ontogeny: {tabled}/analysis/attribute: cannot be written: no space")
    assert printed.count("\n") == 1
    assert snapshot(tabled) == before


def test_attribution_without_any_evidence_succeeds(tabled, capsys):
    options = ["--evidence", "target", "--outliers", "unit", "--keep", "1e-9"]
    assert main(["attribute", tabled, *options]) == 0
    assert "No neuron has more evidence for a token" in capsys.readouterr().out
    assert not len(read_table(open_run(tabled), "attribute", "groups", GROUPS))


# --- questions, and several sets of tables --------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    steps: tuple[int, int] = (0, 7)
    predicate: object = None


def test_tables_record_the_question_that_they_answer(tabled) -> None:
    run = open_run(tabled)
    write_tables(run, "job", frames(2), SCHEMAS, Question.of("job", Asked()))
    found = read_question(open_run(tabled), "job")
    assert (found.command, found.options) == ("job", {"steps": [0, 7], "predicate": None})
    assert found.versions["ontogeny"] == ontogeny.__version__
    assert found.steps == run.steps_done
    marker = json.loads(run.store.get("analysis/job/tables.json"))
    assert marker["question"]["options"] == {"steps": [0, 7], "predicate": None}
    assert require_tables(run, "job").end_step == run.steps_done


def test_tables_without_a_question_stay_readable(tabled) -> None:
    assert read_question(open_run(tabled), "job") == Question("job", {}, {}, 24)


def test_sets_of_tables_under_other_names_stand_side_by_side(tabled) -> None:
    run = open_run(tabled)
    write_tables(run, table_set("job", "late"), frames(2), SCHEMAS)
    write_tables(run, table_set("job", "early"), frames(3), SCHEMAS)
    write_tables(run, table_set("job", ""), frames(4), SCHEMAS)  # in the place of the first
    write_tables(run, table_set("job", "late"), frames(5), SCHEMAS)
    values = [
        read_table(run, table_set("job", name), "first", SCHEMA)["value"].tolist()
        for name in ("", "late", "early")
    ]
    assert values == [[4], [5], [3]]
    assert table_sets(run, "job") == ["", "early", "late"]


@pytest.mark.parametrize("name", ["a/b", "..", "", ".x", "A b", "x" * 65, "tables.json"])
def test_names_that_are_no_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name: got"):
        check_set_name("--name", name)


def test_the_command_that_makes_missing_tables_has_their_name(tabled) -> None:
    run = open_run(tabled)
    with pytest.raises(RunError, match=r"has no tables of job/late\. Run: ontogeny job .* --name"):
        require_tables(run, table_set("job", "late"))


def test_verify_and_gc_know_tables_with_a_name(tabled) -> None:
    run = open_run(tabled)
    write_tables(run, table_set("job", "late"), frames(2), SCHEMAS)
    assert verify(run.store) == []
    assert find_garbage(run.store) == []
    run.store.delete("analysis/job/late/first.parquet")
    assert {f.key for f in verify(run.store) if f.state == "missing"} == {
        "analysis/job/late/first.parquet"
    }
