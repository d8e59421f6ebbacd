"""What users get wrong, command by command: one line that helps, exit code 2, nothing written.

``{whole}`` in a case is a run without tables, ``{attributed}`` one with those of ``attribute``; the
others are named where they are made.
"""

import json
import re
import shlex
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pytest

from analysis.attribution_tables import GROUPS
from analysis.run import open_run
from analysis.tables import read_table, table_key, write_tables
from capture.errors import RunError, StoreError
from capture.markers import START, checksum, encode, read_segments, require_start
from capture.store import Store
from cluster.cli import main
from tiny_run import copied, make_run, tiny_run

READING = {
    "attribute": "",
    "ablate": "",
    "activations": "",
    "neurons": "",
    "behaviour": "--contains w1",
    "bigrams": "",
    "faithfulness": "",
    "report": "",
    "info": "",
    "verify": "",
    "gc": "",
}
"""Every command that reads a run, and what it cannot do without."""
UNIT = "layers.1.linear2.weight"
HUGE = 10**24


@pytest.fixture(scope="module")
def runs() -> dict[str, str]:
    """Name in a case → URI."""
    names = ("whole", "attributed", "untrained", "newer", "outdated", "damaged")
    uris = {name: f"memory://bad-input/{name}" for name in names}
    for name in ("whole", "attributed"):
        copied(tiny_run(), uris[name])
    assert main(["attribute", uris["attributed"], "--quiet"]) == 0
    remove_segments(copied(tiny_run(), uris["untrained"]), keep=0)
    of_a_newer_schema(copied(tiny_run(), uris["newer"]))
    remove_segments(copied(uris["attributed"], uris["outdated"]), keep=3)
    damaged = copied(uris["attributed"], uris["damaged"])
    damaged.put("analysis/attribute/tables.json", b"{}")
    untallied = ("capture.tally.enabled=false", "training.epochs=1")
    uris["untallied"] = make_run("memory://bad-input/untallied", *untallied)
    untaught = (
        "capture.units=[layers.*.norm1.weight]",
        "capture.outliers.k=9",
        "training.epochs=1",
    )
    uris["normed"] = make_run("memory://bad-input/normed", *untaught)
    return uris | {"nowhere": "memory://bad-input/nowhere"}


def remove_segments(store: Store, *, keep: int) -> None:
    """A run whose training stopped after some segments, what was unfinished cleared away."""
    kept = [require_start(store), *read_segments(store)[:keep]]
    named = {file.key for marker in kept for file in marker.files}
    recorded = ("steps/", "outliers/", "evaluations/", "checkpoints/", "tallies/")
    for key in store.keys():
        if key.startswith(recorded) and key not in named:
            store.delete(key)
    for key in [key for key in store.keys("segments") if key != START][keep:]:
        store.delete(key)


def of_a_newer_schema(store: Store) -> None:
    for key in store.keys("segments"):
        values = json.loads(store.get(key)) | {"schema_version": 99}
        del values["checksum"]
        store.put(key, encode(values | {"checksum": checksum(values)}))


def snapshot(uri: str) -> dict[str, bytes]:
    store = Store(uri)
    return {key: store.get(key) for key in store.keys()}


def refused(command: str, runs: dict[str, str], capsys) -> str:
    """What a refused command prints: one line, after which everything is as it was."""
    touched = [uri for name, uri in runs.items() if f"{{{name}}}" in command]
    before = [snapshot(uri) for uri in touched]
    code = main(shlex.split(command.format(**runs)))
    printed = capsys.readouterr()
    assert code == 2, printed.out
    assert printed.out == ""
    assert printed.err.startswith("ontogeny: ")
    assert printed.err.count("\n") == 1
    assert printed.err.endswith(".\n")
    assert [snapshot(uri) for uri in touched] == before
    return printed.err


# --- runs that are not ready ----------------------------------------------------------------------


