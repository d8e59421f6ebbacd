"""A run on Amazon S3 or a compatible store, through botocore.

Uses only operations that every compatible store has: put, multipart put, get with a range, head,
list, delete. Nothing is cached, so no read is answered from an old listing. Why this is botocore
and neither s3fs nor obstore: see docs/concepts/design-choices.md.
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
from capture.redaction import shown_cause
from capture.store.config import PART_BYTES, StoreConfig
from capture.store.parallel import map_in_parallel
from capture.store.range_file import RangeFile
from capture.store.s3_answers import etag_differs, require_answer
from capture.store.s3_client import Connection, connect
from capture.store.s3_errors import (
    ENDPOINT_REMEDY,
    missing_bucket,
    response_details,
    translate_error,
)

MAX_PARTS = 10_000
PARTS_AT_ONCE = 16
"""Parts of one upload under way; each holds a copy of its bytes."""
MAX_UPLOADS = 3
"""How often a multipart upload is started in all, if the store loses it."""


@dataclass(frozen=True)
class S3Backend:
    """The keys below a prefix of a bucket."""

    uri: str
    bucket: str
    prefix: str
    config: StoreConfig
    earlier_retries: int = field(default=0, compare=False)
    """Retries of this process's connection before this store was opened."""
    requests_at_once: int = field(default=8, compare=False)

    @classmethod
    def from_uri(cls, uri: str, config: StoreConfig) -> "S3Backend":
        """Raises ``StoreError`` if the URI has no bucket or the settings are invalid."""
        parts = urlsplit(uri)
        bucket, _, prefix = uri.removeprefix(f"{parts.scheme}://").partition("/")
        if not bucket:
            raise StoreError(uri, "names no bucket", "Write s3://bucket/prefix")
        try:
            connection = connect(config)
        except (BotoCoreError, ValueError) as error:
            raise translate_error(error, uri) from shown_cause(error)
        return cls(uri, bucket, prefix, config, connection.retrier.num_retries)

    @property
    def connection(self) -> Connection:
        return connect(self.config)

    @property
    def retries(self) -> int:
        # If the AWS environment has changed, this is a new connection, which counts from 0.
        return max(0, self.connection.retrier.num_retries - self.earlier_retries)

    def put(self, key: str, data: bytes | memoryview) -> None:
        if len(data) > 2 * PART_BYTES:
            self.put_in_parts(key, memoryview(data))
        else:
            self.put_whole(key, bytes(data))

    def put_whole(self, key: str, body: bytes, **options: str) -> None:
        """Upload in one request; raise ``StoreError`` if the store keeps confirming other bytes."""
        for _ in range(MAX_UPLOADS):
            answer = self.call("put_object", key, Body=body, ContentMD5=md5(body), **options)
            # Not every store's ETag is an MD5, so one that differs is only a reason to look.
            if not etag_differs(answer, body) or not self.connection.etags_are_md5:
                return
            if self.has_value(key, body):
                self.connection.etags_are_md5 = False
                return
            self.connection.retrier.count()
        problem = "the store keeps confirming other bytes than were sent"
        raise StoreError(self.uri_of(key), problem, ENDPOINT_REMEDY)

    def put_in_parts(self, key: str, data: memoryview) -> None:
        """Multipart upload. If the store no longer knows the upload, start again.

        A retried completion also ends there when the first one succeeded but its answer was lost;
        then the key already holds the data and the upload is done.
        """
        for _ in range(MAX_UPLOADS):
            upload = self.call("create_multipart_upload", key)["UploadId"]
            try:
                parts = list(self.put_parts(key, upload, data))
                listing = {"Parts": parts}
                self.call(
                    "complete_multipart_upload", key, UploadId=upload, MultipartUpload=listing
                )
                return
            except FileNotFoundError:
                if self.has_value(key, data):
                    return
                self.connection.retrier.count()
            except BaseException:
                self.abort_upload(key, upload)
                raise
        raise StoreError(
            self.uri_of(key), "the store keeps losing a multipart upload", ENDPOINT_REMEDY
        )

    def has_value(self, key: str, data: bytes | memoryview) -> bool:
        try:
            return self.get(key) == data
        except FileNotFoundError:
            return False

    def put_parts(self, key: str, upload: str, data: memoryview) -> Iterator[dict[str, Any]]:
        size = max(PART_BYTES, -(-len(data) // MAX_PARTS))

        def put_part(number: int) -> dict[str, Any]:
            body = bytes(data[(number - 1) * size : number * size])
            answer = self.call(
                "upload_part",
                key,
                UploadId=upload,
                PartNumber=number,
                Body=body,
                ContentMD5=md5(body),
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        return map_in_parallel(put_part, range(1, -(-len(data) // size) + 1), PARTS_AT_ONCE)

    def abort_upload(self, key: str, upload: str) -> None:
        """Free the uploaded parts. One attempt only, because the store may be away."""
        with suppress(BotoCoreError, ClientError):
            self.connection.client.abort_multipart_upload(
                Bucket=self.bucket, Key=self.path(key), UploadId=upload
            )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.exists(key):
            return False
        try:
            self.put_whole(key, data, IfNoneMatch="*")
        except StoreError as error:
            status = status_of(error)
            if status == 501:  # not implemented; rely on the check for existence above
                self.put(key, data)
            elif status == 412:  # it exists: perhaps from our own request, whose answer was lost
                return self.has_value(key, data)
            else:
                raise
        return True

    def get(self, key: str) -> bytes:
        return self.fetch(key)[0]

    def fetch(self, key: str, **options: str) -> tuple[bytes, dict[str, Any]]:
        """Return the body, or the ``Range`` of it, and the response.

        The body is read within the request, so that a body cut short is retried.
        """

        def whole(client: Any) -> tuple[bytes, dict[str, Any]]:
            answer = client.get_object(Bucket=self.bucket, Key=self.path(key), **options)
            with closing(answer["Body"]) as body:
                require_answer("get_object", answer)
                return body.read(), answer

        return self.connection.request(self.uri_of(key), whole)

    def open(self, key: str) -> BinaryIO:
        head = self.head(key)
        read = functools.partial(self.read_range, key, head["ETag"])
        return cast(BinaryIO, RangeFile(head["ContentLength"], read))

    def read_range(self, key: str, version: str, start: int, end: int) -> bytes:
        """Return bytes [start, end); raises ``StoreError`` if the value has been replaced."""
        data, answer = self.fetch(key, Range=f"bytes={start}-{end - 1}")
        if answer["ETag"] != version:
            problem = "was replaced while it was being read"
            raise StoreError(self.uri_of(key), problem, "Read it again")
        if len(data) != end - start:
            raise StoreError(
                self.uri_of(key), "the store cannot read a range of bytes", ENDPOINT_REMEDY
            )
        return data

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except FileNotFoundError:
            return False
        return True

    def modified(self, key: str) -> datetime:
        return self.head(key)["LastModified"]

    def head(self, key: str) -> dict[str, Any]:
        try:
            return self.call("head_object", key)
        except FileNotFoundError:
            self.require_bucket()
            raise

    def require_bucket(self) -> None:
        """Raise ``StoreError`` if the bucket does not exist.

        The answer to HEAD has no body, so it does not say whether the key or the bucket is missing.
        """
        known = self.connection.known_buckets
        if self.bucket not in known:
            try:
                self.connection.request(self.uri, lambda c: c.head_bucket(Bucket=self.bucket))
            except FileNotFoundError as error:
                raise missing_bucket(self.uri) from error
            except StoreAwayError:
                raise
            except StoreError:
                pass  # the request may be forbidden, which means that the bucket exists
            known.add(self.bucket)

    def keys(self, prefix: str) -> list[str]:
        base = self.path(f"{prefix}/" if prefix else "")
        root = len(self.path(""))
        found = (entry["Key"][root:] for page in self.pages(base) for entry in page)
        return [key for key in found if not key.endswith("/") and not is_hidden(key)]

    def pages(self, base: str) -> Iterator[list[dict[str, Any]]]:
        """Yield the entries below a prefix, page by page (usually 1,000 entries each)."""
        position: dict[str, str] = {}
        while True:
            request = functools.partial(self.list_page, base, position)
            page = self.connection.request(self.uri, request)
            yield page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            position = {"ContinuationToken": page["NextContinuationToken"]}

    def list_page(self, base: str, position: dict[str, str], client: Any) -> dict[str, Any]:
        page = client.list_objects_v2(Bucket=self.bucket, Prefix=base, **position)
        require_answer("list_objects_v2", page)
        return page

    def unfinished(self) -> list[str]:
        return []

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self.call("delete_object", key)

    def call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        """Return botocore's answer to one operation on a key, with retries."""

        def once(client: Any) -> dict[str, Any]:
            place = {"Bucket": self.bucket, "Key": self.path(key)}
            answer = getattr(client, operation)(**place, **arguments)
            require_answer(operation, answer)
            return answer

        return self.connection.request(self.uri_of(key), once)

    def path(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"


def is_hidden(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")


def status_of(error: StoreError) -> int:
    """Return the HTTP status of the answer behind an error, 0 if there was no answer."""
    cause = error.__cause__
    return response_details(cause)[1] if isinstance(cause, ClientError) else 0


def md5(data: bytes) -> str:
    """Return the Content-MD5 of an upload, which every store verifies; not a security measure."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
