"""A run on Amazon S3 or a store that speaks its language.

Only what every such store has is asked for: put, multipart put, get with a range, head, list,
delete. Nothing is cached, so a read never answers from an old listing.
"""

import base64
import functools
import hashlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from capture.errors import StoreAwayError, StoreError
from capture.store.config import PART_BYTES, StoreConfig
from capture.store.range_file import RangeFile
from capture.store.s3_client import Connection, connection_to
from capture.store.s3_errors import ENDPOINT, judged, no_bucket, parts_of

MOST_PARTS = 10_000
UPLOADS = 3
"""How often an upload is begun anew when the store has lost it."""


@dataclass(frozen=True)
class Bucket:
    """Keys below a prefix of a bucket."""

    uri: str
    bucket: str
    prefix: str
    config: StoreConfig
    earlier_retries: int = field(default=0, compare=False)
    """Of this process's connection, before this was opened."""

    @classmethod
    def at(cls, uri: str, config: StoreConfig) -> "Bucket":
        """Raises ``StoreError`` if the URI names no bucket or the settings make no client."""
        parts = urlsplit(uri)
        bucket, _, prefix = uri.removeprefix(f"{parts.scheme}://").partition("/")
        if not bucket:
            raise StoreError(uri, "names no bucket", "Write s3://bucket/prefix")
        try:
            connection = connection_to(config)
        except (BotoCoreError, ValueError) as error:
            raise judged(error, uri) from error
        return cls(uri, bucket, prefix, config, connection.retrier.num_retries)

    @property
    def connection(self) -> Connection:
        return connection_to(self.config)

    @property
    def retries(self) -> int:
        # A change of the environment makes another connection, which counts from 0.
        return max(0, self.connection.retrier.num_retries - self.earlier_retries)

    def put(self, key: str, data: bytes | memoryview) -> None:
        if len(data) > 2 * PART_BYTES:
            self.put_in_parts(key, memoryview(data))
        else:
            body = bytes(data)
            self.ask("put_object", key, Body=body, ContentMD5=md5(body))

    def put_in_parts(self, key: str, data: memoryview) -> None:
        """When the store no longer knows the upload, its completion may have got through and the
        answer been lost; if not, the upload is begun anew."""
        for _ in range(UPLOADS):
            upload = self.ask("create_multipart_upload", key)["UploadId"]
            try:
                parts = list(self.put_parts(key, upload, data))
                made = {"Parts": parts}
                self.ask("complete_multipart_upload", key, UploadId=upload, MultipartUpload=made)
                return
            except FileNotFoundError:
                if self.holds(key, data):
                    return
                self.connection.retrier.count()
            except BaseException:
                self.abandon(key, upload)
                raise
        raise StoreError(self.name(key), "the store keeps losing a multipart upload", ENDPOINT)

    def holds(self, key: str, data: bytes | memoryview) -> bool:
        try:
            return self.get(key) == data
        except FileNotFoundError:
            return False

    def put_parts(self, key: str, upload: str, data: memoryview) -> Iterator[dict[str, Any]]:
        size = max(PART_BYTES, -(-len(data) // MOST_PARTS))
        for number, start in enumerate(range(0, len(data), size), start=1):
            body = bytes(data[start : start + size])
            answer = self.ask(
                "upload_part",
                key,
                UploadId=upload,
                PartNumber=number,
                Body=body,
                ContentMD5=md5(body),
            )
            yield {"PartNumber": number, "ETag": answer["ETag"]}

    def abandon(self, key: str, upload: str) -> None:
        """Free what was uploaded; asked once, for the store may be gone."""
        with suppress(BotoCoreError, ClientError):
            self.connection.client.abort_multipart_upload(
                Bucket=self.bucket, Key=self.path(key), UploadId=upload
            )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        try:
            self.ask("put_object", key, Body=data, ContentMD5=md5(data), IfNoneMatch="*")
        except StoreError as error:
            status = status_of(error)
            if status == 501:  # not implemented: that it was absent a moment ago must do
                self.put(key, data)
            elif status == 412:  # perhaps by our own request, whose answer was lost
                return self.holds(key, data)
            else:
                raise
        return True

    def get(self, key: str) -> bytes:
        return self.fetch(key)[0]

    def fetch(self, key: str, **extent: str) -> tuple[bytes, dict[str, Any]]:
        """The body (or an extent of it) and what came with it; a body cut short is a fault."""

        def whole(client: Any) -> tuple[bytes, dict[str, Any]]:
            answer = client.get_object(Bucket=self.bucket, Key=self.path(key), **extent)
            with closing(answer["Body"]) as body:
                return body.read(), answer

        return self.connection.request(self.name(key), whole)

    def open(self, key: str) -> BinaryIO:
        about = self.about(key)
        read = functools.partial(self.read_range, key, about["ETag"])
        return cast(BinaryIO, RangeFile(about["ContentLength"], read))

    def read_range(self, key: str, version: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a value that must still be the one that was opened."""
        data, answer = self.fetch(key, Range=f"bytes={start}-{end - 1}")
        if answer["ETag"] != version:
            problem = "was replaced while it was being read"
            raise StoreError(self.name(key), problem, "Read it again")
        if len(data) != end - start:
            raise StoreError(self.name(key), "the store cannot read a range of bytes", ENDPOINT)
        return data

    def exists(self, key: str) -> bool:
        try:
            self.about(key)
        except FileNotFoundError:
            return False
        return True

    def modified(self, key: str) -> datetime:
        return self.about(key)["LastModified"]

    def about(self, key: str) -> dict[str, Any]:
        try:
            return self.ask("head_object", key)
        except FileNotFoundError:
            self.require_bucket()
            raise

    def require_bucket(self) -> None:
        """Raises ``StoreError`` for a bucket that does not exist, which a missing key may mean."""
        known = self.connection.buckets
        if self.bucket not in known:
            try:
                self.connection.request(self.uri, lambda c: c.head_bucket(Bucket=self.bucket))
            except FileNotFoundError as error:
                raise no_bucket(self.uri) from error
            except StoreAwayError:
                raise
            except StoreError:
                pass  # it may be forbidden to ask; then the bucket is there
            known.add(self.bucket)

    def keys(self, prefix: str) -> list[str]:
        base = self.path(f"{prefix}/" if prefix else "")
        root = len(self.path(""))
        found = (entry["Key"][root:] for page in self.pages(base) for entry in page)
        return [key for key in found if not key.endswith("/") and not is_hidden(key)]

    def pages(self, base: str) -> Iterator[list[dict[str, Any]]]:
        """What lies below a prefix, a page (of a thousand, as a rule) at a time."""
        further: dict[str, str] = {}
        while True:
            ask = functools.partial(self.list_page, base, further)
            page = self.connection.request(self.uri, ask)
            yield page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            further = {"ContinuationToken": page["NextContinuationToken"]}

    def list_page(self, base: str, further: dict[str, str], client: Any) -> dict[str, Any]:
        return client.list_objects_v2(Bucket=self.bucket, Prefix=base, **further)

    def unfinished(self) -> list[str]:
        return []

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self.ask("delete_object", key)

    def ask(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        """One operation on a key."""

        def once(client: Any) -> dict[str, Any]:
            return getattr(client, operation)(Bucket=self.bucket, Key=self.path(key), **arguments)

        return self.connection.request(self.name(key), once)

    def path(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def name(self, key: str) -> str:
        return f"{self.uri}/{key}"


def is_hidden(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")


def status_of(error: StoreError) -> int:
    """HTTP status of the answer behind an error, 0 if there was none."""
    cause = error.__cause__
    return parts_of(cause)[1] if isinstance(cause, ClientError) else 0


def md5(data: bytes) -> str:
    """The checksum that every store can check an upload by; it guards against accidents only."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
