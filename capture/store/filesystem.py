"""A run on any file system that fsspec supports: ``memory://`` and those of its plug-ins.

Only this module imports fsspec. The store contract tests run against ``memory://``; other schemes
work as far as their plug-in implements fsspec correctly. ``s3://`` does not come here: see
``capture.store.s3``.
"""

import contextlib
from datetime import datetime
from pathlib import PurePosixPath
from typing import BinaryIO

from fsspec.core import url_to_fs


class FsspecBackend:
    """Keys below a URI; raises ``ValueError`` or ``ImportError`` for an unknown scheme."""

    retries = 0
    requests_at_once = 1

    def __init__(self, uri: str) -> None:
        self.filesystem, self.root = url_to_fs(uri, use_listings_cache=False)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.filesystem.pipe_file(self.path(key), bytes(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            self.filesystem.pipe_file(self.path(key), data, mode="create")
        except FileExistsError:
            return False
        return True

    def get(self, key: str) -> bytes:
        return self.filesystem.cat_file(self.path(key))

    def open(self, key: str) -> BinaryIO:
        return self.filesystem.open(self.path(key), "rb")

    def exists(self, key: str) -> bool:
        try:
            return self.filesystem.info(self.path(key))["type"] == "file"
        except FileNotFoundError:
            return False

    def modified(self, key: str) -> datetime:
        return self.filesystem.modified(self.path(key))

    def keys(self, prefix: str) -> list[str]:
        base = self.path(prefix) if prefix else self.root
        if not self.filesystem.exists(base):
            return []
        found = (PurePosixPath(path) for path in self.find(base))
        return [str(p.relative_to(self.root)) for p in found if not p.name.startswith(".")]

    def find(self, base: str) -> list[str]:
        """List the files below a path; again if those of ``memory://`` change meanwhile."""
        while True:
            try:
                return self.filesystem.find(base)
            except RuntimeError as error:  # a thread or finalizer changed the dictionary
                if "changed size during iteration" not in str(error):
                    raise

    def unfinished(self) -> list[str]:
        return []

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.path(key))

    def path(self, key: str) -> str:
        return f"{self.root}/{key}"
