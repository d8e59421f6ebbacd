"""No command replaces the tables of another question, nor scans a run before it may write."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa
import pytest
from refusals import snapshot
from tiny_run import copied, tiny_run

from analysis.jobs.claims import claim, difference, extends, is_answered, suggested_name
from analysis.jobs.question import Question
from analysis.jobs.tables import read_question, read_table, table_set, table_sets, write_tables
from analysis.run.run import open_run
from capture.errors import ConfigError, RunError, StoreError
from capture.format import markers
from capture.store import Store

SCHEMA = pa.schema([("value", pa.int32())])
SCHEMAS = {"first": SCHEMA}
ELSEWHERE = "memory://claims/elsewhere"


def question(**options: object) -> Question:
    return Question("job", options, {"ontogeny": "1"})


def frames(value: int) -> dict[str, pd.DataFrame]:
    return {"first": pd.DataFrame({"value": [value]})}


@pytest.fixture
def uri() -> Iterator[str]:
    """Yield a run whose unnamed tables of a job answer ``question(top=5)``."""
    uri = "memory://claims/run"
    copied(tiny_run(), uri)
    write_tables(open_run(uri), "job", frames(1), SCHEMAS, question(top=5))
    yield uri
    copied("memory://claims/nothing", uri)
    copied("memory://claims/nothing", ELSEWHERE)


def test_another_question_under_the_same_name_is_refused(uri) -> None:
    before = snapshot(uri)
    with pytest.raises(RunError) as caught:
        claim(open_run(uri), question(top=7), "")
    assert str(caught.value) == (
        f"{uri}/analysis/job: holds the tables of another question (top=5, now top=7). "
        "Keep both: --name top-7. Or replace them: --replace."
    )
    assert snapshot(uri) == before


def test_every_option_that_changed_is_named(uri) -> None:
    """Also parts of a group, and those behind a group that was left out."""
    options = {"top": 5, "confirm": {"datums": 9, "seed": 0}, "units": [], "of": None}
    whole = Question("job", options, {})
    other = Question("job", options | {"confirm": None, "units": ["a"], "of": "inputs"}, {})
    assert difference(other, whole) == (
        'confirm={…}, now confirm=null; units=[], now units=["a"]; of=null, now of="inputs"'
    )
    part = Question("job", options | {"confirm": {"datums": 7, "seed": 0}}, {})
    assert difference(part, whole) == "confirm.datums=9, now confirm.datums=7"
    many = Question("job", {str(n): n for n in range(6)}, {})
    assert difference(many, Question("job", {str(n): 0 for n in range(6)}, {})).endswith(
        "4=0, now 4=4; 1 more"
    )


def test_the_same_question_again_another_name_or_replace_is_fine(uri) -> None:
    run, before = open_run(uri), snapshot(uri)
    claim(run, question(top=5), "")
    claim(run, question(top=7), "seven")
    claim(run, question(top=7), "", replace=True)
    assert snapshot(uri) == before  # nothing is left behind by the look


def test_a_question_that_only_asks_more_may_replace_the_tables(uri) -> None:
    claim(open_run(uri), question(top=5, confirm={"datums": 9}), "")
    assert extends(question(a=1, b=2), question(a=1))
    assert not extends(question(a=1), question(a=1, b=2))
    assert not extends(question(a=1), question())  # an earlier version did not record it
    assert extends(question(), question())
    assert not extends(Question("other", {"a": 1}, {}), question(a=1))


def test_tables_that_answer_more_than_a_question_are_known(uri) -> None:
    run = open_run(uri)
    assert not is_answered(run, question(top=5))  # asked again, it is computed again
    assert not is_answered(run, question(top=7))
    write_tables(run, "job", frames(1), SCHEMAS, question(top=5, confirm=1))
    assert is_answered(run, question(top=5))
    assert not is_answered(run, Question("other", {}, {}))


def test_other_versions_of_packages_ask_the_same_question(uri) -> None:
    claim(open_run(uri), Question("job", {"top": 5}, {"ontogeny": "2"}), "")


def test_tables_that_cannot_be_read_are_not_protected(uri) -> None:
    Store(uri).put("analysis/job/tables.json", b"{}")
    claim(open_run(uri), question(top=7), "")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"top": 7}, "top-7"),
        ({"top": 5, "only": ["layers.2.linear2.weight:17"]}, "only-layers-2-linear2-weight-17"),
        ({"top": None}, "other"),
        ({"top": "ä/.."}, "top"),
        ({"top": "x" * 99}, "top-" + "x" * 36),
        ({"top": {"inner": 3}}, "top-inner-3"),
        ({"top": 5, "lifetime": True}, "lifetime"),
        ({"top": {"inner": True}}, "top-inner"),
        ({"top": True}, "top"),
    ],
)
def test_a_name_is_suggested_from_the_first_difference(options, wanted) -> None:
    assert suggested_name(question(**options), question(top=5), taken=[]) == wanted


def test_beside_tables_without_a_question_any_name_will_do() -> None:
    assert suggested_name(question(top=7), question(), taken=["", "other"]) == "other-2"


def test_a_suggested_name_is_not_taken() -> None:
    taken = ["top-7", "top-7-2"]
    assert suggested_name(question(top=7), question(top=5), taken=taken) == "top-7-3"


@pytest.mark.parametrize("name", ["../x", "a b", "x" * 65])
def test_a_name_that_is_no_folder_is_refused(uri, name) -> None:
    with pytest.raises(ConfigError, match="--name: got"):
        claim(open_run(uri), question(top=5), name)


# --- a place that cannot be written ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["put", "delete"])
def test_a_missing_permission_is_found_first_and_named(uri, monkeypatch, method) -> None:
    def refuse(store: Store, key: str, data: bytes = b"") -> None:
        raise StoreError(f"{store.uri}/{key}", "cannot be written: forbidden", "Needs s3:PutObject")

    with monkeypatch.context() as patched:
        patched.setattr(Store, method, refuse)
        with pytest.raises(StoreError) as caught:
            claim(open_run(uri), question(top=5), "")
    assert str(caught.value) == (
        f"{uri}/analysis/job: cannot be written: forbidden. Needs s3:PutObject. "
        "Or keep the tables elsewhere: --to PLACE."
    )


def test_a_folder_without_permission_is_found_without_a_change(tmp_path, monkeypatch) -> None:
    copied(tiny_run(), f"{tmp_path}/run")
    run = open_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    claim(run, question(top=5), "late")
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda path, mode: False)
        with pytest.raises(StoreError) as caught:
            claim(run, question(top=5), "late")
    assert str(caught.value) == (
        f"{tmp_path}/run/analysis/job/late: cannot be written: no permission to write in "
        f"{tmp_path}/run. Or keep the tables elsewhere: --to PLACE."
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    run = open_run(tiny_run(), tables=tmp_path / "file")
    with pytest.raises(StoreError, match=rf"{tmp_path}/file is not a folder. Or keep"):
        claim(run, question(top=5), "")


# --- tables elsewhere -----------------------------------------------------------------------------


def test_tables_can_stand_outside_the_run(uri) -> None:
    before = snapshot(uri)
    run = open_run(uri, tables=ELSEWHERE)
    claim(run, question(top=7), "")
    write_tables(run, "job", frames(2), SCHEMAS, question(top=7))
    assert snapshot(uri) == before
    assert Store(ELSEWHERE).keys() == ["analysis/job/first.parquet", "analysis/job/tables.json"]
    assert read_table(run, "job", "first", SCHEMA)["value"].tolist() == [2]
    assert read_table(open_run(uri), "job", "first", SCHEMA)["value"].tolist() == [1]
    assert read_question(run, "job").options == {"top": 7}


def test_tables_that_are_not_there_are_read_from_the_run(uri) -> None:
    write_tables(open_run(uri), table_set("job", "late"), frames(3), SCHEMAS)
    run = open_run(uri, tables=ELSEWHERE)
    assert read_table(run, "job", "first", SCHEMA)["value"].tolist() == [1]
    write_tables(run, table_set("job", "mine"), frames(4), SCHEMAS)
    assert table_sets(run, "job") == ["", "late", "mine"]


def test_missing_tables_name_the_place_in_the_command(uri) -> None:
    run = open_run(uri, tables=ELSEWHERE)
    with pytest.raises(RunError, match=rf"Run: ontogeny other {uri} --to {ELSEWHERE}"):
        read_table(run, "other", "first", SCHEMA)


def test_tables_of_another_run_at_the_same_place_are_refused(uri) -> None:
    run = open_run(uri, tables=ELSEWHERE)
    write_tables(run, "job", frames(2), SCHEMAS, question(top=5))
    key = "analysis/job/tables.json"
    values = json.loads(Store(ELSEWHERE).get(key))
    values |= {"previous": "0" * 64}
    del values["checksum"]
    values["checksum"] = markers.checksum(values)
    Store(ELSEWHERE).put(key, markers.encode(values))
    with pytest.raises(RunError, match=r"holds tables of another run\. Choose another folder"):
        claim(run, question(top=5), "")
    claim(run, question(top=5), "", replace=True)


@dataclass(frozen=True)
class Asked:
    top: int = 5
    names: tuple[str, ...] = field(default=("a",))


def test_a_question_is_equal_to_what_was_stored_of_it(uri) -> None:
    asked = Question.of("job", Asked())
    write_tables(open_run(uri), "job", frames(1), SCHEMAS, asked)
    claim(open_run(uri), asked, "")
