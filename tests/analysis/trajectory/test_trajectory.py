"""A trajectory of a run: its values are those of plain forward passes, and replays change none."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_run import copied, tiny_run
from torch.nn import functional as F

from analysis.jobs.tables import read_question, read_table
from analysis.run.run import Run, open_run
from analysis.trajectory.checkpoints.of_run import RunCheckpoints
from analysis.trajectory.checkpoints.source import observe
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.metrics import prediction
from analysis.trajectory.page.summary import omitted as left_out
from analysis.trajectory.tables import SCHEMAS, Trajectory
from analysis.trajectory.trajectory import (
    trajectory_of_run,
    trajectory_question,
    write_trajectory,
)
from capture.errors import ConfigError


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(tiny_run())


@pytest.fixture(scope="module")
def found(run: Run) -> Trajectory:
    return trajectory_of_run(run, TrajectoryConfig(metrics=("loss", "accuracy", "induction")))


def test_loss_and_accuracy_are_those_of_a_plain_forward_pass(run: Run, found: Trajectory) -> None:
    rows = run.datums("validation")
    for step in (0, 14, 24):
        each, hits = [], []
        for tokens, last in zip(rows["tokens"], rows["last_target"], strict=True):
            target_T = torch.tensor([*tokens[1:], last])
            logits_TV = run.model(step)(torch.tensor([list(tokens)]))[0]
            each.append(F.cross_entropy(logits_TV, target_T).item())
            hits.append((logits_TV.argmax(1) == target_T).double().mean().item())
        loss, accuracy = (one_row(found, name, step) for name in ("loss", "accuracy"))
        assert loss["value"] == pytest.approx(np.mean(each), rel=1e-5)
        assert loss["standard_error"] == pytest.approx(np.std(each, ddof=1) / len(each) ** 0.5)
        assert accuracy["value"] == pytest.approx(np.mean(hits))
        assert loss["n"] == len(each)


def test_loss_agrees_with_the_evaluation_that_capture_recorded(run: Run, found: Trajectory) -> None:
    recorded = run.evaluations()
    last = recorded[recorded["split"] == "validation"].iloc[-1]
    assert one_row(found, "loss", last["step"])["value"] == pytest.approx(last["loss"], rel=1e-5)


def one_row(found: Trajectory, metric: str, step: int) -> pd.Series:
    rows = found.series(metric)
    return rows[rows["step"] == step].iloc[0]


def test_the_null_is_the_unigram_model(run: Run, found: Trajectory) -> None:
    count_V = np.bincount(run.target_NT.ravel(), minlength=run.num_tokens) + 1
    rows = run.datums("validation")
    tokens = [
        [*row[1:], last] for row, last in zip(rows["tokens"], rows["last_target"], strict=True)
    ]
    wanted = -np.log(count_V / count_V.sum())[np.array(tokens)].mean()
    assert found.series("loss")["null"].to_numpy() == pytest.approx(wanted)


def test_only_the_wanted_metrics_are_kept(found: Trajectory) -> None:
    assert set(found.trajectory["metric"]) == {"loss", "accuracy", "induction"}
    assert set(found.metrics["metric"]) == {"loss", "accuracy", "induction"}


def test_a_replayed_step_gives_the_same_as_its_checkpoint(run: Run) -> None:
    source = RunCheckpoints(run)
    names = [name for name, _ in run.blank_model().named_parameters()]
    stored = list(source.stored([7, 21]))
    for one, other in zip(stored, source.replayed([7, 21]), strict=True):
        pair = dict(one.named_parameters()), dict(other.named_parameters())
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in names)


def test_replayed_steps_lie_between_checkpoints_in_any_list(run: Run) -> None:
    chosen = trajectory_of_run(run, TrajectoryConfig(metrics=("loss",), steps="9,3:6,7,22"))
    assert chosen.checkpoints["step"].tolist() == [3, 4, 5, 7, 9, 22]
    assert chosen.checkpoints["source"].tolist() == [*["replay"] * 3, "checkpoint", *["replay"] * 2]
    alone = trajectory_of_run(run, TrajectoryConfig(metrics=("loss",), steps="5,9"))
    both = chosen.series("loss").set_index("step").loc[[5, 9], "value"]
    assert both.tolist() == alone.series("loss")["value"].tolist()


def test_a_model_knows_the_two_before_it_and_no_more(run: Run) -> None:
    models = list(observe(RunCheckpoints(run), [0, 7, 14, 21]))
    assert models[3].before is models[2]
    assert models[2].before is models[1]
    assert models[1].before is None


def test_one_metric_and_a_list_of_steps_are_taken_as_python_has_them(run: Run) -> None:
    config = TrajectoryConfig(metrics="loss", steps=(0, 10))
    assert config == TrajectoryConfig(metrics=("loss",), steps="0,10")
    assert config == TrajectoryConfig(metrics=["loss"], steps=[0, 10])
    assert trajectory_of_run(run, config).checkpoints["step"].tolist() == [0, 10]
    with pytest.raises(ConfigError, match=r"--steps: got '0,x'. For example: log, all"):
        trajectory_of_run(run, TrajectoryConfig(steps=(0, "x")))  # pyright: ignore


# --- metrics of the user's own, and bad input -----------------------------------------------------

OWN = '''
from analysis.trajectory.metrics.row import Row
def size(model, text):
    """Square of the embedding's norm."""
    yield Row("size", "embedding", float(model.weights["encoder.weight"].square().sum()), 1)
