"""A model of attention alone has heads to measure, and no neurons."""

import pytest
from tiny_tasks import EVERYTHING, tiny_task

from analysis.activations.config import ActivationConfig
from analysis.activations.tables import activations
from analysis.run.run import open_run
from capture.errors import UnitError
from capture.training.loop import capture_run


def test_heads_are_measured_and_neurons_are_refused_in_one_line(tmp_path):
    config = tiny_task(tmp_path, "induction", *EVERYTHING)
    capture_run(config, lambda event: None)
    run = open_run(config.run.uri)
    found = activations(run, ActivationConfig(quantity="attention-previous", tokens=("t1", "t2")))
    assert set(found.statistics["unit"]) == {"layers.0.self_attn", "layers.1.self_attn"}
    with pytest.raises(UnitError) as caught:
        activations(run, ActivationConfig())
    text = "layers.*: have no neurons, because they have no MLP. Choose another --of, such as"
    assert str(caught.value).startswith(text)
