"""No message repeats a credential."""

import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import CaptureError, StoreError
from capture.redaction import redact
from capture.store import Store
from capture.store.config import StoreConfig
from cluster.cli import main

SECRETS = ["hunter2", "s3cr3tVALUE", "FwoGTOKEN", "AKIAIOSFODNN7EXAMPLE"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://u:hunter2@host:9/x is away", "http://…@host:9/x is away"),
        ("s3:/AKIA:s3cr3t/VALUE@bkt/x", "s3:/…@bkt/x"),
        ("https://hunter2@host", "https://…@host"),
        (
            "Invalid header value b'Fwo\\'TOKEN\\r' (tried 4 times)",
            "Invalid header value … (tried 4 times)",
        ),
        ('Invalid header value "FwoGTOKEN". Look', "Invalid header value …. Look"),
        ("The config profile (s3cr3tVALUE) could", "The config profile (…) could"),
        (
            "GET https://b.s3.aws/x?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F1&X-Amz-Signature=ab12"
            "&partNumber=3",
            "GET https://b.s3.aws/x?X-Amz-Credential=…&X-Amz-Signature=…&partNumber=3",
        ),
        ("https://a.blob/x?sv=1&sig=hunter2", "https://a.blob/x?sv=1&sig=…"),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "key AKIA… is unknown"),
    ],
)
def test_what_looks_like_a_credential_is_left_out(text, wanted):
    assert redact(text) == wanted
    assert str(CaptureError("here", text)) == f"here: {wanted}."


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run@2/x: is missing",
        "runs/me@home: holds no run",
        "model.layers: got 2.5, must be a whole number",
        "http://127.0.0.1:9000/x?versionId=3 is away",
        "mail me@example.org",
        "s3://bucket/a:b and http://host:80/x",
    ],
)
def test_ordinary_messages_stay_as_they_are(text):
    assert redact(text) == text


@given(text=st.text())
def test_redacting_twice_changes_nothing(text):
    assert redact(redact(text)) == redact(text)


def test_credentials_of_the_environment_are_left_out(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a+b/c=longsecret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "tokentoken\r")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pa55word@proxy:3128")
    said = redact("a+b/c=longsecret b'tokentoken\\r' tokentoken pa55word at proxy:3128")
    assert said == "… b'…' … … at proxy:3128"


def test_an_error_keeps_its_redacted_text_between_processes():
    error = StoreError("http://u:hunter2@h", "x", "y")
    again = pickle.loads(pickle.dumps(error))
    assert again.where == error.where == "http://…@h"


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({"AWS_ENDPOINT_URL": "http://u:hunter2@127.0.0.1:9"}, {}),
        ({"AWS_SESSION_TOKEN": "FwoGTOKEN\r", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, {}),
        ({"AWS_ACCESS_KEY_ID": "hunter2x\r", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, {}),
        ({"AWS_PROFILE": "s3cr3tVALUE"}, {}),
        ({}, {"profile": "s3cr3tVALUE"}),
    ],
)
def test_a_store_that_fails_does_not_repeat_credentials(monkeypatch, environment, settings, capsys):
    given = {"AWS_ACCESS_KEY_ID": "AKIAX", "AWS_SECRET_ACCESS_KEY": "abc"} | environment
    for name, value in ({"AWS_DEFAULT_REGION": "us-east-1"} | given).items():
        monkeypatch.setenv(name, value)
    config = StoreConfig(retries=0, connect_timeout_seconds=1, **settings)
    with pytest.raises(StoreError) as caught:
        Store("s3://bkt/x", config).exists("a")
    whole = "".join(traceback.format_exception(caught.value))
    assert not any(secret in whole for secret in SECRETS)
    if environment:
        assert main(["info", "s3://bkt/x"]) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        carriage = any("\r" in value for value in environment.values())
        assert ("has a character that no HTTP header" in said.err) == carriage
        assert not any(secret in said.out + said.err for secret in SECRETS)


def test_usage_errors_do_not_repeat_credentials(capsys):
    assert main(["info", "runs/x", "--at", "s3://AKIAX:hunter2@bkt/x"]) == 2
    said = capsys.readouterr().err
    assert "s3://…@bkt/x" in said
    assert "hunter2" not in said
