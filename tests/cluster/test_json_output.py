"""``--json``: one JSON document on standard output, with the tables that the run then holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import make_run, tiny_config

from analysis.run.run import open_run
from capture.maintenance.selfcheck import Check
from cluster.cli import main
from cluster.terminal.as_json import plain

ANALYSES = {
    "attribute": "",
    "ablate": "--neurons 2 --datums 20",
    "activations": "",
    "behaviour": "--contains cat",
    "bigrams": "--top 3",
    "neurons": "--min-rows 1",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    make_run(tiny_config(folder, "capture.outliers.k=100"))
    assert main(["attribute", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def printed(line: str, capsys, code: int = 0) -> Any:
    """Run a command; its standard output must be one document of strict JSON, in ASCII."""
    assert main(line.split()) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.isascii()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(captured.out, parse_constant=refuse)


@pytest.mark.parametrize("command", ANALYSES)
def test_an_analysis_prints_the_tables_that_it_stores(command: str, run: Path, capsys) -> None:
    found = printed(f"{command} {run} {ANALYSES[command]} --json", capsys)
    stored = [path for path in (run / "analysis" / command).glob("*.parquet")]
    assert stored
    for path in stored:
        table = pd.read_parquet(path)
        assert len(found[path.stem]) == len(table)
        for row in found[path.stem][:1]:
            assert list(row) == list(table.columns)


def test_a_report_says_where_it_is_and_what_it_shows(run: Path, tmp_path: Path, capsys) -> None:
    found = printed(f"report {run} --neurons 2 --to {tmp_path}/pages --json", capsys)
    assert found["index"] == f"{tmp_path}/pages/index.html"
    assert found["num_files"] > 5
    assert found["used"]["attribute"]["place"] == "analysis/attribute"
    assert found["used"]["attribute"]["question"].startswith("attribute level=")
    assert found["missing"]["faithfulness"] == f"ontogeny faithfulness {run}"


def test_selfcheck_is_json(monkeypatch, capsys) -> None:
    checks = [
        Check("vmap", 1e-7, 1e-5, "layers.0.weight", "trust nothing"),
        Check("sort", float("nan"), 0.0, "not possible", "trust nothing"),
    ]
    monkeypatch.setattr("capture.maintenance.selfcheck.self_check", lambda config: iter(checks))
    found = printed("selfcheck demo --json", capsys)
    assert (found["config"], found["agrees"]) == ("demo", True)
    assert found["checks"][0] | {"what": "vmap", "found": 1e-7} == found["checks"][0]
    assert found["checks"][1] | {"made": False, "holds": True, "found": None} == found["checks"][1]
    assert main(["selfcheck", "demo", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    checks[0] = Check("vmap", 1.0, 1e-5, "layers.0.weight", "trust nothing")
    assert not printed("selfcheck demo --json", capsys, code=1)["agrees"]
    assert main(["selfcheck", "demo", "--quiet"]) == 1
    assert "checks failed" in capsys.readouterr().out


def test_numbers_keep_every_digit(run: Path, capsys) -> None:
    found = printed(f"attribute {run} --json", capsys)["tokens"]
    table = pd.read_parquet(run / "analysis/attribute/tokens.parquet")
    shown = np.array([row["relative_frequency"] for row in found], float)
    assert np.array_equal(shown, table["relative_frequency"].to_numpy(float))


def test_info_is_json(run: Path, capsys) -> None:
    found, opened = printed(f"info {run} --json", capsys), open_run(run)
    assert (found["steps_done"], found["num_steps"]) == (28, 28)
    assert found["files"]["outliers"]["rows"] == len(opened.shifts())
    assert found["units"] == list(opened.layout.names)
    assert [row["epoch"] for row in found["losses"]] == [0, 1]


def test_verify_and_gc_are_json(run: Path, capsys) -> None:
    assert printed(f"verify {run} --json", capsys)["findings"] == []
    extra = run / "steps" / "left.parquet"
    extra.write_text("x")
    try:
        (finding,) = printed(f"verify {run} --json", capsys)["findings"]
        assert (finding["key"], finding["state"]) == ("steps/left.parquet", "unlisted")
        (file,) = printed(f"gc {run} --json", capsys)["files"]
        assert (file["key"], file["kept"]) == ("steps/left.parquet", True)
    finally:
        extra.unlink()


def test_an_estimate_is_json(capsys) -> None:
    assert printed("plan --model-params 1e9 --tokens 1e9 --json", capsys)


def test_values_that_json_lacks() -> None:
    frame = pd.DataFrame({"x": [1.5, np.nan, np.inf, -np.inf]})
    assert [row["x"] for row in plain(frame)] == [1.5, None, "inf", "-inf"]
    assert plain({"a": np.float32(0.5), "b": (np.int64(3), [None, True])}) == {
        "a": 0.5,
        "b": [3, [None, True]],
    }


def test_a_capture_says_what_it_made(tmp_path: Path, capsys) -> None:
    config = tiny_config(tmp_path, "training.epochs=1")
    settings = [f"run.uri={tmp_path}/run", f"corpus.path={config.corpus.path}", "corpus.kind=text"]
    settings += ["corpus.window=8", "model.width=12", "model.hidden=10", "model.heads=3"]
    settings += ["training.epochs=1", "training.batch=4", "training.device=cpu"]
    settings += ["capture.outliers.k=30", "capture.segment_steps=8", "corpus.validation_share=0.05"]
    found = printed(f"capture demo {' '.join(settings)} --json", capsys)
    run = open_run(f"{tmp_path}/run")
    assert found["run"] == run.uri
    assert (found["steps"], found["segments"]) == (run.num_steps, len(run.segments))
    assert found["outliers"] == 30 * 4 * run.num_steps
    assert found["audit_error"] == run.steps()["audit_error"].max()
    assert found["unchecked"] == {}
    (last,) = found["evaluations"]
    assert last["loss"] == run.evaluations()["loss"].iloc[-1]

    replayed = printed(f"replay {run.uri} --record factors --workers 1 --json", capsys)
    assert replayed["run"] == run.uri
    assert [each["added"] for each in replayed["segments"]] == [["factors"]] * len(run.segments)


def test_the_demo_says_what_each_command_found(tmp_path: Path, capsys) -> None:
    config = tiny_config(tmp_path)
    settings = [f"run.uri={tmp_path}/run", f"corpus.path={config.corpus.path}", "corpus.kind=text"]
    settings += ["corpus.window=8", "model.width=12", "model.hidden=10", "model.heads=3"]
    settings += ["training.epochs=1", "training.batch=4", "capture.outliers.k=30"]
    settings += ["corpus.validation_share=0.05"]
    found = printed(f"demo {' '.join(settings)} --json", capsys)
    assert list(found) == ["capture", "attribute", "ablate", "report"]
    assert found["capture"]["run"] == f"{tmp_path}/run"
    assert found["attribute"]["tokens"]
    assert found["report"]["index"] == f"{tmp_path}/run/report/index.html"
