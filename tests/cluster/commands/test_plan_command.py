"""``ontogeny plan``: its tables, its JSON, and wrong requests."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TEXT

from capture.engine.step_plan import StepPlan
from capture.estimates.calibration import PLAIN, Calibration, calibrate
from cluster.cli import main
from cluster.terminal import plan_tables

SETTINGS = [
    *("training.epochs=1", "model.layers=1", "model.width=8", "model.hidden=8", "model.heads=2"),
    *("training.batch=40", "capture.outliers.k=10", "capture.tally.enabled=false"),
    *("corpus.window=8", "corpus.kind=text", "corpus.path=text.txt"),
]


LARGE = ("--tokens", "1e9", "--model-params", "1e9")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measure as few steps as possible, on a text of some hundred words."""
    monkeypatch.setattr(plan_tables, "BUDGET_SECONDS", 0.0)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)


def test_a_plan_shows_the_cost_of_each_kind(capsys, tmp_path: Path):
    uri = str(tmp_path / "run")
    assert main(["plan", "demo", f"run.uri={uri}", *SETTINGS]) == 0
    said = capsys.readouterr().out
    for word in ("outliers", "tallies", "factors", "checkpoints", "dense, as in the study"):
        assert word in said
    assert "As configured:" in said
    assert "100 (configured)" in said
    assert not Path(uri).exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["workers.count=4"], "whole batches; the run has 4 workers."),
        (["engine=deepspeed"], "whole batches; the run is DeepSpeed's."),
    ],
)
def test_the_plan_says_that_it_times_one_process(
    capsys, tmp_path: Path, settings: list[str], said: str
):
    assert main(["plan", "demo", f"run.uri={tmp_path}/run", *SETTINGS, *settings]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_summary_includes_packing_and_gpu_memory(capsys, monkeypatch, tmp_path):
    def slower(plan: StepPlan, budget_seconds: float) -> Calibration:
        found = calibrate(plan, budget_seconds)
        seconds = 3 * found.step_seconds[PLAIN]
        return replace(found, recorded_seconds=seconds, device_peak_bytes=7_000_000_000)

    monkeypatch.setattr(plan_tables, "calibrate", slower)
    assert main(["plan", "demo", f"run.uri={tmp_path}/run", *SETTINGS]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a step is 3.00 × a plain one" in said
    assert "and 7.0 GB of the GPU's, if the store keeps up" in said


def test_too_little_disk_space_is_reported(capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(plan_tables, "free_bytes", lambda uri: 1000)
    assert main(["plan", "demo", f"run.uri={tmp_path}/run", *SETTINGS]) == 0
    assert "Too little room" in capsys.readouterr().out


def test_json_holds_what_the_tables_show(capsys, tmp_path: Path):
    assert main(["plan", "demo", f"run.uri={tmp_path}/run", *SETTINGS, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    kinds = {kind["kind"]: kind for kind in values["kinds"]}
    assert kinds["outliers"]["recorded"]
    assert not kinds["factors"]["recorded"]
    assert kinds["factors"]["num_bytes"] > 0
    assert values["dense_bytes"] > 0
    assert values["step_seconds"]["plain"] > 0


def test_any_size_is_estimated_from_stated_assumptions(capsys):
    asked = ["--model-params", "175e9", "--tokens", "700e9", "--window", "1000", "--gpus", "1024"]
    assert main(["plan", *asked]) == 0
    said = capsys.readouterr().out
    assert "490" in said
    assert "Assumptions" in said
    assert main(["plan", *asked, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["kinds"][-1]["num_bytes"] == pytest.approx(490e18)


def test_the_shape_of_a_model_may_be_given(capsys):
    """Pythia-160M, by hand: 12 · 16 · 768 · 4 bytes of factors a token, 16 bytes a parameter."""
    asked = ["--model-params", "162e6", "--layers", "12", "--width", "768", "--tokens", "300e9"]
    asked += ["--batch-tokens", "2097152", "--gpus", "8", "--json"]
    assert main(["plan", *asked]) == 0
    values = json.loads(capsys.readouterr().out)
    found = {kind["kind"]: kind["num_bytes"] for kind in values["kinds"]}
    assert found["factors"] == pytest.approx(300e9 * 589_824 * 0.69)
    assert found["outliers"] == pytest.approx(300e9 / 2048 * 1000 * 7.6)
    assert values["held_by_each_gpu"]["gathered"] == pytest.approx(16 * 162e6)
    assert values["held_by_each_gpu"]["factors"] == pytest.approx(262_144 * 589_824)


def test_assumptions_that_are_not_used_are_not_shown(capsys):
    asked = ["plan", "--model-params", "162e6", "--tokens", "300e9"]
    assert main([*asked, "--layers", "12", "--width", "768"]) == 0
    said = capsys.readouterr().out
    assert "width per layer" not in said
    assert "3,200,000" in said
    assert "1 GPU:" in said
    assert main(asked) == 0
    assert "width per layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            [*LARGE, "--layers", "2"],
            "takes --layers and --width together",
        ),
        ([*LARGE, "--layers", "0", "--width", "768"], "--layers: got 0, must be at least 1"),
        ([*LARGE, "--layers", "12", "--width", "0"], "--width: got 0, must be at least 1"),
        ([], "needs a CONFIG, or --model-params and --tokens"),
        (["--tokens", "1e9"], "also needs --model-params"),
        (["--model-params", "1e9"], "also needs --tokens"),
        (["--layers", "12", "--width", "768", "--tokens", "1e9"], "also needs --model-params"),
        (["--layers", "12", "--width", "768"], "also needs --model-params and --tokens"),
        (["--tokens", "0", "--model-params", "1e9"], "--tokens: got 0.0, must be at least"),
        (["demo", *LARGE], "got the configuration 'demo' beside --model-params"),
        (["demo", "--layers", "2"], "got the configuration 'demo' beside"),
        (["--tokens", "1e9", "--model-params", "-1"], "--model-params: got -1.0, must be at least"),
        (["nowhere.yaml"], "no such file"),
        (["demo", *SETTINGS, "capture.units=[nothing]"], "matches no parameter"),
    ],
)
def test_a_wrong_request_is_one_line(capsys, arguments: list[str], problem: str):
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1


def test_free_space_is_known_for_folders_only():
    assert plan_tables.free_bytes("s3://bucket/run") is None
    assert (plan_tables.free_bytes("some/folder/that/is/not/there") or 0) > 0
