"""Settings of a store that are no secrets: where it is, what it can do, how long to bear with it.

Credentials are not among them. They come from the standard AWS environment variables and files, so
that no configuration, and no run that records its configuration, ever holds one.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from capture.errors import ConfigError, at_least

PART_BYTES = 8 * 2**20
"""A value above twice this goes up in parts of this size; S3 takes 5 MiB to 5 GiB, 10,000 parts."""


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How to reach an object store. What is empty comes from the AWS environment and files."""

    endpoint_url: str = ""
    """http(s)://host[:port] of the store; else AWS_ENDPOINT_URL, else Amazon's own."""
    region: str = ""
    """Else AWS_REGION or AWS_DEFAULT_REGION or the profile's."""
    profile: str = ""
    """A section of ~/.aws/config and ~/.aws/credentials; else AWS_PROFILE."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Bucket in the path or in the host name; auto: in the path where an endpoint is given."""
    checksums: Literal["auto", "when_required", "when_supported"] = "auto"
    """The newer checksums, which some stores refuse; auto: as the environment says, else only
    when required. Uploads carry an MD5 in any case, which every store understands."""
    retries: int = 10
    """How often a request is made again; with the waits between, a minute without the store."""
    first_wait_seconds: float = 0.2
    """Before the first retry; each further wait is twice as long, 20 s at most."""
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0
    """Longest silence of the store before a request counts as failed."""
    max_pending_bytes: int = 2**30
    """Bound on what capture keeps in memory while the store is slower than training."""
    patience_seconds: float = 600.0
    """How long capture goes on trying to store a segment when all retries were in vain."""

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint_url)
        at_least("store.retries", self.retries, 0)
        for name in ("first_wait_seconds", "connect_timeout_seconds", "read_timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"store.{name}", f"got {getattr(self, name)}, must be above 0")
        at_least("store.patience_seconds", self.patience_seconds, 0)
        at_least("store.max_pending_bytes", self.max_pending_bytes, 1)


def check_endpoint(url: str) -> None:
    """Raises ``ConfigError``, which repeats nothing of a URL that may hold a password."""
    parts = urlsplit(url)
    if "@" in url or parts.query:
        problem = "holds more than a host and a port"
        remedy = "Credentials come from the AWS environment variables and files"
        raise ConfigError("store.endpoint_url", problem, remedy)
    if url and (parts.scheme not in ("http", "https") or not parts.netloc):
        raise ConfigError("store.endpoint_url", f"got {url!r}, must be http(s)://host[:port]")
