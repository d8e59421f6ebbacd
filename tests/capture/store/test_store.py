"""Stores: refused URIs, links, unfinished writes, ranges, settings, and error messages."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from capture.config.reading import read_config
from capture.errors import CaptureError, ConfigError, ShardError, StoreError
from capture.store import Store
from capture.store.config import StoreConfig
from capture.store.local import write_file
from capture.store.range_file import RangeFile

SECRET = "hunter2/SECRET+x"


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("nosuch://x", "nosuch://x: cannot be opened: Protocol not known: nosuch."),
        ("s3://", "s3://: names no bucket. Write s3://bucket/prefix."),
        ("s3:///a", "s3:///a: names no bucket. Write s3://bucket/prefix."),
    ],
)
def test_an_impossible_uri_is_refused(uri: str, text: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store(uri)
    assert str(caught.value) == text


@pytest.mark.parametrize("scheme", ["s3", "s3a", "https", "memory", "file"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(scheme: str) -> None:
    with pytest.raises(StoreError, match="holds credentials, and a run would record") as caught:
        Store(f"{scheme}://AKIAKEY:{SECRET}@bucket/run")
    assert "AKIAKEY" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("s3:/lab/runs/x", "s3://lab/runs/x"),
        ("s3:lab/runs/x", "s3://lab/runs/x"),
        ("S3:/lab/x", "S3://lab/x"),
        ("gs:/lab/x", "gs://lab/x"),
        ("memory:/x", "memory://x"),
        ("file:/home/me/x", "file:///home/me/x"),
    ],
)
def test_a_uri_that_lost_a_slash_is_refused(uri, meant, tmp_path, monkeypatch):
    """``pathlib.Path`` leaves one slash; a folder ``s3:`` would be made in its place."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=f"perhaps {meant} is meant"):
        Store(uri).put("a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_uri_that_lost_a_slash_does_not_repeat_credentials():
    with pytest.raises(StoreError, match=r"^s3:…: .* perhaps s3://… is meant") as caught:
        Store(f"s3:/AKIAKEY:{SECRET}@bucket/run")
    assert "AKIAKEY" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_folder_with_a_colon_in_its_name_is_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("./s3:", "run:1", "c:/x", f"{tmp_path}/s3:/x"):
        Store(name).put("a", b"x")
        assert Store(name).get("a") == b"x"


def test_a_file_uri_and_a_path_are_the_same_store(tmp_path: Path) -> None:
    Store(f"file://{tmp_path}/run").put("a", b"x")
    assert Store(str(tmp_path / "run")).get("a") == b"x"


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Store("~/run").put("a", b"x")
    assert (tmp_path / "run" / "a").read_bytes() == b"x"


# --- a local folder -------------------------------------------------------------------------------


def test_an_unfinished_write_is_not_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("a/b", b"whole")
    (tmp_path / "a" / ".b.half").write_bytes(b"who")
    assert store.keys() == ["a/b"]
    assert store.unfinished() == ["a/.b.half"]
    store.delete("a/.b.half")
    assert store.unfinished() == []


def test_a_failed_write_leaves_the_old_value(tmp_path: Path, monkeypatch) -> None:
    store = Store(str(tmp_path))
    store.put("a", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"/a: cannot be written: .*No space left on device"):
        store.put("a", b"new")
    monkeypatch.undo()
    assert store.get("a") == b"old"
    assert store.unfinished() == []


def test_a_file_or_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "run" / "folder").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"file/a: cannot be written"):
        Store(str(tmp_path / "file")).put("a", b"x")
    with pytest.raises(StoreError, match=r"run/folder: cannot be read: .*directory"):
        Store(str(tmp_path / "run")).get("folder")
    with pytest.raises(StoreError, match=r"file: cannot be listed: .*directory"):
        Store(str(tmp_path / "file")).keys()


