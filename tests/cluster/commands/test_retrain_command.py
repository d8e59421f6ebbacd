"""``ontogeny retrain``: what it prints, what it keeps, and wrong requests."""

import json
from pathlib import Path

import pytest
from tiny import make_run, tiny_config

from capture.format import checkpoint
from capture.replay.segments import read_replayable_run
from capture.retraining.retrain import retrain
from capture.retraining.weighting import Weighting
from capture.store import Store
from cluster.cli import main


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = tiny_config(tmp_path_factory.mktemp("retrain"), "training.epochs=1")
    make_run(config)
    return config.run.uri


def kept(uri: str) -> list[Path]:
    return sorted(Path(uri).glob("analysis/retrain/*/model.safetensors"))


def rows(capsys: pytest.CaptureFixture, *arguments: str) -> list[dict]:
    assert main(["retrain", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["retrained"]


def test_a_run_is_trained_again_once(capsys: pytest.CaptureFixture, uri: str) -> None:
    assert main(["retrain", uri, "--without", "3,5-6"]) == 0
    said = capsys.readouterr().out
    assert "--without 3,5-6" in said
    assert "analysis/retrain/" in said
    (model,) = kept(uri)
    made = model.stat().st_mtime_ns
    (row,) = rows(capsys, uri, "--without", "5,6,3")
    assert row["datums"] == 3
    assert row["change"] == pytest.approx(row["retrained"] - row["trained"])
    assert kept(uri) == [model]
    assert model.stat().st_mtime_ns == made


def test_the_kept_model_is_that_of_retraining(capsys: pytest.CaptureFixture, uri: str) -> None:
    (row,) = rows(capsys, uri, "--twice", "4", "--steps", "2:10")
    run = read_replayable_run(Store(uri))
    weighting = Weighting(Weighting.of(len(run.plan.corpus.train), {4: 2.0}).weight_D, range(2, 10))
    wanted = retrain(run, weighting)
    data = Path(uri, "analysis", "retrain", row["retraining"], "model.safetensors").read_bytes()
    assert checkpoint.decode(data, "here").keys() == wanted.keys()
    found = checkpoint.decode(data, "here")
    assert all(bool((found[name] == wanted[name]).all()) for name in wanted)


def test_a_file_holds_several_retrainings(
    capsys: pytest.CaptureFixture, uri: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.csv"
    path.write_text("retraining,datum,weight\na,1,0\na,2,0.5\nb,1,0\n")
    found = rows(capsys, uri, "datum:validation:0", "loss", "--weights", str(path))
    assert [row["asked"] for row in found] == [f"{path} a"] * 2 + [f"{path} b"] * 2
    assert [row["datums"] for row in found] == [2, 2, 1, 1]
    (alone, _) = rows(capsys, uri, "datum:validation:0", "loss", "--without", "1")
    assert alone["retrained"] == found[2]["retrained"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "ontogeny retrain: is not told which datums to change. Give --without"),
        (["--without", "9999"], "--without: got '9999', the run has training datums 0 to"),
        (["--without", "x"], "--without: got 'x'. Write numbers and ranges: 0-9,12"),
        (["--without", "1", "--steps", "5:9999"], "--steps: got 5:9999, the run has steps 0 to"),
        (["--without", "1", "--steps", "5-9"], "--steps: got '5-9', must be like 0:100"),
        (["--without", "1", "--workers", "0"], "--workers: got 0, must be at least 1"),
        (["--weights", "absent.csv"], "absent.csv: cannot be read"),
    ],
)
def test_wrong_requests_are_one_line(
    capsys: pytest.CaptureFixture, uri: str, asked: list[str], said: str
) -> None:
    assert main(["retrain", uri, *asked]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "lacks a column datum; it has a, b"),
        ("datum,weight\n1,x\n", "has entries in column weight that are no numbers"),
        ("datum,weight\n1.5,0\n", "has datums that are no whole numbers"),
        ("datum,weight\n1,0\n1,2\n", "names datum 1 twice"),
        ("datum,weight\n1,inf\n", "datum 1 has weight inf, must be a finite number"),
        ("datum,weight\n1,1\n", "changes no datum"),
        ("datum,weight\n-1,0\n", "the run has no training datum -1"),
        ("", "is not a table"),
    ],
)
def test_wrong_files_are_one_line(
    capsys: pytest.CaptureFixture, uri: str, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "weights.csv"
    path.write_text(text)
    assert main(["retrain", uri, "--weights", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert str(path) in err
    assert len(err.splitlines()) == 1
