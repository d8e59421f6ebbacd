"""The law Lifetime by unit and by neuron on weights stored [I, O], in bfloat16, and on images."""

import numpy as np
from tiny_hf import hf_config
from tiny_run import make_run
from tiny_tasks import EVERYTHING, tiny_task

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.lifetime.run import law_of_units, lifetime_run
from analysis.run.run import Run, open_run
from capture.training.loop import capture_run
from cluster.local.threads import run_job

ADAMW = (
    *("training.learning_rate=0.01", "training.optimizer.kind=adamw", "training.epochs=1"),
    "training.optimizer.weight_decay=0.3",
)


def check_neurons(run: Run, unit: str, tolerance: float) -> None:
    """The contributions of tokens and decay are the change of each neuron."""
    found = lifetime_run(run)
    axis = 1 if unit in run.layout.transposed else 0
    change = (run.checkpoint()[unit].double() - run.checkpoint(0)[unit].double()).norm(dim=axis)
    terms = found.neuron_changes().set_index("unit").loc[unit]
    np.testing.assert_allclose(terms["change"], change, rtol=1e-12)
    for by in ("target", "input"):
        whole = found.contributions(unit, by).sum(0) + terms["decay"]
        np.testing.assert_allclose(whole, change, atol=tolerance * float(change.max()))


def test_weights_that_are_stored_by_input(tmp_path):
    capture_run(hf_config(tmp_path, "gpt2", *ADAMW), lambda event: None)
    run = open_run(tmp_path / "run")
    unit = "transformer.h.1.mlp.c_fc.weight"
    assert unit in run.layout.transposed
    check_neurons(run, unit, 1e-4)
    units = law_of_units(run).set_index("unit")["missed"]
    assert units.drop([name for name in units.index if "c_attn.bias" in name]).max() < 1e-3


def test_training_in_bfloat16():
    options = (*ADAMW, "training.precision=bfloat16", 'capture.units=["*.linear*.weight"]')
    run = open_run(make_run("memory://lifetime-bfloat16", *options))
    check_neurons(run, "layers.1.linear2.weight", 2**-7)
    assert law_of_units(run)["missed"].max() < 2**-7


def test_images_of_which_each_has_one_position(tmp_path):
    options = ("training.optimizer.momentum=0.9", "training.learning_rate=0.05")
    config = tiny_task(tmp_path, "digits", *EVERYTHING, *options)
    capture_run(config, lambda event: None)
    run = open_run(tmp_path / "run")
    found = attribute(run, run_job, AttributionConfig(lifetime=True))
    assert law_of_units(run)["missed"].max() < 1e-5
    shares = found.contributions.groupby(["unit", "group"])["share"].sum(min_count=1).dropna()
    assert len(shares)
    np.testing.assert_allclose(shares, 1, rtol=1e-4)
