"""``Store``: the keys and values of one run, wherever the run is stored.

All backends offer the same operations (``StoreBackend``). ``put`` is atomic: a key holds either its
whole new value or its old one. A read by name sees the last ``put``. A *listing* may lag behind on
some stores, so correctness never depends on one: readers ask for keys by name.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from capture.errors import StoreAwayError, StoreError
from capture.store.config import StoreConfig
from capture.store.local import LocalBackend

DEFAULT = StoreConfig()
TRANSIENT_ERRNOS = {
    *(errno.ETIMEDOUT, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
}
"""Error numbers that a network file system gives while its server is away."""
HAS_CREDENTIALS = re.compile(r"[^/]*(@|:(?!\d+(/|$)))")
"""Matches what follows ``scheme://`` if it has a user before the host, or a colon but no port."""

LOST_SLASH = re.compile(r"(s3a?|gc?s|az|abfss?|https?|hdfs|s?ftp|memory|file|local):(?!//)", re.I)
"""Matches a URI that has lost a slash, as ``pathlib`` and typing errors make it."""


class StoreBackend(Protocol):
    """The operations of one kind of store.

    They raise ``FileNotFoundError`` for a missing key, ``StoreError`` where the backend can explain
    the failure, and any other ``OSError`` where it cannot; ``Store`` explains those.
    """

    @property
    def retries(self) -> int: ...
    @property
    def requests_at_once(self) -> int: ...
    def put(self, key: str, data: bytes | memoryview) -> None: ...
    def put_if_absent(self, key: str, data: bytes) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def open(self, key: str) -> BinaryIO: ...
    def exists(self, key: str) -> bool: ...
    def modified(self, key: str) -> datetime: ...
    def keys(self, prefix: str) -> list[str]: ...
    def unfinished(self) -> list[str]: ...
    def delete(self, key: str) -> None: ...


class Store:
    """The keys under one URI: a plain path, ``file://``, ``memory://`` or ``s3://``.

    Small and picklable: connections are made where the store is used and shared within a process.
    Failures raise ``StoreError``, or ``StoreAwayError`` if they may pass.
    """

    def __init__(self, uri: str, config: StoreConfig = DEFAULT) -> None:
        """Only ``s3://`` uses ``config``. Raises ``StoreError`` for an invalid URI."""
        self.uri = uri if uri.endswith("://") else uri.rstrip("/") or uri
        self.config = config
        self.backend = backend_of(self.uri, config)
        self.taken_retries = 0

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the whole value of a key, replacing any earlier value."""
        with self.explain_errors(key, "written"):
            self.backend.put(checked_key(self.uri, key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a key that does not exist yet; return whether it was written.

        Of several concurrent writers exactly one succeeds on a local disk, in memory, and on object
        stores that honour ``If-None-Match: *``. Other object stores ignore or reject that header,
        and there two writers may both get True. A caller that must know waits a moment and reads
        the key back.
        """
        with self.explain_errors(key, "written"):
            return self.backend.put_if_absent(checked_key(self.uri, key), data)

    def get(self, key: str) -> bytes:
        """Return the value of a key; raises ``FileNotFoundError`` if there is none."""
        with self.explain_errors(key, "read", may_be_missing=True):
            return self.backend.get(checked_key(self.uri, key))

    def open(self, key: str) -> BinaryIO:
        """Open the value of a key for random access; fetches only the bytes that are read.

        Raises ``FileNotFoundError`` if there is no such key.
        """
        with self.explain_errors(key, "read", may_be_missing=True):
            return self.backend.open(checked_key(self.uri, key))

    def exists(self, key: str) -> bool:
        with self.explain_errors(key, "read"):
            return self.backend.exists(checked_key(self.uri, key))

    def modified(self, key: str) -> datetime:
        """Return the time of the last ``put``, by the store's clock.

        Raises ``FileNotFoundError`` if there is no such key.
        """
        with self.explain_errors(key, "read", may_be_missing=True):
            return self.backend.modified(checked_key(self.uri, key))

    def keys(self, prefix: str = "") -> list[str]:
        """List all keys, or those in the folder ``prefix``, sorted, without unfinished writes.

        On some stores a listing may lack a key that was just put, or hold one just deleted.
        """
        with self.explain_errors(prefix, "listed"):
            return sorted(self.backend.keys(checked_key(self.uri, prefix) if prefix else ""))

    def unfinished(self) -> list[str]:
        """List the partial files that killed writers have left, sorted. They can be deleted."""
        with self.explain_errors("", "listed"):
            return sorted(self.backend.unfinished())

    def delete(self, key: str) -> None:
        """Remove a key. Removing a missing key is no error."""
        with self.explain_errors(key, "deleted"):
            self.backend.delete(checked_key(self.uri, key))

    @property
    def retries(self) -> int:
        """Number of requests that this process has retried since this store was opened."""
        return self.backend.retries

    @property
    def requests_at_once(self) -> int:
        """How many small requests to make at a time (``capture.store.parallel``): 1 on a disk."""
        return self.backend.requests_at_once

    def take_retries(self) -> int:
        """Return the number of retries since the last call of this method on this store."""
        before, self.taken_retries = self.taken_retries, self.retries
        return max(0, self.taken_retries - before)

    @contextmanager
    def explain_errors(
        self, key: str, done: str, *, may_be_missing: bool = False
    ) -> Iterator[None]:
        """Turn an ``OSError`` within into a ``StoreError`` that names the key and the operation."""
        try:
            yield
        except OSError as error:
            if may_be_missing and isinstance(error, FileNotFoundError):
                raise
            where = f"{self.uri}/{key}".rstrip("/")
            if isinstance(self.backend, LocalBackend) and (file := self.backend.file_above(key)):
                problem = f"cannot be {done}: {file} is a file, not a folder"
                raise StoreError(where, problem, "Name another place") from error
            kind = StoreAwayError if error.errno in TRANSIENT_ERRNOS else StoreError
            raise kind(where, f"cannot be {done}: {error}") from error

    def __reduce__(self) -> tuple[type["Store"], tuple[str, StoreConfig]]:
        # A relative path would mean another folder in a process with another working directory.
        uri = str(self.backend.root) if isinstance(self.backend, LocalBackend) else self.uri
        return Store, (uri, self.config)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"


