"""A run in a local folder.

``put`` is all or nothing: bytes are written beside the key, flushed to the disk, and moved into its
place. Links are not followed out of the run's folder, whoever put them there.
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


class Folder:
    """Keys as files below a root that need not exist yet; raises ``OSError`` as Python does."""

    retries = 0

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser().absolute()

    def put(self, key: str, data: bytes | memoryview) -> None:
        put_local(self.within(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with written_beside(self.within(key), data) as partial:
            try:
                os.link(partial, self.root / key)
            except FileExistsError:
                return False
        return True

    def get(self, key: str) -> bytes:
        return self.readable(key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        return self.readable(key).open("rb")

    def exists(self, key: str) -> bool:
        return self.readable(key).is_file()

    def modified(self, key: str) -> datetime:
        return datetime.fromtimestamp(self.readable(key).stat().st_mtime, UTC)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.files(prefix) if not Path(key).name.startswith(".")]

    def unfinished(self) -> list[str]:
        return [key for key in self.files("") if Path(key).name.startswith(".")]

    def files(self, prefix: str) -> Iterator[str]:
        """All files below a folder, by key; none below a link."""
        if not os.path.lexists(self.root / prefix):
            return
        for folder, _, names in os.walk(self.within(prefix), onerror=complain):
            for name in names:
                yield (Path(folder) / name).relative_to(self.root).as_posix()

    def delete(self, key: str) -> None:
        self.within(key).unlink(missing_ok=True)

    def within(self, key: str) -> Path:
        """The key's path, no link on the way to it leading out of the run."""
        path = self.root / key
        self.check(key, path.parent if key else path)
        return path

    def readable(self, key: str) -> Path:
        """The key's path, itself no link that leads out either."""
        path = self.within(key)
        if path.is_symlink():
            self.check(key, path)
        return path

    def check(self, key: str, path: Path) -> None:
        if not path.resolve().is_relative_to(self.root.resolve()):
            where = f"{self.root}/{key}"
            raise ShardError(where, "is a link that leads out of the run", "Do not trust this run")


def complain(error: OSError) -> None:
    """A folder that cannot be listed is an error, not an empty folder."""
    raise error


def put_local(path: Path, data: bytes | memoryview) -> None:
    """Write beside the target, flush to the disk, then take the target's place at once."""
    with written_beside(path, data) as partial:
        partial.replace(path)


@contextmanager
def written_beside(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    """The data in a file beside the target, on the disk; what is done with it is flushed too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
        flush_names(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush_names(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
