"""``ontogeny smoothness``: its table, its JSON, and wrong requests."""

import json
from pathlib import Path

import pytest
from tiny import TEXT

from cluster.cli import main

SETTINGS = [
    *("training.epochs=1", "model.layers=1", "model.width=8", "model.hidden=8", "model.heads=2"),
    *("training.batch=8", "capture.outliers.k=10", "capture.tally.enabled=false"),
    *("corpus.window=8", "corpus.kind=text", "corpus.path=text.txt", "training.device=cpu"),
]
FEW = ["--steps", "10", "--directions", "1"]


@pytest.fixture(autouse=True)
def text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 2)
    monkeypatch.chdir(tmp_path)


def test_a_chaotic_setting_is_called_so_and_advice_is_given(capsys: pytest.CaptureFixture) -> None:
    chaotic = ["training.learning_rate=30", "training.clip=1"]
    assert main(["smoothness", "demo", *SETTINGS, *chaotic, *FEW]) == 0
    said = capsys.readouterr().out
    for word in ("growth exponent per step", "steps with clipped gradient", "n = "):
        assert word in said
    assert "Training is chaotic" in said
    assert "What makes training smooth" in said
    assert not Path("runs").exists()


def test_json_holds_all_values(capsys: pytest.CaptureFixture) -> None:
    calm = ["training.learning_rate=0.001", "--json"]
    assert main(["smoothness", "demo", *SETTINGS, *calm, *FEW]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "smooth"
    assert found["steps"] == len(found["distance"][0]) == 10
    assert found["exponent"]["low"] <= found["exponent"]["high"]


def test_smooth_is_not_said_to_be_sufficient(capsys: pytest.CaptureFixture) -> None:
    assert main(["smoothness", "demo", *SETTINGS, "training.learning_rate=0.001", *FEW]) == 0
    said = capsys.readouterr().out
    assert "Training is smooth: small random changes do not grow" in said
    assert "The check of ontogeny influence, or ontogeny lds, confirms them afterwards" in said
    assert "What makes training smooth" not in said


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["smoothness", "demo", *SETTINGS, "--steps", "2"]) == 2
    assert "steps: got 2, must be at least 8" in capsys.readouterr().err
