"""Initial weights and the order of the datums follow from seeds of their own, or from run.seed."""

import numpy as np
import pytest
import torch
from tiny import tiny_config

from capture.corpus.datums import load_corpus
from capture.engine.build import build_engine
from capture.engine.step_plan import StepPlan
from capture.errors import ConfigError


@pytest.fixture
def start(tmp_path):
    """Initial weights and datums by step of a run with these overrides."""

    def make(*overrides: str) -> tuple[torch.Tensor, np.ndarray]:
        config = tiny_config(tmp_path, *overrides)
        plan = StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))
        weights = build_engine(plan, ()).model.state_dict()
        return torch.cat([own.flatten() for own in weights.values()]), plan.batches(1)

    return make


def test_run_seed_decides_both(start):
    (weights, order), (other_weights, other_order) = start("run.seed=1"), start("run.seed=2")
    assert not torch.equal(weights, other_weights)
    assert not np.array_equal(order, other_order)


def test_each_seed_varies_its_own_part_alone(start):
    weights, order = start("run.seed=1")
    both = start("run.seed=2", "model.seed=1", "training.order_seed=1")
    assert torch.equal(weights, both[0])
    assert np.array_equal(order, both[1])
    other_weights, same_order = start("run.seed=1", "model.seed=7")
    assert not torch.equal(weights, other_weights)
    assert np.array_equal(order, same_order)
    same_weights, other_order = start("run.seed=1", "training.order_seed=7")
    assert torch.equal(weights, same_weights)
    assert not np.array_equal(order, other_order)


@pytest.mark.parametrize("key", ["model.seed", "training.order_seed"])
def test_a_negative_seed_is_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=f"{key}: got -1, must be at least 0"):
        tiny_config(tmp_path, f"{key}=-1")