def backend_of(uri: str, config: StoreConfig) -> StoreBackend:
    """Return the backend for a URI; imports botocore or fsspec only where it is needed."""
    if LOST_SLASH.match(uri):
        raise lost_slash_error(uri)
    scheme, sign, rest = uri.partition("://")
    if not sign:
        return LocalBackend(uri)
    if HAS_CREDENTIALS.match(rest):
        problem = "holds credentials, and a run would record them"
        remedy = "Write s3://bucket/prefix and give them by the AWS environment variables or files"
        raise StoreError(f"{scheme}://…", problem, remedy)
    if scheme in ("file", "local"):
        return LocalBackend(rest)
    if scheme in ("s3", "s3a"):
        from capture.store.s3 import S3Backend

        return S3Backend.from_uri(uri, config)
    from capture.store.filesystem import FsspecBackend

    try:
        return FsspecBackend(uri)
    except (ValueError, ImportError) as error:
        raise StoreError(uri, f"cannot be opened: {error}") from error


def lost_slash_error(uri: str) -> StoreError:
    """Return the error for a URI such as ``s3:/bucket/x``, without repeating credentials in it."""
    scheme, _, rest = uri.partition(":")
    rest = rest.lstrip("/")
    slashes = "///" if scheme.lower() in ("file", "local") else "://"[1:]
    meant = f"{scheme}:{slashes}" + ("…" if HAS_CREDENTIALS.match(rest) else rest)
    remedy = "For a folder of that name write ./ before it"
    return StoreError(
        f"{scheme}:…", f"is not the address of a store; perhaps {meant} is meant", remedy
    )


def checked_key(uri: str, key: str) -> str:
    """Return the key; raises ``StoreError`` for one that could point outside the run."""
    parts = PurePosixPath(key).parts
    if "/".join(parts) != key or ".." in parts or not parts or "\\" in key or "\0" in key:
        raise StoreError(uri, f"{key!r} is not a key of a run")
    return key
