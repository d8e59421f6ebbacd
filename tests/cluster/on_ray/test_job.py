"""Inside a submitted job: what is written must outlive the folder that Ray has unpacked for it."""

import json
from pathlib import Path

import pytest

from capture.errors import ConfigError
from cluster.cli import main
from cluster.on_ray.job import JOB_CONFIG_VARIABLE, require_persistent


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
def test_a_place_of_its_own_is_not(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    submitted(monkeypatch, working_dir="gcs://x.zip")
    require_persistent("run.uri", uri)


def test_a_job_without_a_folder_and_no_job_at_all_write_where_they_are(
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


def test_so_is_a_report_that_would_be_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(monkeypatch, working_dir="gcs://x.zip")
    assert main(["report", "s3://bucket/run", "--to", "pages"]) == 2
    assert "ontogeny: --to: 'pages' is relative to" in capsys.readouterr().err
