"""A run's place: a folder or an object-store prefix, as keys with bytes behind them.

Paths go through fsspec, so callers see the same few verbs wherever the run lies. ``put`` is all or
nothing: a key holds the whole of what was put or what it held before. Object stores promise that by
themselves; on a local disk the bytes are written beside the key, flushed, and moved into its place.
"""

import contextlib
import os
import uuid
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from capture.errors import StoreError


class Store:
    """The keys under one URI: a plain path, ``file://``, ``memory://`` or ``s3://``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            self.filesystem, self.root = url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise StoreError(uri, f"cannot be opened: {error}") from error

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the whole value of a key."""
        path = self.path(key)
        try:
            if isinstance(self.filesystem, LocalFileSystem):
                put_local(Path(path), data)
            else:
                self.filesystem.pipe_file(path, bytes(data))
        except OSError as error:
            raise StoreError(f"{self.uri}/{key}", f"cannot be written: {error}") from error

    def get(self, key: str) -> bytes:
        """The value of a key; ``FileNotFoundError`` is the caller's to explain."""
        return self.filesystem.cat_file(self.path(key))

    def open(self, key: str) -> BinaryIO:
        """The value of a key for reading at any offset."""
        return self.filesystem.open(self.path(key), "rb")

    def exists(self, key: str) -> bool:
        return self.filesystem.isfile(self.path(key))

    def keys(self, prefix: str = "") -> list[str]:
        """All keys, or those under a folder, in ascending order; unfinished writes are not keys."""
        base = self.path(prefix) if prefix else self.root
        if not self.filesystem.exists(base):
            return []
        found = self.filesystem.find(base)
        keys = [str(PurePosixPath(path).relative_to(self.root)) for path in found]
        return sorted(key for key in keys if not PurePosixPath(key).name.startswith("."))

    def delete(self, key: str) -> None:
        """Remove a key; one that is absent already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(key))

    def path(self, key: str) -> str:
        """Where a key lies for ``self.filesystem``; a key cannot point outside the run."""
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or ".." in parts or "\\" in key or "\0" in key:
            raise StoreError(self.uri, f"{key!r} is not a key of a run")
        return f"{self.root}/{key}"

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"


def put_local(path: Path, data: bytes | memoryview) -> None:
    """Write beside the target, flush to the disk, then take the target's place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
