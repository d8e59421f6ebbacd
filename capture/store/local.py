"""A run in a local folder.

``put`` is atomic: it writes a temporary file beside the key, flushes it to disk and renames it to
the key. Symbolic links that lead out of the run's folder are never followed.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from capture.errors import ShardError
from capture.store.direct import write_to_disk


class LocalBackend:
    """Keys as files below ``root``, which need not exist yet; raises ``OSError`` as Python does."""

    retries = 0
    requests_at_once = 1

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser().absolute()

    def put(self, key: str, data: bytes | memoryview) -> None:
        write_file(self.path_to_write(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with temporary_beside(self.path_to_write(key), data) as temporary:
            # A hard link fails if the key exists; a rename would replace it.
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
        return True

    def get(self, key: str) -> bytes:
        return self.file_to_read(key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        return self.file_to_read(key).open("rb")

    def exists(self, key: str) -> bool:
        return self.path_to_read(key).is_file()

    def modified(self, key: str) -> datetime:
        return datetime.fromtimestamp(self.path_to_read(key).stat().st_mtime, UTC)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.files(prefix) if not Path(key).name.startswith(".")]

    def unfinished(self) -> list[str]:
        return [key for key in self.files("") if Path(key).name.startswith(".")]

    def files(self, prefix: str) -> Iterator[str]:
        """Yield the key of each file below a folder; linked folders are not entered."""
        if not os.path.lexists(self.root / prefix):
            return
        for folder, _, names in os.walk(self.path_to_write(prefix), onerror=raise_error):
            for name in names:
                key = (Path(folder) / name).relative_to(self.root).as_posix()
                # A name that is not UTF-8 is no key; it is listed in a form that can be shown.
                yield key.encode(errors="surrogateescape").decode(errors="replace")

    def delete(self, key: str) -> None:
        self.path_to_write(key).unlink(missing_ok=True)

    def path_to_write(self, key: str) -> Path:
        """Return the key's path; raises ``ShardError`` if its folder lies outside the run.

        The last part may be a link: writing and deleting replace the link, not its target.
        """
        path = self.root / key
        self.require_inside(key, path.parent if key else path)
        return path

    def path_to_read(self, key: str) -> Path:
        """Return the key's path; raises ``ShardError`` if it leads out of the run."""
        path = self.path_to_write(key)
        if path.is_symlink():
            self.require_inside(key, path)
        return path

    def file_to_read(self, key: str) -> Path:
        """Like ``path_to_read``; raises ``ShardError`` for a pipe or device, which would block."""
        path = self.path_to_read(key)
        if path.exists() and not (path.is_file() or path.is_dir()):
            where = f"{self.root}/{key}"
            raise ShardError(where, "is neither a file nor a folder", "Do not trust this run")
        return path

    def file_above(self, key: str) -> Path | None:
        """Return what stands in the place of a folder above the key, if anything does."""
        above = next(each for each in (self.root / key).parents if os.path.lexists(each))
        return None if above.is_dir() else above

    def require_inside(self, key: str, path: Path) -> None:
        # The root is resolved as well, because the run itself may be opened through a link.
        if not path.resolve().is_relative_to(self.root.resolve()):
            where = f"{self.root}/{key}"
            raise ShardError(where, "is a link that leads out of the run", "Do not trust this run")


def raise_error(error: OSError) -> None:
    """Raise an error; ``os.walk`` takes a folder that it cannot list for an empty one otherwise."""
    raise error


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically and durably: temporary file, flush to disk, rename."""
    with temporary_beside(path, data) as temporary:
        temporary.replace(path)


@contextmanager
def temporary_beside(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    """Write the data to a hidden file beside ``path``, flushed to disk, and yield its path.

    Afterwards the folder is flushed too, so that the name survives a power cut, and the temporary
    file is removed if it is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb", buffering=0) as file:
            write_to_disk(file.fileno(), data)
        yield temporary
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
