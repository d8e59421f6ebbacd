"""Connections to S3 stores: a botocore client that tries once, and the retries around it."""

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from botocore.config import Config as BotoConfig
from botocore.session import Session

from capture.errors import StoreAwayError
from capture.redaction import shown_cause
from capture.store.config import StoreConfig
from capture.store.retry import Retrier, TransientError
from capture.store.s3_errors import ENDPOINT_REMEDY, translate_error

Result = TypeVar("Result")


class Connection:
    """A client for one endpoint, shared by all stores of this process with the same settings."""

    def __init__(self, config: StoreConfig) -> None:
        self.retrier = Retrier(config.retries, config.first_wait_seconds)
        self.client = make_client(config)
        self.known_buckets: set[str] = set()
        """Buckets that are known to exist."""
        self.etags_are_md5 = True
        """Whether ETags of uploads are compared with MD5; False once one has proved otherwise."""

    def request(self, where: str, action: Callable[[Any], Result]) -> Result:
        """Return ``action(client)``, with retries.

        Raises ``FileNotFoundError`` for a missing key, otherwise ``StoreError`` about ``where``.
        """

        def attempt() -> Result:
            try:
                return action(self.client)
            except Exception as error:  # botocore's errors and urllib3's have no common base class
                reason = translate_error(error, where)
                if reason is error:
                    raise
                raise reason from shown_cause(error)

        try:
            return self.retrier(attempt)
        except TransientError as error:
            tries = self.retrier.max_retries() + 1
            problem = f"{error.problem} (tried {tries} times)"
            remedy = "Try again later" if self.retrier.answered else ENDPOINT_REMEDY
            raise StoreAwayError(where, problem, remedy) from shown_cause(error)


def keep_secrets_out_of_logs() -> None:
    """Keep botocore's logger at INFO: at DEBUG it logs headers, which can hold a session token."""
    logger = logging.getLogger("botocore")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def make_client(config: StoreConfig) -> Any:
    """Return a botocore client; botocore looks up the credentials in the standard places."""
    keep_secrets_out_of_logs()
    session = Session(profile=config.profile or None)
    scoped = session.get_scoped_config()
    settings: dict[str, Any] = {
        "connect_timeout": config.connect_timeout_seconds,
        "read_timeout": config.read_timeout_seconds,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": 32,
    }
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        is_set = name in scoped or f"AWS_{name.upper()}" in os.environ
        if config.checksums != "auto" or not is_set:
            settings[name] = "when_required" if config.checksums == "auto" else config.checksums
    if config.addressing != "auto":
        settings["s3"] = {"addressing_style": config.addressing}
    return session.create_client(
        "s3",
        region_name=config.region or os.environ.get("AWS_REGION") or None,
        endpoint_url=config.endpoint_url or None,
        config=BotoConfig(**settings),
    )


def connect(config: StoreConfig) -> Connection:
    """Return the process's connection for these settings and the current AWS environment."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    # The cache key is a hash, so that no credential stays in the cache. It includes the process id,
    # because a forked child must not share its parent's sockets.
    digest = hashlib.sha256(repr(environment).encode()).hexdigest()
    return cached_connection(config, digest, os.getpid())


@functools.lru_cache(maxsize=8)
def cached_connection(config: StoreConfig, environment: str, process: int) -> Connection:
    return Connection(config)
