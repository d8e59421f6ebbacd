"""Writing a file to disk: whole and flushed, whatever the memory and the file system allow."""

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from capture.store import direct
from capture.store.direct import CACHED_BYTES, PAGE, begins_at_page, write_to_disk
from capture.store.local import write_file

if not hasattr(os, "O_DIRECT"):
    pytest.skip("the system has no O_DIRECT", allow_module_level=True)
SIZES = [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 17]


@pytest.fixture
def large_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "CACHED_BYTES", -1)


def pages(size: int, start: int = 0) -> memoryview:
    """Return writable bytes that begin ``start`` bytes behind the beginning of a page."""
    memory = mmap.mmap(-1, size + start + PAGE)
    memory[start : start + size] = os.urandom(size)
    return memoryview(memory)[start : start + size]


@pytest.mark.usefixtures("large_from_nothing")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start", [0, 8])
def test_a_file_holds_what_was_written(tmp_path: Path, size: int, start: int) -> None:
    data = pages(size, start)
    write_file(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
    write_file(tmp_path / "b", bytes(data))
    assert (tmp_path / "b").read_bytes() == data


def test_the_beginning_of_a_page_is_told_from_other_memory() -> None:
    assert begins_at_page(pages(PAGE))
    assert not begins_at_page(pages(PAGE, 8))
    assert not begins_at_page(memoryview(bytes(PAGE)))  # its address is not known


@pytest.mark.usefixtures("large_from_nothing")
@pytest.mark.parametrize("most", [1_000, PAGE, PAGE + 512])
def test_a_system_that_writes_a_part_at_a_time(tmp_path: Path, monkeypatch, most: int) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, view: write(handle, view[:most]))
    monkeypatch.setattr(os, "O_DIRECT", 0)  # it could not write such parts
    data = pages(3 * PAGE + 17)
    write_file(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data


def refuse_direct_writes(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let direct writes fail with an error of the system."""
    write = os.write

    def refuse(handle: int, view: memoryview) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return write(handle, view)

    monkeypatch.setattr(os, "write", refuse)


@pytest.mark.usefixtures("large_from_nothing")
def test_a_file_system_without_direct_writes_gets_ordinary_ones(
    tmp_path: Path, monkeypatch
) -> None:
    refuse_direct_writes(monkeypatch, errno.EINVAL)
    data = pages(2 * PAGE + 1)
    write_file(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.usefixtures("large_from_nothing")
def test_other_errors_of_direct_writes_are_raised_and_leave_no_file(
    tmp_path: Path, monkeypatch
) -> None:
    refuse_direct_writes(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", pages(2 * PAGE + 1))
    assert not list(tmp_path.iterdir())


def test_only_large_files_leave_memory_and_only_when_they_are_on_disk(
    tmp_path: Path, monkeypatch
) -> None:
    calls: list[str] = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("flush") or flush(handle))
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: calls.append("forget"))
    for name, size in {"small": CACHED_BYTES, "large": CACHED_BYTES + 1}.items():
        with (tmp_path / name).open("wb", buffering=0) as file:
            write_to_disk(file.fileno(), b"x" * size)
        assert (tmp_path / name).stat().st_size == size
    assert calls == ["flush", "flush", "forget"]
