"""Settings of a store: its address, what it supports, how long to wait for it.

There is no setting for credentials. They come from the standard AWS environment variables and
files, so neither a configuration nor the run that records it ever contains one.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from capture.errors import ConfigError, at_least

PART_BYTES = 8 * 2**20
"""Part size of a multipart upload, used above twice this size. S3 allows 5 MiB to 5 GiB."""


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How to reach an object store. An empty value means the AWS environment and files decide."""

    endpoint_url: str = ""
    """http(s)://host[:port] of the store. If empty: AWS_ENDPOINT_URL, then Amazon S3."""
    region: str = ""
    """If empty: AWS_REGION, AWS_DEFAULT_REGION, then the region of the profile."""
    profile: str = ""
    """A section of ~/.aws/config and ~/.aws/credentials. If empty: AWS_PROFILE."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Bucket in the path or in the host name; auto: in the path if an endpoint is given."""
    checksums: Literal["auto", "when_required", "when_supported"] = "auto"
    """Whether to send the newer S3 checksums, which some stores reject. auto: what the environment
    says, otherwise when_required. Uploads always carry an MD5, which every store supports."""
    retries: int = 10
    """Maximum number of retries per request. With the waits, ten retries cover a minute."""
    first_wait_seconds: float = 0.2
    """Wait before the first retry. Each further wait is twice as long, at most 20 s."""
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0
    """A request fails if the store sends nothing for this long."""
    max_pending_bytes: int = 2**30
    """Maximum size of the segments that capture holds in memory while it waits for the store."""
    patience_seconds: float = 600.0
    """How long capture keeps trying to store a segment after all retries have failed."""

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint_url)
        at_least("store.retries", self.retries, 0)
        for name in ("first_wait_seconds", "connect_timeout_seconds", "read_timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"store.{name}", f"got {getattr(self, name)}, must be above 0")
        at_least("store.patience_seconds", self.patience_seconds, 0)
        at_least("store.max_pending_bytes", self.max_pending_bytes, 1)


def check_endpoint(url: str) -> None:
    """Raise ``ConfigError`` for an invalid endpoint, without quoting a possible password."""
    parts = urlsplit(url)
    if "@" in url or parts.query:
        problem = "contains more than a host and a port"
        remedy = "Pass credentials in the AWS environment variables or files"
        raise ConfigError("store.endpoint_url", problem, remedy)
    if url and (parts.scheme not in ("http", "https") or not parts.netloc):
        raise ConfigError("store.endpoint_url", f"got {url!r}, must be http(s)://host[:port]")
