"""Reading an untrusted run: malicious tallies are refused."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from damage import intact
from hostile import Values, forge_marker, table_bytes, with_valid_markers, write_run

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.run.run import Run, open_run
from analysis.run.tallies import neuron_history, read_tally, tally_windows, token_history
from capture.errors import ShardError
from capture.format.markers import segment_key
from capture.format.tally_tables import key_of, parse_key
from capture.shards.schema import tally_schema
from capture.shifts.tallies import BYS
from cluster.local.threads import run_job

URI = "memory://hostile-tallies"
UNIT = "layers.0.linear1.weight"
WIDTH = 16
KEY = key_of(UNIT, "target", 0)
QUESTIONS: dict[str, Callable[[Run], object]] = {
    "one unit": lambda run: read_tally(run, UNIT),
    "one neuron": lambda run: neuron_history(run, UNIT, 3),
    "attribution": lambda run: attribute(run, run_job, AttributionConfig(evidence="update-norm")),
}


def tally_rows(tokens: list[int | None], **columns: pa.Array) -> pa.Table:
    """Return tallies of zeros for these tokens, with some columns replaced."""
    schema = tally_schema(WIDTH)
    found = pa.table({name: np.zeros(len(tokens)) for name in schema.names}).cast(schema)
    for name, column in {"token_id": pa.array(tokens, pa.int32()), **columns}.items():
        found = found.set_column(found.schema.get_field_index(name), name, column)
    return found


GAP = pa.array([1.0, None], pa.float32())
INVALID_TALLIES = [
    (tally_rows([0, 99]), "has tokens 0 to 99, not 0 to 14"),
    (tally_rows([-1, 0]), "has tokens -1 to 0, not 0 to 14"),
    (tally_rows([3, 3]), "has tokens out of order"),
    (tally_rows([5, 3]), "has tokens out of order"),
    (tally_rows([1, None]), "has rows with gaps"),
    (tally_rows([1, 2], update_norm_3=GAP), "has rows with gaps"),
    (
        tally_rows([1], ablation_estimate_3=pa.array(["x"])),
        "has its column ablation_estimate_3 as string, not float",
    ),
    (tally_rows([1]).drop_columns("update_norm_3"), "has no column update_norm_3"),
]


def forge(table: pa.Table) -> Run:
    """Open a run with this table as the tallies of a unit, and matching markers."""
    write_run(URI, with_valid_markers({KEY: table_bytes(table)}, len(table)))
    return open_run(URI)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("table", "problem"), INVALID_TALLIES)
def test_invalid_tallies_are_refused(table: pa.Table, problem: str, question: str):
    run = forge(table)
    with pytest.raises(ShardError, match=rf"^{URI}/{KEY}: {problem}"):
        QUESTIONS[question](run)


@pytest.mark.parametrize(
    ("token", "table", "problem"),
    [
        (3, tally_rows([3, 3]), "has tokens out of order"),
        *((1, *wrong) for wrong in INVALID_TALLIES[4:]),
    ],
)
def test_a_query_of_one_token_refuses_them_too(token: int, table: pa.Table, problem: str):
    run = forge(table)
    with pytest.raises(ShardError, match=rf"^{URI}/{KEY}: {problem}"):
        token_history(run, run.tokens[token])


def test_the_window_is_that_of_the_files_key_not_of_its_rows():
    run = forge(tally_rows([1], window=pa.array([77], pa.int32())))
    assert neuron_history(run, UNIT, 3)["window"].max() == tally_windows(run)["window"].max() < 77
    assert token_history(run, run.tokens[1])["window"].max() < 77


def test_a_key_gives_unit_direction_and_window_of_its_table():
    for by in BYS:
        for window in (0, 9999, 10_000):
            assert parse_key(key_of(UNIT, by, window)) == (UNIT, by, window)
    for name in ("unit=x/by=target/window-00010", "unit=x/by=all/window-0001", "unit=/by=input/x"):
        assert parse_key(f"tallies/{name}.parquet") is None


def renamed(name: str) -> Run:
    """Open a run that ends with its first segment with tallies, one of them under another key."""

    def rename(values: Values) -> None:
        for file in values["files"]:
            file["key"] = name if file["key"] == KEY else file["key"]

    first = next(n for n in range(4) if KEY.encode() in intact()[segment_key(n)])
    store = write_run(URI, {segment_key(first): forge_marker(segment_key(first), rename)})
    for later in range(first + 1, 4):
        store.delete(segment_key(later))
    return open_run(URI)


@pytest.mark.parametrize(
    "name",
    [
        "tallies/nonsense.parquet",
        "tallies/unit=x/window--001.parquet",
        key_of(UNIT, "target", 99),
    ],
)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_marker_with_an_invalid_key_of_tallies_is_refused(name: str, question: str):
    run = renamed(name)
    with pytest.raises(ShardError, match=rf"^{URI}/{name}: is named as tallies and is of no wind"):
        QUESTIONS[question](run)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_window_without_one_of_its_tables_is_refused(question: str):
    run = renamed(key_of("other", "target", 0))
    with pytest.raises(ShardError, match=rf"^{URI}/{KEY}: is missing, or left out as damaged"):
        QUESTIONS[question](run)


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_sum_leaves_out_a_damaged_table(question: str):
    write_run(URI, {KEY: intact()[KEY][:-1]})
    run = open_run(URI, skip_damaged=True)
    with pytest.raises(ShardError, match=rf"^{URI}/{KEY}: is missing, or left out as damaged"):
        QUESTIONS[question](run)
    assert [finding.key for finding in run.skipped] == [KEY]