def test_no_command_escapes_this_file(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    (\w+)\s", capsys.readouterr().out, flags=re.MULTILINE)
    assert set(listed) == READING.keys() | {"capture", "demo"}


@pytest.mark.parametrize("command", READING)
def test_a_run_that_does_not_exist(command, runs, capsys):
    said = refused(f"{command} {{nowhere}} {READING[command]}", runs, capsys)
    assert "memory://bad-input/nowhere: holds no run. Make one with: ontogeny capture" in said


@pytest.mark.parametrize("command", READING.keys() - {"info", "verify", "gc"})
def test_a_run_that_has_no_committed_segment(command, runs, capsys):
    said = refused(f"{command} {{untrained}} {READING[command]}", runs, capsys)
    assert "untrained: holds no committed segment yet. Let it train on: ontogeny capture" in said


def test_a_run_that_has_no_committed_segment_can_be_looked_at(runs, capsys):
    assert main(["info", runs["untrained"]]) == 0
    assert "0 of 24 steps" in capsys.readouterr().out
    assert main(["verify", runs["untrained"], "--quiet"]) == 0


@pytest.mark.parametrize("command", READING)
def test_a_run_of_a_newer_schema(command, runs, capsys):
    said = refused(f"{command} {{newer}} {READING[command]}", runs, capsys)
    assert "has schema version 99, this version of ontogeny reads 1. Use a newer version" in said


@pytest.mark.parametrize("command", READING)
def test_a_place_that_cannot_be_a_run(command, runs, capsys):
    said = refused(f"{command} nosuch://x {READING[command]}", runs, capsys)
    assert "nosuch://x: cannot be opened" in said


@pytest.mark.parametrize("command", ["ablate", "report"])
def test_what_needs_attribution_says_so(command, runs, capsys):
    said = refused(f"{command} {{whole}}", runs, capsys)
    assert "has no tables of attribute. Run: ontogeny attribute memory://bad-input/whole" in said
    said = refused(f"{command} {{outdated}}", runs, capsys)
    assert "has tables of attribute for 24 steps, but 21 are done. Run: ontogeny attribute" in said


def test_activations_are_not_chosen_by_outdated_attribution(runs, capsys):
    said = refused("activations {outdated}", runs, capsys)
    assert "has tables of attribute for 24 steps, but 21 are done" in said


@pytest.mark.parametrize("command", ["ablate", "report", "activations"])
def test_damaged_tables_are_another_matter(command, runs, capsys):
    before = snapshot(runs["damaged"])
    assert main([command, runs["damaged"]]) == 3
    printed = capsys.readouterr().err
    assert printed.startswith("ontogeny: memory://bad-input/damaged/analysis/attribute/tables.json")
    assert printed.count("\n") == 1
    assert snapshot(runs["damaged"]) == before


@pytest.mark.parametrize(
    "command",
    [
        "attribute {untallied} --evidence mass",
        "attribute {untallied} --evidence use",
        "attribute {untallied} --evidence input-mass",
        "attribute {untallied} --evidence input-use",
        "neurons {untallied} --tokens-weight 0.5",
    ],
)
def test_tallies_that_were_not_recorded(command, runs, capsys):
    said = refused(command, runs, capsys)
    assert "untallied: holds no tallies. Capture with capture.tally.enabled=true" in said


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("attribute {normed} --level neuron --evidence target", "captured no neurons (columns of"),
        ("attribute {normed} --level head --evidence target", "captured no attention heads"),
        ("attribute {normed} --level row --evidence target", "captured no rows (of units with"),
        ("attribute {normed} --study", "has no outliers of weights (units with two axes)"),
        ("neurons {normed}", "normed: captured no MLP weights"),
        ("faithfulness {normed}", "captured no neurons"),
    ],
)
def test_a_run_that_captured_other_units(command, text, runs, capsys):
    assert text in refused(command, runs, capsys)