def test_links_out_of_a_run_are_not_followed(tmp_path: Path) -> None:
    secret, run = tmp_path / "outside" / "secret", tmp_path / "run"
    store = Store(str(run))
    store.put("a/b", b"x")
    write_file(secret, b"secret")
    (run / "link").symlink_to(secret)
    (run / "folder").symlink_to(secret.parent)
    assert store.keys() == ["a/b", "link"]
    for key in ("link", "folder/secret"):
        for verb in (store.get, store.open, store.exists, store.modified):
            with pytest.raises(ShardError, match="is a link that leads out of the run"):
                verb(key)
    for act in (store.delete, lambda key: store.put(key, b"y"), store.keys):
        with pytest.raises(ShardError, match="is a link that leads out of the run"):
            act("folder/secret")
    store.put("link", b"mine")
    store.delete("link")
    assert secret.read_bytes() == b"secret"
    assert store.keys() == ["a/b"]


def test_links_within_a_run_and_to_a_run_are_followed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.put("a/b", b"x")
    (tmp_path / "run" / "again").symlink_to("a/b")
    (tmp_path / "link").symlink_to("run")
    assert Store(str(tmp_path / "link")).get("again") == b"x"


# --- ranges ---------------------------------------------------------------------------------------


def test_a_range_file_fetches_only_what_is_read() -> None:
    fetched = []

    def read_range(start: int, end: int) -> bytes:
        fetched.append((start, end))
        return bytes(range(start, end))

    file = RangeFile(100, read_range)
    file.seek(90)
    assert file.read(5) == bytes(range(90, 95))
    assert file.read(50) == bytes(range(95, 100))
    assert (file.read(1), file.tell(), file.seek(-3, 1)) == (b"", 100, 97)
    assert file.readinto(buffer := bytearray(2)) == 2
    assert (buffer, file.readall()) == (bytearray([97, 98]), bytes([99]))
    assert fetched == [(90, 95), (95, 100), (97, 99), (99, 100)]
    with pytest.raises(ValueError, match="before the start"):
        file.seek(-1)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_in_the_place_of_a_folder_is_told(place: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    store = Store(place)
    for ask in (lambda: store.get("a/b"), lambda: store.put("a/b", b"")):
        with pytest.raises(StoreError) as caught:
            ask()
        wanted = "file is a file, not a folder. Name another place."
        assert str(caught.value).startswith(f"{place}/a/b: cannot be ")
        assert str(caught.value).endswith(wanted)
        assert "Errno" not in str(caught.value)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("store.endpoint_url=nas:9000", "store.endpoint_url: got 'nas:9000', must be http(s)://"),
        ("store.endpoint_url=http://", "store.endpoint_url: got 'http://', must be http(s)://"),
        ("store.retries=-1", "store.retries: got -1, must be at least 0."),
        ("store.first_wait_seconds=0", "store.first_wait_seconds: got 0.0, must be above 0."),
        ("store.read_timeout_seconds=0", "store.read_timeout_seconds: got 0.0, must be above 0."),
        ("store.max_pending_bytes=0", "store.max_pending_bytes: got 0, must be at least 1."),
        ("store.checksums=md5", "store.checksums: got 'md5', must be one of auto, when_required"),
        ("store.addressing=dns", "store.addressing: got 'dns', must be one of auto, path, virtual"),
    ],
)
def test_wrong_settings_are_explained(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(None, [override])
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    "override",
    [
        f"store.secret={SECRET}",
        f"store.secret_access_key={SECRET}",
        f"store.endpoint_url=https://key:{SECRET}@host",
        f"store.endpoint_url=https://host/?secret={SECRET}",
    ],
)
def test_a_credential_in_the_settings_is_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(CaptureError) as caught:
        read_config(None, [override])
    assert "hunter2" not in str(caught.value)


def test_the_repr_of_settings_holds_no_secret() -> None:
    assert "hunter2" not in repr(StoreConfig(endpoint_url="https://host:9000", profile="lab"))
    assert logging.getLogger("capture.store.retry").handlers == []


def test_keys_in_memory_are_listed_again_if_files_change_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``memory://`` is one dictionary, which the end of another run may change during a listing."""
    store, find = Store("memory://listed-again"), MemoryFileSystem.find
    store.put("a/b", b"")
    errors = [RuntimeError("dictionary changed size during iteration")]

    def found(*given: Any) -> list[str]:
        if errors:
            raise errors.pop()
        return find(*given)

    monkeypatch.setattr(MemoryFileSystem, "find", found)
    assert store.keys("a") == ["a/b"]
    assert not errors
