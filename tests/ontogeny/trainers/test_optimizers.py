"""Optimizers of the Hugging Face ``Trainer`` other than AdamW, and adapters with magnitudes."""

from typing import Any

import pytest
from trainer_runs import FULL, llama, trainer

import ontogeny
from analysis.run.run import open_run

pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["adafactor", "rmsprop", "adagrad"])
def test_the_trainers_optimizers_are_recorded(tmp_path, name):
    callback = ontogeny.Callback(run=str(tmp_path / "run"), **FULL)
    made: Any = trainer(tmp_path, llama(), [callback], optim=name, num_train_epochs=1)
    made.train()
    run = open_run(str(tmp_path / "run"))
    assert run.steps_done == made.state.global_step > 1
    assert run.steps()["audit_error"].max() < 1e-4
    unit = "model.layers.0.mlp.down_proj.weight"
    assert next(iter(run.lifetime_shifts(unit))).shift_N.any()