# --- names that there are not ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        ("attribute {whole} --unit layers.9.linear2.weight", UNIT),
        ("attribute {whole} --level head --unit layers.7.self_attn", "layers.1.self_attn"),
        ("attribute {whole} --level row --unit layers.1.linear1", "layers.1.linear1.weight"),
        ("ablate {attributed} --only layers.9.linear2.weight:1", UNIT),
        ("ablate {attributed} --level head --only layers.1.linear2.weight:1", "layers.1.self_attn"),
        ("activations {whole} --neuron layers.9.linear2.weight:1", UNIT),
    ],
)
def test_an_unknown_unit_names_the_nearest(command, nearest, runs, capsys):
    said = refused(command, runs, capsys)
    assert re.search(r"has no (neurons|rows|heads)", said)
    assert nearest in said.split(". ", 1)[1]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (f"attribute {{whole}} --unit {UNIT} --number 99", f"{UNIT} neuron 99: does not exist"),
        (f"attribute {{whole}} --unit {UNIT} --number -1", "they are 0 to 11"),
        (f"attribute {{whole}} --unit {UNIT} --number {HUGE}", "they are 0 to 11"),
        ("attribute {whole} --number 3", "--number: got 3 without a unit. Say which"),
        (f"attribute {{whole}} --level unit --unit {UNIT} --number 3", "whole units are asked"),
        (
            "attribute {whole} --level head --unit layers.1.self_attn --number 2",
            "layers.1.self_attn head 2: does not exist: they are 0 to 1.",
        ),
        (f"ablate {{attributed}} --only {UNIT}:12", "the unit's neurons are 0 to 11."),
        (f"ablate {{attributed}} --only {UNIT}:{HUGE}", "the unit's neurons are 0 to 11."),
        (f"ablate {{attributed}} --only {UNIT}:-1", "wanted UNIT:NUMBER[,NUMBER…]. For example"),
        (f"ablate {{attributed}} --only {UNIT}", "wanted UNIT:NUMBER[,NUMBER…]. For example"),
        (f"ablate {{attributed}} --only {UNIT}:1 --all", "cannot go with"),
        (f"ablate {{attributed}} --level row --only {UNIT}:16", "the unit's rows are 0 to 15."),
        ("ablate {attributed} --level head --only layers.1.self_attn:2", "heads are 0 to 1."),
        (
            "ablate {attributed} --level head",
            "names no head's tokens. Run: ontogeny attribute memory://bad-input/attributed "
            "--level head, or choose: --only, --all.",
        ),
        ("ablate {attributed} --split test", "has no corpus/test.parquet"),
        (f"activations {{whole}} --neuron {UNIT}:12", "the unit's neurons are 0 to 11."),
        (f"activations {{whole}} --neuron {UNIT}:-1", "must be UNIT:N, as in layers.2"),
        (f"activations {{whole}} --neuron {UNIT}", "must be UNIT:N, as in layers.2"),
        ("activations {whole} --step 5", "no checkpoint after 5 steps; the nearest are after 0, 7"),
        ("behaviour {whole} --datums 1,2,51", "has no datum 51: its datums are 0 to 50."),
        ("behaviour {whole} --datums 1,x", "--datums: 'x' is not the id of a datum. Give ids"),
        ("behaviour {whole} --datums ''", "--datums: names no datum"),
        ("behaviour {whole} --datums 1", "1 of 51 datums seen by training are among the 1 given"),
        ("behaviour {whole} --regex '('", "behaviour.regex: '(' is no regular expression"),
        ("behaviour {whole} --regex xyz", "0 of 51 datums seen by training have text that suits"),
        ("behaviour {whole} --regex ''", "all but 0 of 51 datums seen by training"),
        ("behaviour {whole} --contains w1 --measure target", "measured for --target TOKEN only"),
        ("report {attributed} --to {whole}", "holds checkpoints/step-000000.safetensors and is no"),
    ],
)
def test_numbers_and_names_that_do_not_exist(command, text, runs, capsys):
    assert text in refused(command, runs, capsys)


@pytest.mark.parametrize(
    "command",
    [
        "attribute {whole} --token W1x",
        "activations {whole} --tokens w2,W1x",
        "behaviour {whole} --contains W1x",
        "behaviour {whole} --target W1x",
    ],
)
def test_an_unknown_token_names_the_nearest(command, runs, capsys):
    said = refused(command, runs, capsys)
    assert "'W1x'" in said
    assert re.search(r"\bw1\b", said)


