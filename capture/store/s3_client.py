"""The way to an S3 store: a client that tries once, and the one place where it is asked again."""

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from botocore.config import Config as BotoConfig
from botocore.session import Session

from capture.errors import StoreAwayError
from capture.store.config import StoreConfig
from capture.store.retry import Retrier, TemporaryFault
from capture.store.s3_errors import ENDPOINT, judged

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
