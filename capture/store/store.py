"""A run's place: a folder or an object-store prefix, as keys with bytes behind them.

Callers see the same few verbs wherever the run lies (``Place``). ``put`` is all or nothing: a key
holds the whole of what was put or what it held before. What was put is what anyone reads next; a
*listing* may lag behind on some stores, so no law rests on one: readers ask for keys by name.
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
from capture.store.filesystem import Filesystem
from capture.store.local import Folder

DEFAULT = StoreConfig()
MAY_PASS = {
    *(errno.ETIMEDOUT, errno.ESTALE, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
}
"""How the file systems of a network say that they are away."""
HOLDS_CREDENTIALS = re.compile(r"[^/]*(@|:(?!\d+(/|$)))")
"""After ``scheme://``: a user before the host, or a colon that does not begin a port."""


class Place(Protocol):
    """What a kind of store can do. ``FileNotFoundError``: no such key; other ``OSError``: failed.

    What fails for reasons that only the place can tell is a ``StoreError`` already.
    """

    @property
    def retries(self) -> int: ...
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

    Small and picklable: connections are made where it is used, and shared within a process.
    """

    def __init__(self, uri: str, config: StoreConfig = DEFAULT) -> None:
        """``config`` matters to ``s3://`` alone; raises ``StoreError`` for an impossible URI."""
        self.uri = uri if uri.endswith("://") else uri.rstrip("/") or uri
        self.config = config
        self.place = place_of(self.uri, config)
        self.taken_retries = 0

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write the whole value of a key."""
        with self.explained(key, "written"):
            self.place.put(checked(self.uri, key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a key that is not there yet; whether it was written.

        Of several at once exactly one writes it on a local disk, in memory, and on object stores
        that honour ``If-None-Match: *``. Others ignore that or refuse it; there two may both be
        told that they wrote. Whoever must know reads the key back a while later.
        """
        with self.explained(key, "written"):
            return self.place.put_if_absent(checked(self.uri, key), data)

    def get(self, key: str) -> bytes:
        """The value of a key; ``FileNotFoundError`` is the caller's to explain."""
        with self.explained(key, "read", may_lack=True):
            return self.place.get(checked(self.uri, key))

    def open(self, key: str) -> BinaryIO:
        """The value of a key for reading at any offset; fetches no more than is read."""
        with self.explained(key, "read", may_lack=True):
            return self.place.open(checked(self.uri, key))

    def exists(self, key: str) -> bool:
        with self.explained(key, "read"):
            return self.place.exists(checked(self.uri, key))

    def modified(self, key: str) -> datetime:
        """When the key was last put, by the store's clock; raises ``FileNotFoundError``."""
        with self.explained(key, "read", may_lack=True):
            return self.place.modified(checked(self.uri, key))

    def keys(self, prefix: str = "") -> list[str]:
        """All keys, or those under a folder, in ascending order; unfinished writes are not keys.

        A listing: on some stores it may lack what was just put and hold what was just deleted.
        """
        with self.explained(prefix, "listed"):
            return sorted(self.place.keys(checked(self.uri, prefix) if prefix else ""))

    def unfinished(self) -> list[str]:
        """What a killed process left of writes under way, in ascending order; can be deleted."""
        with self.explained("", "listed"):
            return sorted(self.place.unfinished())

    def delete(self, key: str) -> None:
        """Remove a key; one that is absent already is no error."""
        with self.explained(key, "deleted"):
            self.place.delete(checked(self.uri, key))

    @property
    def retries(self) -> int:
        """Requests that were made again since this store was opened, by anyone in this process."""
        return self.place.retries

    def take_retries(self) -> int:
        """Retries since this was last asked of this store."""
        before, self.taken_retries = self.taken_retries, self.retries
        return max(0, self.taken_retries - before)

    @contextmanager
    def explained(self, key: str, done: str, *, may_lack: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if may_lack and isinstance(error, FileNotFoundError):
                raise
            where = f"{self.uri}/{key}".rstrip("/")
            kind = StoreAwayError if error.errno in MAY_PASS else StoreError
            raise kind(where, f"cannot be {done}: {error}") from error

    def __reduce__(self) -> tuple[type["Store"], tuple[str, StoreConfig]]:
        """Elsewhere, a relative path would mean another folder."""
        uri = str(self.place.root) if isinstance(self.place, Folder) else self.uri
        return Store, (uri, self.config)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"


def place_of(uri: str, config: StoreConfig) -> Place:
    """The kind of store that a URI means; botocore is loaded only where it is needed."""
    scheme, sign, rest = uri.partition("://")
    if not sign:
        return Folder(uri)
    if HOLDS_CREDENTIALS.match(rest):
        problem = "holds credentials, and a run would record them"
        remedy = "Write s3://bucket/prefix and give them by the AWS environment variables or files"
        raise StoreError(f"{scheme}://…", problem, remedy)
    if scheme in ("file", "local"):
        return Folder(rest)
    if scheme in ("s3", "s3a"):
        from capture.store.s3 import Bucket

        return Bucket.at(uri, config)
    try:
        return Filesystem(uri)
    except (ValueError, ImportError) as error:
        raise StoreError(uri, f"cannot be opened: {error}") from error


def checked(uri: str, key: str) -> str:
    """The key itself; raises ``StoreError`` for one that could point outside the run."""
    parts = PurePosixPath(key).parts
    if "/".join(parts) != key or ".." in parts or not parts or "\\" in key or "\0" in key:
        raise StoreError(uri, f"{key!r} is not a key of a run")
    return key
