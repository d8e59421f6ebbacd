"""Classify a failed S3 request: a missing key, a failure that may pass, or an error to report.

Stores differ in their error codes, so the rules are few: a known error code decides, otherwise the
HTTP status does. No message quotes a credential or a header.
"""

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from capture.errors import StoreError
from capture.store.retry import TransientError

TRANSIENT_CODES = {
    *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"),
    *("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"),
    *("BadDigest", "IncompleteBody", "ConditionalRequestConflict"),
}
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
MISSING_KEY_CODES = {"NoSuchKey", "NoSuchUpload", "404"}
WRONG_REGION_CODES = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "301",
    "307",
    "TemporaryRedirect",
}
BAD_CREDENTIALS_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch"}
READING = "s3:GetObject, and s3:ListBucket for a key that may not exist"
PERMISSIONS = {
    **dict.fromkeys(("GetObject", "HeadObject"), READING),
    **dict.fromkeys(("ListObjects", "ListObjectsV2"), "s3:ListBucket"),
    **dict.fromkeys(("PutObject", "CreateMultipartUpload"), "s3:PutObject"),
    **dict.fromkeys(("UploadPart", "CompleteMultipartUpload"), "s3:PutObject"),
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
}
"""Operation → the permission that a policy must grant for it."""
EXPIRED_CODES = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}

CREDENTIALS_REMEDY = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or fill ~/.aws/credentials"
)
ENDPOINT_REMEDY = "Check store.endpoint_url or AWS_ENDPOINT_URL, and the network"
SETTINGS_REMEDY = "Check the URI, store.… and the AWS environment variables and files"

CREDENTIALS_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
UNREACHABLE_ERRORS = (
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.SSLError,
)
BROKEN_CONNECTION_ERRORS = (
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


def translate_error(error: Exception, where: str) -> Exception:
    """Return the exception to raise in place of botocore's; an unknown one is returned as it is."""
    if isinstance(error, boto.ClientError):
        return translate_response(error, where)
    if isinstance(error, CREDENTIALS_ERRORS):
        kind = type(error).__name__.removesuffix("Error")
        return StoreError(where, f"no usable AWS credentials ({kind})", CREDENTIALS_REMEDY)
    if isinstance(error, boto.ProfileNotFound):
        problem = "the profile of store.profile or AWS_PROFILE is not in ~/.aws/config"
        return StoreError(where, problem, "Name a section of that file, or set neither")
    if "Invalid header value" in str(error):
        problem = "a credential has a character that no HTTP header may have, as a carriage return"
        return StoreError(where, problem, "Look at the AWS variables and files, and at line ends")
    if isinstance(error, UNREACHABLE_ERRORS):
        return TransientError(f"cannot be reached: {one_line(error)}", answered=False)
    if isinstance(error, BROKEN_CONNECTION_ERRORS):
        return TransientError(f"broke off: {one_line(error)}", answered=False)
    if isinstance(error, (boto.BotoCoreError, ValueError)):
        return StoreError(where, f"cannot be used: {one_line(error)}", SETTINGS_REMEDY)
    return error


def translate_response(error: boto.ClientError, where: str) -> Exception:
    """Like ``translate_error``, for an error that the store itself returned."""
    code, status, text = response_details(error)
    answer = f"{code}: {text}" if text else f"HTTP {status}"
    if code in MISSING_KEY_CODES:
        return FileNotFoundError(where)
    if code in TRANSIENT_CODES or (status in TRANSIENT_STATUSES and code != "NotImplemented"):
        return TransientError(f"the store fails ({answer})", answered=True)
    if code == "NoSuchBucket":
        return missing_bucket(where)
    if code in WRONG_REGION_CODES:
        remedy = "Set store.region or AWS_REGION to the bucket's"
        return StoreError(where, f"the bucket is in another region ({answer})", remedy)
    if code in BAD_CREDENTIALS_CODES:
        return StoreError(
            where, f"the store does not accept these credentials ({code})", CREDENTIALS_REMEDY
        )
    if code in EXPIRED_CODES:
        return StoreError(where, f"the credentials have expired ({code})", "Renew them")
    if status == 403:
        remedy = f"Check the credentials and the bucket's policy: {permission(error)}"
        return StoreError(where, f"forbidden ({answer})", remedy)
    return StoreError(where, f"the store refuses ({answer})", ENDPOINT_REMEDY)


def permission(error: boto.ClientError) -> str:
    """Say which permission the refused operation needs."""
    operation = error.operation_name
    if operation in PERMISSIONS:
        return f"{operation} needs {PERMISSIONS[operation]}"
    return f"{operation} was refused"


def missing_bucket(where: str) -> StoreError:
    return StoreError(where, "there is no such bucket", "Make it, or correct the URI")


def response_details(error: boto.ClientError) -> tuple[str, int, str]:
    """Return error code, HTTP status and message; each is empty or 0 if the store gave none."""
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
