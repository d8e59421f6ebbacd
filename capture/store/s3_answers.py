"""Check that an answer of status 200 comes from an S3 store.

A captive portal, a wrong proxy or a broken gateway answers any request with status 200 and a page
of its own. To botocore such an answer looks like one without any field, so a lost upload would look
stored, and a prefix empty.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from capture.store.retry import TransientError

ANSWER_FIELDS = {
    "put_object": ("ETag",),
    "upload_part": ("ETag",),
    "head_object": ("ETag",),
    "get_object": ("ETag",),
    "create_multipart_upload": ("UploadId",),
    "complete_multipart_upload": ("ETag", "Location", "Key"),
    "list_objects_v2": ("IsTruncated", "KeyCount", "Name"),
}
"""Operation → fields of which every store's answer has at least one."""
MD5 = re.compile("[0-9a-f]{32}")


def require_answer(operation: str, answer: Mapping[str, Any]) -> None:
    """Raise ``TransientError`` unless a store has answered."""
    fields = ANSWER_FIELDS.get(operation, ())
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    is_page = operation == "delete_object" and "html" in headers.get("content-type", "")
    if is_page or (fields and not any(name in answer for name in fields)):
        missing = f"no {fields[0]}" if fields else "a web page"
        problem = f"the answer to {operation} is not that of an S3 store ({missing})"
        raise TransientError(problem, answered=False)


def etag_differs(answer: Mapping[str, Any], body: bytes) -> bool:
    """Whether an upload's ETag looks like an MD5, but not like that of the bytes that were sent.

    Stores that encrypt with keys of a key service give other ETags.
    """
    etag = answer.get("ETag", "").strip('"')
    encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:")
    if encrypted or "SSECustomerAlgorithm" in answer or not MD5.fullmatch(etag):
        return False
    return etag != hashlib.md5(body, usedforsecurity=False).hexdigest()
