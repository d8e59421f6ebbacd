"""The recommended access policies grant what our code uses, on the prefix, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = {
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "head_bucket": "s3:ListBucket",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
}
"""Operation → the permission it needs, from Amazon's service authorization reference."""
READING = {"s3:GetObject", "s3:ListBucket"}


def statements(role: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / f"docs/how-to/iam/{role}.json").read_text())["Statement"]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def granted(role: str) -> set[str]:
    return {action for statement in statements(role) for action in listed(statement["Action"])}


def operations() -> set[str]:
    """The S3 operations that our code uses."""
    text = (ROOT / "capture/store/s3.py").read_text()
    asked = set(re.findall(r'call\(\s*"(\w+)"', text))
    return asked | set(re.findall(r"\b(?:client|c)\.(\w+_\w+)\(", text))


def complaints(found: list[dict[str, Any]]) -> list[str]:
    wrong = []
    for statement in found:
        name = statement["Sid"]
        wrong += [f"{name}: {a}" for a in listed(statement["Action"]) if "*" in a or "?" in a]
        wrong += [f"{name}: {part}" for part in ("NotAction", "NotResource") if part in statement]
        for resource in listed(statement["Resource"]):
            if resource not in ("arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/PREFIX/*"):
                wrong.append(f"{name}: {resource}")
            elif resource.endswith("BUCKET") and listed(statement["Action"]) != ["s3:ListBucket"]:
                wrong.append(f"{name}: the whole bucket")
        if statement["Condition"].get("Bool") != {"aws:SecureTransport": "true"}:
            wrong.append(f"{name}: in clear text")
    return wrong


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_a_policy_covers_only_the_prefix_without_wildcards(role):
    assert complaints(statements(role)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"Action": "s3:*"},
        {"Action": ["s3:GetObject", "s3:Get*"]},
        {"Resource": "*"},
        {"Resource": "arn:aws:s3:::*"},
        {"Resource": "arn:aws:s3:::BUCKET/*"},
        {"Resource": "arn:aws:s3:::BUCKET"},
        {"Condition": {}},
        {"NotAction": "s3:DeleteObject"},
    ],
)
def test_a_wider_policy_is_caught(change):
    assert len(complaints([statements("reader")[0] | change])) == 1


def test_the_writer_may_do_what_our_code_does_and_no_more():
    assert operations() <= NEEDED.keys()
    assert {NEEDED[operation] for operation in operations()} == granted("writer")


def test_the_reader_may_read_and_list():
    assert granted("reader") == READING


def test_files_named_in_security_md_exist():
    text = (ROOT / "SECURITY.md").read_text()
    for name in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / name).is_file()
    for path in re.findall(r"\]\((docs/[^)]+)\)", text):
        assert (ROOT / path).is_file()
