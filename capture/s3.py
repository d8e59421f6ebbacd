"""A run on Amazon S3 or a store that speaks its language. The home of botocore.

Only what every such store has is asked for: put, multipart put, get with a range, head, list,
delete. Every request goes through one ``Retrier``; botocore itself tries once. Nothing is cached
but the connection, so a read never answers from an old listing.
"""

import base64
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from capture.errors import StoreAwayError, StoreError
from capture.ranges import RangeFile
from capture.retry import Retrier, TemporaryFault
from capture.s3_faults import ENDPOINT, judged, no_bucket, parts_of
from capture.store_config import StoreConfig

PART_BYTES = 8 * 2**20
"""A value above twice this goes up in parts of this size; S3 takes 5 MiB to 5 GiB, 10,000 parts."""
MOST_PARTS = 10_000
UPLOADS = 3
"""How often an upload is begun anew when the store has lost it."""

Result = TypeVar("Result")


class Connection:
    """A client for one endpoint, shared by all stores of this process that are configured alike."""

    def __init__(self, config: StoreConfig) -> None:
        self.retrier = Retrier(config.retries, config.first_wait_seconds)
        self.client = make_client(config)
        self.buckets: set[str] = set()
        """Those known to exist."""

    def request(self, where: str, action: Callable[[Any], Result]) -> Result:
        """What the action gets from the client; raises ``FileNotFoundError`` or ``StoreError``."""

        def attempt() -> Result:
            try:
                return action(self.client)
            except Exception as error:  # botocore's errors share no base with urllib3's
                reason = judged(error, where)
                if reason is error:
                    raise
                raise reason from error

        try:
            return self.retrier(attempt)
        except TemporaryFault as fault:
            tries = self.retrier.patience() + 1
            problem = f"{fault.problem} (tried {tries} times)"
            remedy = "Try again later" if self.retrier.answered else ENDPOINT
            raise StoreAwayError(where, problem, remedy) from fault


def keep_secrets_out_of_logs() -> None:
    """At its DEBUG level botocore logs headers, and a session token is one of them."""
    logger = logging.getLogger("botocore")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def make_client(config: StoreConfig) -> Any:
    """A botocore client; credentials are looked up by botocore, in the standard places."""
    keep_secrets_out_of_logs()
    session = Session(profile=config.profile or None)
    scoped = session.get_scoped_config()
    settings: dict[str, Any] = {
        "connect_timeout": config.connect_timeout_seconds,
        "read_timeout": config.read_timeout_seconds,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": 16,
    }
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        told = name in scoped or f"AWS_{name.upper()}" in os.environ
        if config.checksums != "auto" or not told:
            settings[name] = "when_required" if config.checksums == "auto" else config.checksums
    if config.addressing != "auto":
        settings["s3"] = {"addressing_style": config.addressing}
    return session.create_client(
        "s3",
        region_name=config.region or os.environ.get("AWS_REGION") or None,
        endpoint_url=config.endpoint_url or None,
        config=BotoConfig(**settings),
    )


def connection_to(config: StoreConfig) -> Connection:
    """The process's connection for this configuration and the AWS environment of now."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    # A hash, so that no credential lies about in a cache; a fork must not share its sockets.
    digest = hashlib.sha256(repr(environment).encode()).hexdigest()
    return connection_of(config, digest, os.getpid())


@functools.lru_cache(maxsize=8)
def connection_of(config: StoreConfig, environment: str, process: int) -> Connection:
    return Connection(config)


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
        return self.connection.retrier.num_retries - self.earlier_retries

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