# --- numbers without sense ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("attribute {whole} --steps 24:48", "has steps 0 to 23, asked for 24 to 47"),
        (f"attribute {{whole}} --steps 0:{HUGE}", "Steps are chosen as in 0:24."),
        ("attribute {whole} --steps 5:5", "got 5, must be above the first step, 5."),
        ("attribute {whole} --steps=-5:5", "got -5, must be at least 0."),
        ("attribute {whole} --keep 0", "got 0.0, must be above 0 and at most 1."),
        ("attribute {whole} --keep nan", "got nan, must be above 0 and at most 1."),
        ("attribute {whole} --max-q 1.5", "got 1.5, must be above 0 and at most 1."),
        ("attribute {whole} --evidence mass --level head", "with evidence mass it must be neuron"),
        ("attribute {whole} --evidence mass --weight shift", "it must be count"),
        ("attribute {whole} --evidence mass --outliers unit", "it must be absolute"),
        ("ablate {attributed} --scored-datums -1", "got -1, must be at least 0."),
        ("ablate {attributed} --seed -1", "got -1, must be at least 0."),
        ("neurons {whole} --clusters 3", "hdbscan finds their number itself"),
        ("neurons {whole} --method agglomerative", "is not given, but agglomerative needs it."),
        ("neurons {whole} --method agglomerative --clusters 1", "must be at least 2."),
        ("neurons {whole} --method agglomerative --clusters 99", "grouping needs 100."),
        ("neurons {whole} --tokens-weight nan", "got nan, must be from 0 to 1."),
        ("neurons {whole} --tokens-weight 2", "got 2.0, must be from 0 to 1."),
        ("neurons {whole} --min-cluster 1", "got 1, must be at least 2."),
        (f"neurons {{whole}} --min-cluster {HUGE}", "must be at most 2147483647."),
        ("neurons {whole} --components 1", "got 1, must be at least 2."),
        (f"neurons {{whole}} --components {HUGE}", "must be at most 2147483647."),
        ("neurons {whole} --bootstraps 1", "got 1, must be at least 2."),
        (f"neurons {{whole}} --min-rows {HUGE}", "has 0 neurons with"),
        ("neurons {whole} --seed -1", "got -1, must be at least 0."),
        (f"neurons {{whole}} --seed {HUGE}", "must be at most 2147483647."),
        ("behaviour {whole} --contains w1 --most 1", "got 1, must be at least 2."),
        ("behaviour {whole} --contains w1 --seed -1", "got -1, must be at least 0."),
        (f"behaviour {{whole}} --contains w1 --controls {HUGE}", "ask for fewer controls."),
        ("faithfulness {whole} --text nonsense", "got nonsense, must be held-out or train."),
        ("faithfulness {whole} --seed -1", "got -1, must be at least 0."),
        ("faithfulness {whole} --datums 1", "too little text: 0 tokens are the target of 10"),
        ("faithfulness {whole} --min-count 10000", "Lower --min-count, or hold out more text."),
        ("capture demo run.uri={nowhere} training.batch=0", "training.batch: got 0, must be"),
        ("capture demo run.uri={nowhere} training.batch=x", "must be a whole number."),
        ("demo run.uri={nowhere} training.epochs=-1", "training.epochs: got -1, must be"),
    ],
)
def test_numbers_without_sense(command, text, runs, capsys):
    assert text in refused(command, runs, capsys)


