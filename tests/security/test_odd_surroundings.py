"""Odd files in a run: pipes, names, provenance, sizes. Each ends in one line, none hangs."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from damage import intact
from hostile import changed_run_yaml, table_bytes, with_valid_markers, write_run
from pyarrow import parquet
from tiny import make_run, tiny_config
from tiny_run import copied, tiny_run

from analysis.run import scan
from analysis.run.scan import Shard, read_all
from capture.errors import CaptureError, ShardError
from capture.format.chain import read_segments
from capture.format.checkpoint import read_checkpoint
from capture.format.markers import File
from capture.shards.schema import EVALUATIONS, OUTLIERS
from capture.store import Store
from capture.training.loop import Progress, capture_run
from cluster.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    copied(tiny_run(), f"{tmp_path}/run")
    return tmp_path / "run"


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "key", ["outliers/pipe.parquet", "segments/pipe.json", "pipe", "lease.json"]
)
def test_a_named_pipe_does_not_block_a_command(run, key, capsys):
    os.mkfifo(run / key)
    for name in ("info", "verify", "gc"):
        assert main([name, str(run)]) in (0, 2, 3)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", ["steps/segment-000001.parquet", "run.yaml"])
def test_a_named_pipe_in_place_of_a_file_is_damage(run, key, capsys):
    (run / key).unlink()
    os.mkfifo(run / key)
    assert main(["verify", str(run)]) == 3
    with pytest.raises(ShardError, match="is neither a file nor a folder"):
        Store(str(run)).get(key)
    assert main(["info", str(run)]) == 3
    assert "is neither a file nor a folder" in capsys.readouterr().err


def test_a_file_whose_name_is_not_text_can_be_shown(run, capsys, tmp_path):
    odd = os.fsencode(run) + b"/outliers/caf\xe9.parquet"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    for name in ("info", "verify", "gc"):
        assert main([name, str(run)]) == 0
    assert "caf\N{REPLACEMENT CHARACTER}.parquet" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/other/\xff")).write_bytes(b"mine")
    with pytest.raises(CaptureError, match="is not a run and not empty"):
        make_run(tiny_config(tmp_path, name="other"))


def test_a_folder_that_is_deleted_during_capture_is_named(tmp_path):
    config = tiny_config(tmp_path, "capture.segment_steps=2", "training.epochs=30")

    def remove(event: object) -> None:
        if isinstance(event, Progress) and event.steps_done == 6:
            (tmp_path / "run").rename(tmp_path / "elsewhere")

    with pytest.raises(CaptureError, match=r"the run was deleted|cannot be written"):
        capture_run(config, remove)


# --- sizes ----------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_size_is_not_read(run, monkeypatch):
    store = Store(str(run))
    marker = read_segments(store)[0]
    path = run / marker.files_of("checkpoints")[0].key
    assert read_checkpoint(store, marker.end_step, marker)
    os.truncate(path, 2**40)  # sparse
    with pytest.raises(ShardError, match="is not the file that its marker names"):
        read_checkpoint(store, marker.end_step, marker)


def test_what_small_files_claim_is_bounded_for_the_whole_answer(monkeypatch):
    """Each of these files alone is within the bounds of one file."""
    monkeypatch.setattr(scan, "MEMORY_ALLOWANCE_BYTES", 2**22)
    numbers = np.zeros(100_000, np.int64)
    columns = {name: numbers for name in OUTLIERS.names if name != "unit"}
    unit = pa.DictionaryArray.from_arrays(numbers.astype(np.int16), ["layers.0.x"])
    table = pa.table(columns | {"unit": unit}).select(OUTLIERS.names).cast(OUTLIERS)
    store, data = Store("memory://claims"), table_bytes(table)
    shards = []
    for number in range(20):
        file = File.of(f"outliers/{number}.parquet", "outliers", data, len(numbers))
        store.put(file.key, data)
        shards.append(Shard(store, file, 0, 1))
    assert len(read_all(shards[:1], OUTLIERS)) == len(numbers)
    with pytest.raises(ShardError, match="more than their size allows"):
        read_all(shards, OUTLIERS)
    assert len(read_all(shards, OUTLIERS, {"step": [7]})) == 0


# --- provenance -----------------------------------------------------------------------------------


def odd_splits() -> dict[str, bytes]:
    files = {}
    for key in (key for key in intact() if key.startswith("evaluations/")):
        rows = parquet.read_table(pa.BufferReader(intact()[key])).to_pydict()
        rows["split"] = ["[/red]"] * len(rows["split"])
        files[key] = table_bytes(pa.table(rows).cast(EVALUATIONS))
    return with_valid_markers(files)


@pytest.mark.parametrize(
    "files",
    [
        lambda: with_valid_markers({"run.yaml": changed_run_yaml(lambda v: v.pop("threads"))}),
        lambda: with_valid_markers(
            {"run.yaml": changed_run_yaml(lambda v: v["versions"].pop("ontogeny"))}
        ),
        lambda: with_valid_markers(
            {"run.yaml": changed_run_yaml(lambda v: v.update(versions={1: [2], "[/b]": {}}))}
        ),
        lambda: with_valid_markers(
            {"run.yaml": changed_run_yaml(lambda v: v.update(threads=["[/x]"], git_commit="[/]"))}
        ),
        odd_splits,
    ],
    ids=["threads", "ontogeny", "versions", "values", "split"],
)
def test_info_shows_odd_provenance(files, capsys, tmp_path):
    store = write_run(f"{tmp_path}/run", files())
    assert main(["info", store.uri]) == 0
    assert "steps" in capsys.readouterr().out
