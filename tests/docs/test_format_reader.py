"""A reader that follows ``docs/reference/format.md`` alone reads what our own reader returns."""

import re
from pathlib import Path

import format_reader as reader
import numpy as np
import pandas as pd
import pytest
from checkout import ROOT
from pandas.testing import assert_frame_equal
from pyarrow import parquet
from tiny_run import make_run

from analysis.jobs.tables import write_tables
from analysis.run.run import Run, open_run
from analysis.run.tallies import read_tally
from capture.config.records import KINDS
from capture.format.factor_layout import decode
from capture.format.factor_reader import columns_of, read_row
from capture.format.window_markers import KEY as WINDOW
from capture.format.window_markers import window_file
from capture.replay.segments import read_replayable_run, replay_segment
from capture.shards.schema import VOCABULARY
from capture.store import Store

PAGE = (ROOT / "docs" / "reference" / "format.md").read_text()
OF_A_CAPTURE = (WINDOW, window_file(8, 0))
"""Keys that exist only while a run is captured, or after an interruption."""
PLACEHOLDERS = {
    r"SSSSSS|TTTTTT": r"\d{6,}",
    "LLLLL": r"\d{5,}",
    "NNNN": r"\d{4,}",
    "WW": r"\d{2,}",
    "UNIT|TABLE|JOB": r"[^/]+",
    "BY": "(target|input)",
    "PAGE": ".+",
}
"""Parts of the page's keys that stand for others, and what they stand for."""
UNITS = {"everything": "layers.0.linear1.weight", "added by replay": "layers.1.norm1.weight"}


