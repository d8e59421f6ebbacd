"""What a failed request to S3 means: no such key, a fault that may pass, or an error to report.

Stores differ in what they say, so the rules are few: the HTTP status decides unless the error code
is a known one. Nothing that is reported quotes a credential or a header.
"""

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from capture.errors import StoreError
from capture.store.retry import TemporaryFault

MAY_PASS = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
    *("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"),
    *("BadDigest", "IncompleteBody", "ConditionalRequestConflict"),
}
STATUS_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
NO_KEY = {"NoSuchKey", "NoSuchUpload", "404"}
ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307", "TemporaryRedirect"}
UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}

CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or fill ~/.aws/credentials"
)
ENDPOINT = "Check store.endpoint_url or AWS_ENDPOINT_URL, and the network"
SETTINGS = "Check the URI, store.… and the AWS environment variables and files"

NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
NO_WAY = (
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.SSLError,
)
BROKEN_WAY = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.ReadTimeoutError,
    boto.IncompleteReadError,
    boto.ChecksumError,
    boto.FlexibleChecksumError,
    ResponseParserError,
    ConnectionError,
    TimeoutError,
)


def judged(error: Exception, where: str) -> Exception:
    """What to raise in the place of what botocore raised; unknown kinds stay as they are."""
    if isinstance(error, boto.ClientError):
        return judged_answer(error, where)
    if isinstance(error, NO_CREDENTIALS):
        kind = type(error).__name__.removesuffix("Error")
        return StoreError(where, f"no usable AWS credentials ({kind})", CREDENTIALS)
    if isinstance(error, NO_WAY):
        return TemporaryFault(f"cannot be reached: {one_line(error)}", answered=False)
    if isinstance(error, BROKEN_WAY):
        return TemporaryFault(f"broke off: {one_line(error)}", answered=False)
    if isinstance(error, (boto.BotoCoreError, ValueError)):
        return StoreError(where, f"cannot be used: {one_line(error)}", SETTINGS)
    return error


def judged_answer(error: boto.ClientError, where: str) -> Exception:
    """The same for what the store itself answered."""
    code, status, text = parts_of(error)
    said = f"{code}: {text}" if text else f"HTTP {status}"
    if code in NO_KEY:
        return FileNotFoundError(where)
    if code in MAY_PASS or (status in STATUS_MAY_PASS and code != "NotImplemented"):
        return TemporaryFault(f"the store fails ({said})", answered=True)
    if code == "NoSuchBucket":
        return no_bucket(where)
    if code in ELSEWHERE:
        remedy = "Set store.region or AWS_REGION to the bucket's"
        return StoreError(where, f"the bucket is in another region ({said})", remedy)
    if code in UNKNOWN_KEY:
        return StoreError(
            where, f"the store does not accept these credentials ({code})", CREDENTIALS
        )
    if code in EXPIRED:
        return StoreError(where, f"the credentials have expired ({code})", "Renew them")
    if status == 403:
        remedy = "Check the credentials and the bucket's policy; readers need s3:ListBucket too"
        return StoreError(where, f"forbidden ({said})", remedy)
    return StoreError(where, f"the store refuses ({said})", ENDPOINT)


def no_bucket(where: str) -> StoreError:
    return StoreError(where, "there is no such bucket", "Make it, or correct the URI")


def parts_of(error: boto.ClientError) -> tuple[str, int, str]:
    """Error code, HTTP status and message, as far as the store gave them."""
    found = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    text = str(found.get("Message", ""))
    return (
        str(found.get("Code", "")),
        status,
        "" if found.get("Code") == str(status) else text[:200],
    )


def one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