def wrong(model, text):
    yield 3
def fails(model, text):
    yield Row("fine", "", 1.0, 1)
    raise ValueError("no such\\nlayer")
'''


def test_a_metric_of_the_users_own(run: Run, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_trajectory_metrics.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    config = TrajectoryConfig(metrics=("my_trajectory_metrics:size", "loss"))
    found = trajectory_of_run(run, config)
    sizes = found.series("size", "embedding")["value"]
    assert sizes.iloc[-1] == pytest.approx(run.model().encoder.weight.square().sum().item())
    assert set(found.metrics["metric"]) == {"loss", "size"}
    assert "Square of the embedding's norm." in found.metrics["meaning"].tolist()
    with pytest.raises(ConfigError) as failed:
        trajectory_of_run(run, TrajectoryConfig(metrics=("my_trajectory_metrics:fails",)))
    assert "my_trajectory_metrics:fails" in str(failed.value)
    assert "failed at step 0 with ValueError: no such layer" in str(failed.value)
    with pytest.raises(ConfigError, match="returned int, wanted rows"):
        trajectory_of_run(run, TrajectoryConfig(metrics=("my_trajectory_metrics:wrong",)))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("los",), "got 'los', which is no metric. Did you mean loss"),
        (("in_context",), "needs windows of 20 tokens, .* It can give: loss, "),
        (("sum_waves",), "needs modular addition with a modulus of at least 21, which"),
        (("nowhere:f",), "cannot be loaded"),
        (("math:pi",), "is no function but float"),
    ],
)
def test_a_metric_that_cannot_be_measured_is_one_line(run: Run, metrics, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        trajectory_of_run(run, TrajectoryConfig(metrics=metrics))
    assert "\n" not in str(raised.value)


def test_by_default_metrics_that_cannot_be_measured_are_named(run: Run) -> None:
    found = trajectory_of_run(run, TrajectoryConfig(checkpoints=2, datums=4))
    omitted = found.metrics.set_index("metric")["omitted"]
    assert omitted["in_context"] == "needs windows of 20 tokens"
    assert omitted["loss"] == ""
    assert omitted["path_patching"] == "takes long; name it"
    assert omitted["update_cosine"] == "gives no values at these checkpoints"
    assert set(found.trajectory["metric"]) == set(omitted.index[omitted == ""])
    assert found.checkpoints["step"].tolist() == [0, 24]


def test_metrics_that_lack_the_same_are_named_together(run: Run) -> None:
    found = trajectory_of_run(run, TrajectoryConfig(checkpoints=2, datums=4))
    lines = left_out(found.metrics)
    assert "completion_loss, completion_accuracy, completion_top5" in " ".join(lines)
    assert len(lines) == found.metrics["omitted"].replace("", None).nunique()


def test_paths_that_are_given_are_measured_without_their_name(run: Run) -> None:
    found = trajectory_of_run(run, TrajectoryConfig(checkpoints=2, datums=4, paths="L0H0:logits"))
    assert len(found.series("path_patching", "L0H0 > logits")) == 2


def test_the_unigram_null_is_computed_once(run: Run, monkeypatch) -> None:
    calls = []

    def counted(text, scored):
        calls.append(scored)
        return {"loss": 1.0, "accuracy": 0.0, "top5": 0.0}

    monkeypatch.setattr(prediction, "unigram_scores", counted)
    config = TrajectoryConfig(metrics=("loss", "logit_lens"), checkpoints=3)
    assert trajectory_of_run(run, config).series("loss")["null"].tolist() == [1.0] * 3
    assert len(calls) == 1


def test_a_split_that_the_run_lacks_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="got test, but the run has validation, train"):
        trajectory_of_run(run, TrajectoryConfig(split="test"))


def test_tables_are_read_back_with_their_question(found: Trajectory) -> None:
    uri = copied(tiny_run(), "memory://trajectory-tables").uri
    run, config = open_run(uri), TrajectoryConfig(metrics=("loss", "accuracy", "induction"))
    write_trajectory(run, found, trajectory_question(config), "mine")
    for name, schema in SCHEMAS.items():
        pd.testing.assert_frame_equal(
            read_table(run, "trajectory/mine", name, schema), getattr(found, name)
        )
    assert read_question(run, "trajectory/mine").options["metrics"] == list(config.metrics)