@pytest.fixture(scope="module", params=UNITS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with every kind of file; in one case, replays added all records."""
    folder = str(tmp_path_factory.mktemp("format") / "run")
    units = "capture.units=['*']"
    if request.param == "everything":
        settings = ["capture.factors.enabled=true", "capture.factors.precision=float16"]
        make_run(folder, units, *settings)
    else:
        more = ["corpus.test_share=0.1", "corpus.scramble.share=0.2"]
        make_run(folder, units, "capture.record=checkpoints", *more)
        for segment in range(len(open_run(folder).segments)):
            replay_segment(read_replayable_run(Store(folder)), segment, KINDS)
    run = open_run(folder)
    write_tables(run, "attribute", {"tokens": run.vocabulary()}, {"tokens": VOCABULARY})
    return run


@pytest.fixture(scope="module")
def parts(run: Run) -> list[reader.Values]:
    return reader.read_parts(Path(run.uri))


def frame(run: Run, parts: list[reader.Values], kind: str, prefix: str = "") -> pd.DataFrame:
    return pd.DataFrame(reader.read_tables(Path(run.uri), reader.files_of(parts, kind, prefix)))


def test_the_reader_imports_nothing_of_ours():
    source = Path(reader.__file__).read_text()
    assert not re.search(r"(import|from) (ontogeny|capture|analysis|cluster)", source)


def test_the_markers_give_the_steps_and_all_files(run, parts):
    assert [(part["first_step"], part["end_step"]) for part in parts[1:]] == [
        (marker.first_step, marker.end_step) for marker in run.segments
    ]
    listed = {file["key"] for part in parts for file in part["files"]}
    assert listed == {file.key for marker in (run.start, *run.segments) for file in marker.files}
    for part in parts:
        for file in part["files"]:
            reader.read_bytes(Path(run.uri), file)


def test_every_key_of_a_run_is_on_the_page_and_every_key_of_the_page_occurs(run, tmp_path_factory):
    table = PAGE.split("## Files\n")[1].split("\n## ")[0]
    patterns = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    forms = []
    for pattern in patterns:
        form = re.escape(pattern)
        for names, meaning in PLACEHOLDERS.items():
            form = re.sub(names, lambda found, meaning=meaning: meaning, form)
        forms.append(re.compile(form))
    keys = [*run.store.keys(), "lease.json", "report/index.html", *OF_A_CAPTURE]
    assert [key for key in keys if not any(form.fullmatch(key) for form in forms)] == []
    unused = {p for p, f in zip(patterns, forms, strict=True) if not any(map(f.fullmatch, keys))}
    replayed = {f"segments/segment-SSSSSS-{kind}.json" for kind in KINDS}
    if any(re.search(r"-factors\.json", key) for key in keys):
        assert unused == set()
    else:
        assert unused == replayed | {"corpus/test.parquet", "corpus/planted.parquet"}


def test_steps_evaluations_and_corpus_are_read(run, parts):
    for kind, wanted in (("steps", run.steps()), ("evaluations", run.evaluations())):
        found = frame(run, parts, kind)
        assert found.map(repr).equals(plain(wanted).map(repr)), kind
    vocabulary = frame(run, parts, "corpus", "corpus/vocab")
    assert_frame_equal(vocabulary, plain(run.vocabulary()))
    datums = frame(run, parts, "corpus", "corpus/datums")
    assert datums.map(repr).equals(plain(run.datums()).map(repr))


def plain(wanted: pd.DataFrame) -> pd.DataFrame:
    """Return a table with Python's own values, as ``to_pylist`` gives them."""
    rows = wanted.map(lambda value: value.tolist() if hasattr(value, "tolist") else value)
    return pd.DataFrame(rows.to_dict("records"))


def shifts_of(run: Run) -> pd.DataFrame:
    """Return the outliers of a run with the names and the order of the stored columns."""
    found = run.shifts().astype({"unit": str})
    names = {"datum_ix": "slot", "diff": "shift", "datum_id": "datum"}
    stored = ["step", "slot", "datum", "unit", "index", "shift", "position"]
    found = found.drop(columns="datum").rename(columns=names)[stored]
    return found.sort_values(["unit", "index", "step", "slot"], ignore_index=True)


def test_outliers_are_read_and_sorted_within_each_file(run, parts):
    files = reader.files_of(parts, "outliers")
    pieces = [pd.DataFrame(reader.read_tables(Path(run.uri), [file])) for file in files]
    order = ["unit", "index", "step", "slot"]
    for piece in pieces:
        assert_frame_equal(piece, piece.sort_values(order, ignore_index=True))
    found = pd.concat(pieces).sort_values(order, ignore_index=True)
    assert_frame_equal(found, shifts_of(run), check_dtype=False, check_exact=True)


def test_tallies_are_read(run, parts):
    unit = "layers.1.linear2.weight"
    for by in ("target", "input"):
        found = frame(run, parts, "tallies", f"tallies/unit={unit}/by={by}/")
        tally = read_tally(run, unit, by)
        count_V = found.groupby("token_id")["count"].sum()
        assert count_V.tolist() == tally.count_V[count_V.index].tolist()
        numbers = range(tally.update_norm_VI.shape[1])
        for kind, wanted_VI in (
            ("update_norm", tally.update_norm_VI),
            ("ablation_estimate", tally.ablation_estimate_VI),
        ):
            sum_VI = found.groupby("token_id")[[f"{kind}_{n}" for n in numbers]].sum()
            np.testing.assert_allclose(sum_VI, wanted_VI[sum_VI.index], rtol=1e-5, atol=1e-6)


def test_factors_are_read_to_the_bit_and_give_the_gradients_and_shifts(run, parts):
    shapes = run.layout.shapes
    rows = shifts_of(run).itertuples(index=False, name=None)
    shift_of = {(step, slot, unit, index): shift for step, slot, _, unit, index, shift, _ in rows}
    compared = 0
    for file in reader.files_of(parts, "factors")[:2]:
        table = reader.read_table(Path(run.uri), file)
        layout, own = (
            reader.read_layout(table),
            decode(table.schema.metadata[b"ontogeny.factors"], shapes),
        )
        assert set(layout["uses"]) == set(shapes)
        for i in (0, len(table) - 1):
            (row,) = table.slice(i, 1).to_pylist()
            for unit, shape in shapes.items():
                scalars = {name: table[name][i] for name in [*columns_of(own, unit), "scale"]}
                ours = read_row(scalars, own, unit, shape)
                first = ours.uses[0].delta_NTO[0].numpy()
                delta, error = reader.read_array(row, layout["uses"][unit][0]["delta"], layout)
                start, end = layout["uses"][unit][0].get("columns") or (0, delta.shape[1])
                assert np.array_equal(delta[:, start:end], first)
                assert (error > 0) <= (run.config.capture.factors.precision == "float16")
                gradient = reader.gradient_of(row, unit, layout, shape)
                wanted = run.gradient(row["step"], row["datum"], unit)
                np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-7)
                for entry in np.ndindex(*shape):
                    key = (row["step"], row["slot"], unit, reader.flat_index(entry, shape))
                    if key in shift_of:
                        shift = gradient[entry] * row["scale"]
                        assert shift == pytest.approx(shift_of[key], rel=5e-3, abs=1e-6)
                        compared += 1
    assert compared > 100


def test_a_checkpoint_is_read(run, parts):
    file = reader.files_of(parts, "checkpoints")[-1]
    found = reader.read_checkpoint(reader.read_bytes(Path(run.uri), file))
    wanted = run.checkpoint(run.steps_done)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name].numpy()) for name in wanted)


def test_columns_are_encoded_compressed_and_counted_as_the_page_says(run, parts):
    """The first row group of every table; the page's rules are written out here."""
    encoding_of = {"int": "DELTA_BINARY_PACKED", "float": "BYTE_STREAM_SPLIT"}
    encoding_of |= {"double": "BYTE_STREAM_SPLIT", "dictionary": "RLE_DICTIONARY"}
    counted = {"tallies": {"window", "token_id", "count"}, "factors": {"step", "slot"}}
    tables = [file for part in parts for file in part["files"] if file["rows"] is not None]
    assert {file["kind"] for file in tables} >= {*KINDS, "steps", "evaluations", "corpus"}
    for file in tables:
        opened = parquet.ParquetFile(Path(run.uri) / file["key"])
        assert opened.metadata.format_version == "2.6"
        group = opened.metadata.row_group(0)
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            kind = re.match("[a-z]+", str(opened.schema_arrow.field(name).type))
            assert kind
            assert encoding_of.get(kind[0], "PLAIN") in column.encodings
            raw = kind[0] == "binary" and not name.endswith("_high")
            assert column.compression == ("UNCOMPRESSED" if raw else "ZSTD")
            assert column.is_stats_set == (name in counted.get(file["kind"], {name}))