@pytest.mark.parametrize("bad", [0, -3])
@pytest.mark.parametrize(
    "command",
    [
        "attribute {whole} --rows",
        "attribute {whole} --windows",
        "attribute {whole} --parameters",
        "attribute {whole} --datums",
        "attribute {whole} --tokens",
        "attribute {whole} --min-count",
        "attribute {whole} --most-frequent",
        "attribute {whole} --most-counted",
        "ablate {attributed} --rows",
        "ablate {attributed} --neurons",
        "ablate {attributed} --datums",
        "activations {whole} --rows",
        "neurons {whole} --rows",
        "neurons {whole} --min-rows",
        "behaviour {whole} --contains w1 --rows",
        "behaviour {whole} --contains w1 --controls",
        "faithfulness {whole} --neurons",
        "faithfulness {whole} --datums",
        "faithfulness {whole} --min-count",
        "report {attributed} --neurons",
    ],
)
def test_there_is_at_least_one_of_what_is_counted(command, bad, runs, capsys):
    assert f"got {bad}, must be at least 1." in refused(f"{command} {bad}", runs, capsys)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("attribute {whole} --steps a:b", "argument --steps: 'a:b' is not a range as in 100:200"),
        ("attribute {whole} --rows x", "argument --rows: invalid int value: 'x'"),
        ("attribute {whole} --evidence nosuch", "argument --evidence: invalid choice: 'nosuch'"),
        ("ablate {attributed} --level parameter", "argument --level: invalid choice"),
        ("activations {whole} --by neither", "argument --by: invalid choice"),
        ("neurons {whole} --method kmeans", "argument --method: invalid choice"),
        ("behaviour {whole}", "one of the arguments --contains --target --regex --datums is"),
        ("behaviour {whole} --contains w1 --target w2", "not allowed with argument --contains"),
        ("report", "the following arguments are required: RUN"),
    ],
)
def test_what_the_parser_refuses(command, text, runs, capsys):
    before = snapshot(runs["whole"]), snapshot(runs["attributed"])
    with pytest.raises(SystemExit) as left:
        main(shlex.split(command.format(**runs)))
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith(f"ontogeny {command.split()[0]}: error: ")
    assert text in printed.err
    assert (snapshot(runs["whole"]), snapshot(runs["attributed"])) == before


# --- tables are there whole or not at all ---------------------------------------------------------

SCHEMA = pa.schema([("value", pa.int32())])
NAMES: tuple[str, ...] = ("first", "second", "third")
SCHEMAS: dict[str, pa.Schema] = dict.fromkeys(NAMES, SCHEMA)


def frames(value: int) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame({"value": [value]}) for name in NAMES}


@pytest.fixture
def tabled() -> Iterator[str]:
    """A run with tables of a job that has been done before."""
    uri = "memory://bad-input/tabled"
    copied(tiny_run(), uri)
    write_tables(open_run(uri), "job", frames(1), SCHEMAS)
    yield uri
    copied("memory://bad-input/nothing", uri)


def lying_about(uri: str) -> set[int]:
    """The values in the job's files as other tools see them, marker or not."""
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
    assert lying_about(tabled) <= {2}
    write_tables(run, "job", frames(3), SCHEMAS)
    assert [read_table(run, "job", name, SCHEMA)["value"].item() for name in NAMES] == [3, 3, 3]


def test_tables_that_cannot_be_made_leave_the_old_ones(tabled):
    before = snapshot(tabled)
    wrong = frames(2) | {"second": pd.DataFrame({"value": ["two"]})}
    with pytest.raises(pa.ArrowInvalid):
        write_tables(open_run(tabled), "job", wrong, SCHEMAS)
    assert snapshot(tabled) == before


def test_a_table_that_the_job_no_longer_makes_goes_away(tabled):
    run = open_run(tabled)
    write_tables(run, "job", frames(2), {"first": SCHEMA})
    assert run.store.keys("analysis/job") == [
        "analysis/job/first.parquet",
        "analysis/job/tables.json",
    ]


def test_a_command_that_cannot_write_leaves_with_2(tabled, monkeypatch, capsys):
    def full(store: Store, where: str, data: bytes) -> None:
        raise StoreError(f"{store.uri}/{where}", "cannot be written: no space left")

    monkeypatch.setattr(Store, "put", full)
    before = snapshot(tabled)
    assert main(["attribute", tabled, "--quiet"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"ontogeny: {tabled}/analysis/attribute/")
    assert printed.count("\n") == 1
    assert snapshot(tabled) == before


def test_no_evidence_at_all_is_an_answer_too(tabled, capsys):
    options = ["--evidence", "target", "--outliers", "unit", "--keep", "1e-9"]
    assert main(["attribute", tabled, *options]) == 0
    assert "0 of 0 neurons with evidence have such tokens." in capsys.readouterr().out
    assert not len(read_table(open_run(tabled), "attribute", "groups", GROUPS))
