"""How errors from S3 stores and from the connection are classified."""

import pickle
from typing import Any

import pytest
from botocore import exceptions as boto
from botocore.exceptions import ClientError

from capture.errors import StoreAwayError, StoreError
from capture.store.config import StoreConfig
from capture.store.retry import TransientError
from capture.store.s3 import S3Backend
from capture.store.s3_errors import translate_error

WHERE = "s3://bucket/run/key"


def answer(
    code: str, status: int, message: str = "details", operation: str = "GetObject"
) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, operation)


@pytest.mark.parametrize(
    "error",
    [
        answer("SlowDown", 503),
        answer("ServiceUnavailable", 503),
        answer("InternalError", 500),
        answer("InternalError", 200),  # an error in the body of a success response
        answer("Throttling", 400),
        answer("RequestTimeout", 400),
        answer("BadDigest", 400),
        answer("ConditionalRequestConflict", 409),
        answer("502", 502, "Bad Gateway"),
        answer("", 504),
        answer("TooManyRequests", 429),
        boto.EndpointConnectionError(endpoint_url="http://x"),
        boto.ConnectTimeoutError(endpoint_url="http://x"),
        boto.ReadTimeoutError(endpoint_url="http://x"),
        boto.ConnectionClosedError(endpoint_url="http://x"),
        boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        boto.ResponseStreamingError(error="cut"),
        ConnectionResetError("reset"),
        TimeoutError("late"),
    ],
)
def test_a_transient_failure_is_a_transient_error(error: Exception) -> None:
    assert isinstance(translate_error(error, WHERE), TransientError)


@pytest.mark.parametrize("error", [answer("NoSuchKey", 404), answer("404", 404, "Not Found")])
def test_a_missing_key_is_a_missing_file(error: Exception) -> None:
    assert isinstance(translate_error(error, WHERE), FileNotFoundError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (answer("NoSuchBucket", 404), "there is no such bucket. Make it, or correct the URI."),
        (answer("AccessDenied", 403), "forbidden (AccessDenied: details). Check the credentials"),
        (answer("403", 403, "Forbidden"), "forbidden (HTTP 403). Check the credentials"),
        (answer("InvalidAccessKeyId", 403), "the store does not accept these credentials (Inv"),
        (answer("SignatureDoesNotMatch", 403), "the store does not accept these credentials (S"),
        (answer("ExpiredToken", 400), "the credentials have expired (ExpiredToken). Renew them."),
        (answer("PermanentRedirect", 301), "the bucket is in another region (PermanentRedirect"),
        (answer("NotImplemented", 501), "the store refuses (NotImplemented: details). Check"),
        (answer("EntityTooLarge", 400), "the store refuses (EntityTooLarge: details). Check"),
        (boto.NoCredentialsError(), "no usable AWS credentials (NoCredentials). Set AWS_ACCESS"),
        (
            boto.CredentialRetrievalError(provider="process", error_msg="contains hunter2"),
            "no usable AWS credentials (CredentialRetrieval). Set AWS_ACCESS_KEY_ID and",
        ),
        (boto.ProfileNotFound(profile="lab"), "the profile of store.profile or AWS_PROFILE is not"),
        (ValueError("Invalid endpoint: x"), "cannot be used: Invalid endpoint: x. Check the URI"),
    ],
)
def test_a_permanent_failure_is_one_line(error: Exception, text: str) -> None:
    found = translate_error(error, WHERE)
    assert isinstance(found, StoreError)
    assert not isinstance(found, StoreAwayError)
    assert str(found).startswith(f"{WHERE}: {text}")
    assert "\n" not in str(found)
    assert "hunter2" not in str(found)
    assert found.exit_code == 2


@pytest.mark.parametrize(
    ("operation", "needed"),
    [
        ("PutObject", "PutObject needs s3:PutObject"),
        ("UploadPart", "UploadPart needs s3:PutObject"),
        ("DeleteObject", "DeleteObject needs s3:DeleteObject"),
        ("ListObjectsV2", "ListObjectsV2 needs s3:ListBucket"),
        ("HeadObject", "needs s3:GetObject, and s3:ListBucket for a key that may not exist"),
        ("Other", "Other was refused"),
    ],
)
def test_a_refusal_names_the_permission_that_is_missing(operation: str, needed: str) -> None:
    found = translate_error(answer("AccessDenied", 403, operation=operation), WHERE)
    assert isinstance(found, StoreError)
    assert needed in found.remedy


def test_unknown_errors_are_unchanged() -> None:
    error = KeyError("x")
    assert translate_error(error, WHERE) is error


def test_errors_can_be_pickled() -> None:
    error = StoreAwayError(WHERE, "cannot be reached", "Try again later")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.remedy) == (StoreAwayError, str(error), error.remedy)


class Conditional(S3Backend):
    """A backend whose server answers a conditional put with a given status, and stores values."""

    values: dict[str, bytes]

    def exists(self, key: str) -> bool:
        return False

    def get(self, key: str) -> bytes:
        return self.values[key]

    def call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        status = self.values.get("status", b"200")
        if arguments.get("IfNoneMatch") and status != b"200":
            error = answer(
                {b"412": "PreconditionFailed", b"501": "NotImplemented"}[status], int(status)
            )
            raise translate_error(error, WHERE) from error
        self.values[key] = arguments["Body"]
        return {}


@pytest.mark.parametrize(
    ("status", "there", "written", "after"),
    [
        (b"200", b"", True, b"mine"),
        (b"412", b"yours", False, b"yours"),
        (b"412", b"mine", True, b"mine"),  # our own request succeeded, but its answer was lost
        (b"501", b"", True, b"mine"),
    ],
)
def test_put_if_absent_handles_every_kind_of_store(status, there, written, after) -> None:
    backend = Conditional("s3://b/r", "b", "r", StoreConfig())
    object.__setattr__(backend, "values", {"status": status, "lease": there})
    assert backend.put_if_absent("lease", b"mine") == written
    assert backend.values["lease"] == after
