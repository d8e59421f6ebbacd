"""A gateway that answers with status 200 and a page of its own is not believed."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from fault_proxy import FaultInjector, proxied

from capture.errors import StoreAwayError
from capture.store import Store
from capture.store.config import PART_BYTES, StoreConfig
from capture.store.retry import TransientError
from capture.store.s3_answers import etag_differs, require_answer

pytestmark = pytest.mark.s3
BODY = b"some bytes"
QUICK = StoreConfig(first_wait_seconds=0.001)


ACTS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("a", BODY),
    "put in parts": lambda store: store.put("a", bytes(2 * PART_BYTES + 1)),
    "put_if_absent": lambda store: store.put_if_absent("b", BODY),
    "get": lambda store: store.get("here"),
    "open": lambda store: store.open("here").read(),
    "exists": lambda store: store.exists("here"),
    "modified": lambda store: store.modified("here"),
    "keys": lambda store: store.keys(),
    "delete": lambda store: store.delete("here"),
}


@pytest.mark.parametrize("act", ACTS)
def test_an_answer_of_a_portal_is_a_failure_that_may_pass(s3, s3_server, monkeypatch, act):
    Store(s3).put("here", BODY)
    injector = FaultInjector(s3_server.port, rate=1, kinds=("web page",))
    with proxied(injector) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = Store(s3, StoreConfig(retries=1, first_wait_seconds=0.001))
        with pytest.raises(StoreAwayError, match=r"is not that of an S3 store|broke off"):
            ACTS[act](store)
    monkeypatch.undo()


def test_a_portal_now_and_then_loses_nothing(s3, s3_server, monkeypatch):
    injector = FaultInjector(s3_server.port, rate=0.3, seed=3, kinds=("web page",))
    with proxied(injector) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = Store(s3, QUICK)
        values = {f"k{n}": bytes([n]) * n for n in range(1, 20)}
        for key, data in values.items():
            store.put(key, data)
        assert {key: store.get(key) for key in store.keys()} == values
        store.delete("k1")
        assert not store.exists("k1")
    assert injector.faults["web page"] > 5


def test_an_upload_that_was_confirmed_with_another_etag_is_read_back(s3, monkeypatch):
    """A store whose ETags are no MD5 is believed when it gives the same bytes back."""
    store = Store(s3, QUICK)
    connection = store.backend.connection  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(connection, "etags_are_md5", True)
    sent = []

    def put_object(**given: Any) -> dict[str, Any]:
        sent.append(given)
        if len(sent) > 1:
            before(**given)  # the first answer is a lie
        return {"ETag": f'"{"0" * 32}"'}

    before = connection.client.put_object
    monkeypatch.setattr(connection.client, "put_object", put_object)
    store.put("a", BODY)
    assert len(sent) == 2
    assert store.get("a") == BODY
    assert connection.etags_are_md5 is False


def test_etags_are_compared_where_they_are_an_md5():
    right = hashlib.md5(BODY).hexdigest()
    assert not etag_differs({"ETag": f'"{right}"'}, BODY)
    assert etag_differs({"ETag": f'"{right}"'}, b"other")
    for answer in (
        {"ETag": f'"{right}-3"'},
        {"ETag": "opaque"},
        {"ETag": "0" * 32, "ServerSideEncryption": "aws:kms"},
        {"ETag": "0" * 32, "SSECustomerAlgorithm": "AES256"},
    ):
        assert not etag_differs(answer, BODY)


def test_an_answer_to_an_operation_that_needs_no_field_is_believed():
    require_answer("abort_multipart_upload", {})
    require_answer("delete_object", {"ResponseMetadata": {"HTTPHeaders": {}}})
    with pytest.raises(TransientError, match="no ETag"):
        require_answer("put_object", {})
