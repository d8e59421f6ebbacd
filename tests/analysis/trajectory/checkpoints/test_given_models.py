"""Trajectories of runs that ``ontogeny.record`` made, with the model that the user gives."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_hf import SETTINGS
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import Run, open_run
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.trajectory import trajectory_of_run
from capture.errors import ConfigError, RunError
from capture.models.huggingface import HFConfig, build_hf_model
from capture.parts import ModelParts
from cluster.cli import main
from ontogeny import record

VOCABULARY, WINDOW = 13, 8
DATUMS = torch.randint(VOCABULARY, (12, WINDOW + 1), generator=torch.Generator().manual_seed(0))
WORDS = [f"w{number}" for number in range(VOCABULARY)]
STEPS = 4


class Bigram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(VOCABULARY, 6)
        self.read = nn.Linear(6, VOCABULARY)

    def forward(self, token_NT: Tensor, last: bool = False) -> Tensor:
        logit_NTV = self.read(self.table(token_NT))
        return logit_NTV[:, -1] if last else logit_NTV


def hugging_face() -> nn.Module:
    config = HFConfig(family="gpt2", settings=SETTINGS["gpt2"])
    return build_hf_model(config, vocabulary=VOCABULARY, window=WINDOW, seed=3).whole


MODELS = {"hugging_face": hugging_face, "bigram": Bigram}


@functools.cache
def recorded(kind: str) -> str:
    """Record four steps in segments of two; return the run's URI."""
    uri, model = f"memory://trajectory-given/{kind}", MODELS[kind]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    how = {"datums": DATUMS, "vocabulary": WORDS, "segment_steps": 2}
    with record(model, optimizer, run=uri, **how) as recorder:
        for step in range(STEPS):
            ids = list(range(6)) if step % 2 else list(range(6, 12))
            recorder.datums(ids)
            F.cross_entropy(
                logits(model, DATUMS[ids, :-1]).flatten(0, 1), DATUMS[ids, 1:].flatten()
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
    return uri


def logits(model: nn.Module, token_NT: Tensor) -> Tensor:
    found = model(token_NT)
    return getattr(found, "logits", found)


def opened(kind: str) -> Run:
    return open_run(recorded(kind), model=MODELS[kind])


@pytest.mark.parametrize("kind", MODELS)
def test_losses_are_those_of_the_given_model_with_the_weights_of_each_step(kind: str) -> None:
    run = opened(kind)
    config = TrajectoryConfig(metrics=("loss", "weight_norm"), steps="all")
    found = trajectory_of_run(run, config).trajectory
    assert sorted(set(found["step"])) == [0, 2, 4]
    for step in (0, 2, 4):
        model = MODELS[kind]()
        model.load_state_dict(run.weights(step), strict=False)
        with torch.no_grad():
            logit_NTV = logits(model.eval(), DATUMS[:, :-1])
        wanted = F.cross_entropy(logit_NTV.flatten(0, 1), DATUMS[:, 1:].flatten()).item()
        rows = found[(found["step"] == step) & (found["metric"] == "loss")]
        assert rows["value"].to_numpy() == pytest.approx(wanted, rel=1e-5)
        norms = found[(found["step"] == step) & (found["metric"] == "weight_norm")]
        weights = {name: float(own.detach().norm()) for name, own in model.named_parameters()}
        for row in norms[norms["component"] != ""].itertuples():
            assert row.value == pytest.approx(weights[str(row.component)], rel=1e-5)


def test_a_causal_language_model_of_the_library_gives_attention_and_layers() -> None:
    config = TrajectoryConfig(metrics=("previous_token", "logit_lens", "head_ablation"))
    found = trajectory_of_run(opened("hugging_face"), config).trajectory
    assert {"previous_token", "logit_lens", "head_ablation"} <= set(found["metric"])
    assert np.isfinite(found["value"]).all()


def test_metrics_that_another_model_cannot_give_are_named() -> None:
    wanted = r"previous_token.*attention"
    with pytest.raises(ConfigError, match=wanted):
        trajectory_of_run(opened("bigram"), TrajectoryConfig(metrics=("previous_token",)))


def test_logits_of_another_shape_say_how_to_get_them() -> None:
    parts = ModelParts(logits=lambda model, token: model(token, True))
    run = open_run(recorded("bigram"), model=(Bigram(), parts))
    with pytest.raises(ConfigError, match=r"Bigram: maps tokens .* wanted logits \[N, T, V\]"):
        trajectory_of_run(run, TrajectoryConfig(metrics=("loss",)))


def test_steps_without_a_checkpoint_cannot_be_replayed() -> None:
    with pytest.raises(
        ConfigError, match=r"got 1, but .* has no checkpoint there\. The nearest is"
    ):
        trajectory_of_run(opened("bigram"), TrajectoryConfig(metrics=("loss",), steps="0,1"))


def test_without_a_model_the_run_says_how_to_give_it() -> None:
    with pytest.raises(RunError, match="--model MODULE:FUNCTION"):
        trajectory_of_run(open_run(recorded("bigram")), TrajectoryConfig(metrics=("loss",)))


def test_checkpoints_that_are_no_run_take_no_model(tmp_path: Path, capsys) -> None:
    words = ["trajectory", str(tmp_path), "--model", "tiny_hf:hf_config", "--to", f"{tmp_path}/to"]
    assert main(words) == 2
    assert "--model: is given, but" in capsys.readouterr().err


def test_a_run_without_held_out_text_says_that_it_predicts_training_text() -> None:
    found = trajectory_of_run(opened("bigram"), TrajectoryConfig(metrics=("loss", "accuracy")))
    meanings = dict(found.metrics[["metric", "meaning"]].to_numpy())
    assert meanings["loss"] == "cross-entropy per token of training text"
    assert meanings["accuracy"] == "training targets that the model ranks first"
