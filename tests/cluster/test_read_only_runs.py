"""Runs that may only be read: the missing permission is found first, and tables go elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from tiny_run import copied, tiny_run

from analysis.run.scan import Shard
from capture.store import Store
from cluster.cli import main

READING = {"GetObject", "HeadObject", "ListObjectsV2"}


@pytest.fixture
def read_only(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a run on S3 of which a key may only read and list."""
    copied(tiny_run(), f"{s3}/run")
    call: Callable[..., Any] = BaseClient._make_api_call  # pyright: ignore[reportAttributeAccessIssue]

    def refuse_writing(client: BaseClient, operation: str, arguments: Any) -> Any:
        if operation in READING:
            return call(client, operation, arguments)
        response: Any = {
            "Error": {"Code": "AccessDenied", "Message": "Access Denied"},
            "ResponseMetadata": {"HTTPStatusCode": 403},
        }
        raise ClientError(response, operation)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse_writing)
    return f"{s3}/run"


def test_a_missing_permission_is_found_before_the_scan(read_only, monkeypatch, capsys) -> None:
    def scan(*arguments: object) -> None:
        pytest.fail("the run was scanned")

    monkeypatch.setattr(Shard, "batches", scan)
    assert main(["attribute", read_only]) == 2
    assert capsys.readouterr().err == (
        f"ontogeny: {read_only}/analysis/attribute: forbidden (AccessDenied: Access Denied). "
        "Check the credentials and the bucket's policy: PutObject needs s3:PutObject. "
        "Or keep the tables elsewhere: --to PLACE.\n"
    )


def test_every_command_works_with_tables_elsewhere(read_only, tmp_path: Path, capsys) -> None:
    mine = f"{tmp_path}/mine"
    few = ["--neurons", "2", "--datums", "9"]
    assert main(["attribute", read_only, "--to", mine]) == 0
    assert f"Tables: {mine}/analysis/attribute/" in capsys.readouterr().out
    assert main(["ablate", read_only, "--to", mine, "--quiet", *few]) == 0
    assert main(["bigrams", read_only, "--to", mine, "--quiet", "--datums", "0"]) == 0
    assert main(["report", read_only, "--tables", mine, "--to", f"{tmp_path}/pages"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Tables of attribute: {mine}/analysis/attribute Tables of" in shown
    assert {"ablate", "attribute", "bigrams"} <= {
        key.split("/")[1] for key in Store(mine).keys("analysis")
    }


def test_a_report_elsewhere_writes_nothing_into_the_run(tmp_path: Path) -> None:
    run = f"{tmp_path}/run"
    copied(tiny_run(), run)
    assert main(["attribute", run, "--quiet"]) == 0
    before = Store(run).keys()
    assert main(["report", run, "--to", f"{tmp_path}/pages", "--quiet"]) == 0
    assert Store(run).keys() == before
