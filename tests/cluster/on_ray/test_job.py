"""A submitted job must not write into its working directory, which Ray deletes."""

import json
import re
from pathlib import Path

import pytest
from checkout import ROOT

from capture.errors import ConfigError
from cluster.cli import main
from cluster.on_ray.job import JOB_CONFIG_VARIABLE, require_persistent, working_folder


def test_a_working_directory_that_was_deleted_is_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert working_folder() == str(folder)
    folder.rmdir()
    assert working_folder() == ""


def submitted(monkeypatch: pytest.MonkeyPatch, **environment: object) -> None:
    monkeypatch.setenv(JOB_CONFIG_VARIABLE, json.dumps({"runtime_env": environment}))


@pytest.mark.parametrize("uri", ["runs/demo", "file://runs/demo", "./x"])
def test_a_relative_path_in_the_job_s_own_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    submitted(monkeypatch, working_dir="gcs://x.zip")
    with pytest.raises(ConfigError) as raised:
        require_persistent("run.uri", uri)
    assert str(raised.value) == (
        f"run.uri: '{uri}' is relative to the job's working directory, a copy that Ray deletes. "
        "Give s3://bucket/prefix or an absolute path."
    )


@pytest.mark.parametrize("uri", ["s3://bucket/run", "/shared/run", "file:///shared/run"])
def test_an_absolute_path_or_a_store_is_accepted(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    submitted(monkeypatch, working_dir="gcs://x.zip")
    require_persistent("run.uri", uri)


def test_without_a_working_directory_a_relative_path_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submitted(monkeypatch, env_vars={})
    require_persistent("run.uri", "runs/demo")
    monkeypatch.delenv(JOB_CONFIG_VARIABLE)
    require_persistent("run.uri", "runs/demo")


@pytest.mark.parametrize("words", [["capture", "demo"], ["demo"]])
def test_a_capture_that_would_be_lost_is_refused_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    submitted(monkeypatch, working_dir="gcs://x.zip")
    assert main([*words, "run.uri=runs/demo"]) == 2
    assert "ontogeny: run.uri: 'runs/demo' is relative to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_would_be_lost_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(monkeypatch, working_dir="gcs://x.zip")
    assert main(["report", "s3://bucket/run", "--to", "pages"]) == 2
    assert "ontogeny: --to: 'pages' is relative to" in capsys.readouterr().err


def test_the_page_says_that_nodes_on_one_machine_need_folders_of_their_own() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs the extra ray")
    page = (ROOT / "docs" / "how-to" / "cluster.md").read_text()
    starts = re.findall(r"ray start (--address[^`\n#]*)", page.replace("…", "HEAD:6379"))
    with_folder = [words for words in starts if "--temp-dir=" in words]
    assert with_folder
    for words in starts:
        scripts.start.make_context("start", words.split())
