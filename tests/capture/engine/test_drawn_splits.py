"""Law "split" of a capture at steps drawn from the seed, for models of all kinds and workers."""

import importlib.util
from pathlib import Path

import drawn_splits
import pytest
import torch
from drawn_splits import SEED, at_workers, by_deepspeed, stored_ends, with_mixing_norm
from spawned import on_workers
from tiny import make_run, tiny_config

from analysis.run.run import open_run
from capture.config.reading import make_config
from capture.config.settings import Config
from capture.engine import build as assembly
from capture.engine.split import UNCHECKED, is_drawn
from capture.errors import SplitError
from cluster.cli import main

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def test_one_step_in_two_hundred_is_drawn_from_the_seed():
    drawn = [[is_drawn(seed, step) for step in range(6000)] for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    assert all(15 <= sum(steps) <= 45 for steps in drawn)  # 30 are expected


@pytest.fixture
def mixing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model mix the datums of a batch from a later call on."""
    monkeypatch.setattr(assembly, "build_model", with_mixing_norm())


@pytest.mark.usefixtures("mixing_later")
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_split_that_goes_wrong_later_stops_before_the_open_segment_is_stored(
    tmp_path: Path, positions: str
):
    config = tiny_config(tmp_path, f"run.seed={SEED}", f"capture.loss_positions={positions}")
    with pytest.raises(SplitError, match=r"^step 19: layers\.\d\.\S+: the gradient captured for"):
        make_run(config)
    assert stored_ends(config.run.uri) == [8, 16]


@pytest.mark.usefixtures("mixing_later")
def test_a_resumed_run_is_checked_at_its_first_step(tmp_path: Path, monkeypatch):
    config = tiny_config(tmp_path, f"run.seed={SEED}")
    with pytest.raises(SplitError):
        make_run(config)
    monkeypatch.setattr(drawn_splits, "RIGHT_CALLS", 3)
    with pytest.raises(SplitError, match=r"^step 16: "):
        make_run(config, resume=True)


@pytest.mark.parametrize(
    "settings",
    [
        ("model.dropout=0.3", "training.accumulate=2", 'capture.units=["*"]'),
        ("training.precision=bfloat16",),
        ("model.kind=mlp", "corpus.kind=digits", "corpus.window=64", "training.batch=32"),
    ],
)
def test_checks_leave_training_bit_identical(tmp_path: Path, monkeypatch, settings):
    monkeypatch.setattr("capture.engine.split.EVERY", 2)
    found = []
    for name in ("checked", "plain"):
        make_run(small_config(tmp_path, name, *settings))
        found.append(open_run(str(tmp_path / name)).network().state_dict())
        monkeypatch.setattr("capture.engine.engine.Engine.split_unchecked", "not wanted here")
    checked, plain = found
    assert all(torch.equal(checked[name], plain[name]) for name in plain)


def small_config(folder: Path, name: str, *settings: str) -> Config:
    if "model.kind=mlp" not in settings:
        return tiny_config(folder, "training.epochs=1", *settings, name=name)
    fixed = (f"run.uri={folder / name}", "training.epochs=1", "training.device=cpu")
    fixed = (*fixed, "capture.outliers.k=30")
    return make_config({"model": {"layers": 1, "hidden": 8}}, [*fixed, *settings])


def test_the_run_and_the_command_say_what_was_not_checked(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("capture.engine.engine.Engine.split_unchecked", "DeepSpeed takes the steps")
    config = tiny_config(tmp_path, f"run.seed={SEED}", name="api")
    make_run(config)
    reason = "steps in which the split by datum could not be checked: DeepSpeed takes the steps"
    found = [each.unchecked for each in open_run(config.run.uri).segments]
    assert found == [{reason: 1}, {}, {reason: 1}, {}]
    assert main(["info", config.run.uri]) == 0
    assert "2 steps in which the split" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.machines
def test_several_workers_stop_together(tmp_path: Path):
    said = on_workers(2, at_workers, tmp_path)
    assert said[0] == said[1]
    assert said[0].startswith("step 19: layers.")
    assert stored_ends(str(tmp_path / "run")) == [8, 16]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.machines
def test_deepspeed_checks_stage_2_and_names_stage_3(tmp_path: Path):
    said = on_workers(2, by_deepspeed, tmp_path)
    assert said[0] == said[1]
    whole, partitioned = said[0]
    assert whole.startswith("step 19: layers.")
    assert stored_ends(str(tmp_path / "stage-2")) == [8, 16]
    assert partitioned == ""
    reason = "DeepSpeed partitions the weights (deepspeed.stage=3)"
    found = [each.unchecked for each in open_run(str(tmp_path / "stage-3")).segments]
    assert found == [{f"{UNCHECKED}: {reason}": 1}, {}, {f"{UNCHECKED}: {reason}": 1}, {}]
