"""Weights after any step: a run with other checkpoints is the same run, so its weights are, too."""

import pytest
import torch
from tiny import make_run, tiny_config

from analysis.ablation.ablate import ablate
from analysis.ablation.config import AblationConfig
from analysis.attribution.attribute import attribute, write_attribution
from analysis.attribution.config import AttributionConfig
from analysis.faithfulness import methods
from analysis.faithfulness.faithfulness import faithfulness
from analysis.faithfulness.ground_truth import FaithfulnessConfig
from analysis.jobs.tables import read_question
from analysis.run.run import open_run
from cluster.cli import main
from cluster.local.threads import run_job

STEP = 13


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return one training with checkpoints after 8, 16, 24 steps, and after 13, 26 steps."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(tiny_config(folder, name="coarse"))
    make_run(tiny_config(folder, f"capture.segment_steps={STEP}", name="fine"))
    found = [open_run(str(folder / name)) for name in ("coarse", "fine")]
    for run in found:
        write_attribution(run, attribute(run, run_job, AttributionConfig()))
    return found


def test_replayed_weights_are_those_of_the_checkpoint_there(runs):
    coarse, fine = runs
    for step in (STEP, 0, 28):
        found, wanted = coarse.weights(step), fine.weights(step)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    text_NT = torch.from_numpy(coarse.token_NT[:3]).long()
    assert torch.equal(coarse.network(STEP)(text_NT), fine.network(STEP)(text_NT))


def test_ablation_of_a_replayed_model_is_that_of_the_stored_one(runs):
    config = AblationConfig(level="head", everything=True, scored_datums=20, step=STEP)
    found, wanted = (ablate(run, config).neurons for run in runs)
    assert found.equals(wanted)
    last = ablate(runs[0], AblationConfig(level="head", everything=True, scored_datums=20)).neurons
    assert not found.equals(last)


def test_evidence_after_a_step_is_what_was_recorded_until_then(tmp_path, monkeypatch):
    """A run that ends there has the same scores, for its record ends there, too."""
    for table, name in (("OUTLIER_EVIDENCE", "target tokens"), ("TALLY_EVIDENCE", "update norm")):
        monkeypatch.setattr(methods, table, {name: getattr(methods, table)[name]})
    monkeypatch.setattr(methods, "LAST_WINDOW", ("update norm",))
    monkeypatch.setattr(methods, "METHODS", ("study",))
    texts = {"min_count": 1, "neurons": 2, "text": "train"}
    make_run(tiny_config(tmp_path, "capture.tally.window_steps=7", "training.epochs=1", name="one"))
    make_run(tiny_config(tmp_path, "capture.tally.window_steps=7", "training.epochs=2", name="two"))
    one, two = (open_run(str(tmp_path / name)) for name in ("one", "two"))
    assert (one.steps_done, two.steps_done) == (14, 28)
    wanted = faithfulness(one, run_job, FaithfulnessConfig(**texts)).neurons
    found = faithfulness(two, run_job, FaithfulnessConfig(**texts, step=14)).neurons
    assert len(found) == len(wanted)
    assert found["auc"].to_numpy() == pytest.approx(wanted["auc"].to_numpy(), nan_ok=True)


def test_commands_take_a_step_or_several(runs):
    uri = runs[0].uri
    unit = "layers.1.linear2.weight"
    assert main(f"activations {uri} --step 3 --neuron {unit}:1 --name three --quiet".split()) == 0
    heads = f"ablate {uri} --name heads --level head --all --datums 9 --steps 0,13 --quiet"
    assert main(heads.split()) == 0
    run = open_run(uri)
    assert read_question(run, "activations/three").options["step"] == 3
    for step in (0, 13):
        assert read_question(run, f"ablate/heads-step-{step}").options["step"] == step
