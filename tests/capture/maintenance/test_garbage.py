"""``gc`` removes files that no marker lists, and nothing else."""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from damage import intact
from hostile import write_run

from capture.errors import RunError, ShardError
from capture.format.markers import segment_key
from capture.maintenance.garbage import find_garbage, remove_garbage
from capture.maintenance.verify import verify
from capture.store import Store, lease
from cluster.cli import main

NOW = timedelta(0)
LEFT = {
    "outliers/segment-000004-w00.parquet": b"half a segment",
    "steps/segment-000004.parquet": b"",
    "checkpoints/step-000099.safetensors": b"weights",
    "analysis/attribute/older.parquet": b"a table that is made no more",
    "segments/odd.json": b"{}",
}
FOREIGN = {
    "notes.txt": b"mine",
    "figures/one.png": b"mine too",
    "report/index.html": b"<p>",
    ".git/HEAD": b"ref",
    "outliers/.DS_Store": b"a browser of files left it",
}
PARTIAL = ("outliers/.segment-000004-w00.parquet.0a1b2c3d", ".run.yaml.deadbeef")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_run(str(folder), {})
    for key, data in (LEFT | FOREIGN | dict.fromkeys(PARTIAL, b"un")).items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_listing_removes_nothing(run):
    before = files(run)
    found = find_garbage(Store(str(run)), NOW)
    assert {garbage.key for garbage in found} == {*LEFT, *PARTIAL}
    assert files(run) == before


def test_removing_keeps_listed_files_and_foreign_files(run):
    remove_garbage(Store(str(run)), NOW)
    assert files(run) == intact() | FOREIGN
    assert find_garbage(Store(str(run)), NOW) == []
    foreign = {finding.key for finding in verify(Store(str(run)))}
    assert foreign <= set(FOREIGN)


def test_garbage_is_removed_from_memory_stores():
    store = write_run("memory://garbage", LEFT)
    remove_garbage(store, NOW)
    assert {key: store.get(key) for key in store.keys()} == intact()


def test_young_files_are_kept(run):
    old = time.time() - 3600
    os.utime(run / "steps/segment-000004.parquet", (old, old))
    found = remove_garbage(Store(str(run)))
    assert [garbage.key for garbage in found if not garbage.kept] == [
        "steps/segment-000004.parquet"
    ]
    assert len(found) == len(LEFT) + len(PARTIAL)
    later = datetime.now(UTC) + timedelta(hours=1)
    assert not any(garbage.kept for garbage in find_garbage(Store(str(run)), now=later))


def test_nothing_is_removed_while_a_capture_holds_the_run(run):
    store = Store(str(run))
    with lease.hold_lease(store, lambda event: None):
        before = files(run)
        with pytest.raises(RunError, match="is being captured by process"):
            remove_garbage(store, NOW)
        assert files(run) == before
    expired = replace(lease.new_lease(), machine="another", expires=lease.timestamp_in(-1))
    store.put(lease.KEY, lease.encode(expired))
    remove_garbage(store, NOW)
    assert not store.exists(lease.KEY)  # it was taken over, held and removed


@pytest.mark.parametrize("key", [segment_key(1), segment_key(3), "analysis/attribute/tables.json"])
def test_nothing_is_removed_if_a_marker_is_damaged(run, key):
    """The files that it lists would look like garbage."""
    (run / key).write_bytes(b"{}")
    before = files(run)
    with pytest.raises(ShardError, match=key):
        remove_garbage(Store(str(run)), NOW)
    assert files(run) == before


def test_nothing_is_removed_if_a_marker_is_missing(run):
    (run / segment_key(1)).unlink()
    with pytest.raises(ShardError, match="is missing although"):
        remove_garbage(Store(str(run)), NOW)
    assert set(LEFT) <= set(files(run))


def test_nothing_is_removed_from_a_folder_without_a_run(tmp_path):
    (tmp_path / "outliers").mkdir()
    (tmp_path / "outliers" / "x").write_text("mine")
    with pytest.raises(RunError, match="holds no run"):
        remove_garbage(Store(str(tmp_path)), NOW)
    assert (tmp_path / "outliers" / "x").exists()


def test_the_command_lists_by_default_and_removes_with_the_option(run, capsys):
    assert main(["gc", str(run)]) == 0
    said = capsys.readouterr().out
    assert "outliers/segment-000004-w00.parquet" in said
    assert "kept: too young" in said
    assert main(["gc", str(run), "--older-than", "0"]) == 0
    assert "Nothing was removed; to remove files, add --remove." in capsys.readouterr().out
    assert main(["gc", str(run), "--remove", "--older-than", "0"]) == 0
    assert "7 files removed, 0 kept." in capsys.readouterr().out
    assert files(run) == intact() | FOREIGN
    assert main(["gc", str(run)]) == 0
    assert "a marker names every file of the run" in capsys.readouterr().out


@pytest.mark.parametrize("minutes", ["-1", "soon", "1e99", "nan"])
def test_impossible_ages_are_refused(run, minutes, capsys):
    assert main(["gc", str(run), "--older-than", minutes]) == 2
    assert repr(minutes) in capsys.readouterr().err


def test_attribute_skips_damaged_shards_with_the_option(run, capsys):
    key = "outliers/segment-000001-w00.parquet"
    (run / key).write_bytes(b"")
    command = ["attribute", str(run), "--min-count", "1", "--replace"]
    assert main(command) == 3
    assert key in capsys.readouterr().err
    assert main([*command, "--skip-damaged"]) == 0
    said = capsys.readouterr().out
    assert "1 damaged shards were left out:" in said
    assert key in said
