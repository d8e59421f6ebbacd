"""``capture.record=checkpoints``: the same training, which records checkpoints and losses only."""

import math
from pathlib import Path

import pytest
from tiny import make_run, tiny_config

from analysis.run.run import open_run
from capture.errors import ConfigError, RunError
from capture.store import Store
from capture.training.run_start import TOP_LEVEL_NAMES


def test_training_is_the_same_and_no_shifts_are_recorded(tmp_path: Path):
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    whole.mkdir()
    bare.mkdir()
    make_run(tiny_config(whole))
    make_run(tiny_config(bare, "capture.record=checkpoints"))
    wanted, found = open_run(str(whole / "run")), open_run(str(bare / "run"))
    for key in Store(str(whole / "run")).keys("checkpoints"):
        assert Store(str(bare / "run")).get(key) == Store(str(whole / "run")).get(key), key
    columns = ["loss", "learning_rate", "clip", "gradient_norm", "epoch", "batch"]
    assert found.steps()[columns].equals(wanted.steps()[columns])
    assert found.evaluations().equals(wanted.evaluations())
    assert all(math.isnan(error) for error in found.steps()["audit_error"])
    folders = {key.split("/")[0] for key in Store(str(bare / "run")).keys()}
    assert folders & TOP_LEVEL_NAMES & {"outliers", "tallies", "factors"} == set()


def test_a_run_without_outliers_says_how_to_add_them(tmp_path: Path):
    make_run(tiny_config(tmp_path, "capture.record=checkpoints"))
    with pytest.raises(RunError, match=r"has no outliers recorded.*ontogeny replay .* --record"):
        open_run(str(tmp_path / "run")).shifts()


def test_what_cannot_be_captured_is_refused_before_training(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"capture\.units.*matches no parameter"):
        make_run(tiny_config(tmp_path, "capture.record=checkpoints", "capture.units=[nothing]"))
    with pytest.raises(ConfigError, match=r"capture\.factors\.enabled.*records nothing else"):
        tiny_config(tmp_path, "capture.record=checkpoints", "capture.factors.enabled=true")
