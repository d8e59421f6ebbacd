"""Training that stops and continues: the trainer's checkpoints and the run agree.

Law: a run that was interrupted and continued from a checkpoint holds the same files as one that was
not.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import contents
from trainer_runs import FULL, ROWS, llama, same_weights, sorted_datums, trainer

import ontogeny
from analysis.run.run import open_run
from capture.errors import RunError
from capture.maintenance.verify import verify
from capture.shifts.outliers import OutlierConfig
from capture.store import Store

pytest.importorskip("accelerate", reason="accelerate is not installed, which Trainer needs")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries about themselves
FEW: dict[str, Any] = {"outliers": OutlierConfig(k=5), "segment_steps": 3}
STEPS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_dataset": ROWS[:4],
}
"""13 rows in steps of 4: 4 steps in each of 2 epochs, the last of an epoch with one row."""


def stop_after(step: int) -> Any:
    """Return a callback that ends training as Ctrl-C does."""
    import transformers

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    return Stop()


def dropped(**more: Any) -> Any:
    """A model that draws random numbers, so that these have to continue too."""
    return llama(attention_dropout=0.2, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A run that was not interrupted, and its model."""
    folder = tmp_path_factory.mktemp("whole")
    model, uri = dropped(), str(folder / "run")
    trainer(folder, model, [ontogeny.Callback(uri, **FEW)], **STEPS).train()
    return uri, model


def test_a_segment_ends_at_each_checkpoint(whole: tuple[str, Any]) -> None:
    run = open_run(whole[0])
    assert [segment.end_step for segment in run.segments] == [2, 3, 4, 6, 8]
    assert list(run.evaluations()["step"]) == [2, 4, 6, 8]
    assert list(run.evaluations()["epoch"]) == [0, 0, 1, 1]
    assert set(run.evaluations()["split"]) == {"eval"}


@pytest.mark.parametrize(
    "stopped", [pytest.param(3, marks=pytest.mark.slow), 5, pytest.param(7, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_continues_from_the_trainers_checkpoint(
    stopped: int, whole: tuple[str, Any], tmp_path: Path
) -> None:
    uri = str(tmp_path / "run")
    callback = ontogeny.Callback(uri, **FEW)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, dropped(), [callback, stop_after(stopped)], **STEPS).train()
    callback.close()
    model = dropped(seed=1)
    again = trainer(tmp_path, model, [ontogeny.Callback(uri, **FEW)], **STEPS)
    again.train(resume_from_checkpoint=True)
    assert same_weights(model, whole[1])
    assert contents(uri) == contents(whole[0])
    assert verify(Store(uri)) == []


def test_steps_behind_an_older_checkpoint_are_recorded_again(
    whole: tuple[str, Any], tmp_path: Path
) -> None:
    uri = str(tmp_path / "run")
    trainer(tmp_path, dropped(), [ontogeny.Callback(uri, **FEW)], **STEPS).train()
    again = trainer(tmp_path, dropped(seed=1), [ontogeny.Callback(uri, **FEW)], **STEPS)
    again.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    assert contents(uri) == contents(whole[0])
    assert verify(Store(uri)) == []


def test_a_checkpoint_that_the_run_does_not_know_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, llama(), [], **STEPS).train()
    uri = str(tmp_path / "run")
    callback = ontogeny.Callback(uri, **FEW)
    continued = trainer(tmp_path, llama(), [callback], **STEPS)
    with pytest.raises(RunError, match="holds no run, but training continues at step 8"):
        continued.train(resume_from_checkpoint=True)
    trainer(tmp_path / "other", llama(), [ontogeny.Callback(uri, **FEW)], max_steps=4).train()
    with pytest.raises(RunError, match=r"no segment that ends at step 8; .* ends at 4\. Continue"):
        continued.train(resume_from_checkpoint=True)
    with pytest.raises(RunError, match=r"but .* differs from its checkpoint"):
        continued.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4"))


def test_an_existing_run_is_refused_or_replaced(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    trainer(tmp_path, llama(), [ontogeny.Callback(uri, **FEW)], max_steps=2).train()
    with pytest.raises(RunError, match="holds a run already"):
        trainer(tmp_path, llama(), [ontogeny.Callback(uri, **FEW)], max_steps=2).train()
    replacing = ontogeny.Callback(uri, **FEW, overwrite=True)
    trainer(tmp_path, llama(), [replacing], max_steps=1).train()
    assert open_run(uri).steps_done == 1


def test_several_calls_of_train_are_one_run(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    training = trainer(tmp_path, llama(), [ontogeny.Callback(uri, **FEW)], num_train_epochs=1)
    training.train()
    training.train()
    steps = open_run(uri).steps()
    assert list(steps["epoch"]) == [0] * 3 + [1] * 3
    assert sorted_datums(open_run(uri), slice(3, None)) == [*range(13)]
    assert torch.equal(
        open_run(uri).checkpoint()["lm_head.weight"], training.model.lm_head.weight.cpu()
    )


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("steps", marks=pytest.mark.slow),
        pytest.param("epoch", marks=pytest.mark.slow),
        "best",
    ],
)
def test_the_best_model_may_be_loaded_at_the_end(strategy: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    settings = {
        "load_best_model_at_end": True,
        "save_total_limit": 1,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # the first checkpoint will be the best
        "eval_strategy": "epoch" if strategy == "epoch" else "steps",
        "save_strategy": strategy,
        "max_steps": 5,
    }
    training = trainer(tmp_path, llama(), [ontogeny.Callback(uri, **FEW)], **(STEPS | settings))
    training.train()
    run = open_run(uri)
    assert run.steps_done == 5
    assert list(run.evaluations()["step"]) == ([4, 5] if strategy == "epoch" else [2, 4, 5])
    before = run.checkpoint()["lm_head.weight"]
    assert not torch.equal(before, training.model.lm_head.weight)


def test_an_error_of_training_drops_the_open_segment_alone(tmp_path: Path) -> None:
    uri, model = str(tmp_path / "run"), llama()
    callback = ontogeny.Callback(uri, **FEW)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, model, [callback, stop_after(5)]).train()
    callback.close()
    callback.close()
    assert open_run(uri).steps_done == 3
    assert not model._forward_pre_hooks
    assert not Store(uri).exists("lease.json")


HOOKS = {
    "before a forward pass": "capture.custom_loop.recording.Recording._begin_forward",
    "before an update": "capture.custom_loop.recording.Recording._read_step",
    "after an update": "capture.custom_loop.recording.Recording._record_step",
    "with a batch": "ontogeny.trainers.trained_run.datums_of_rows",
    "at a checkpoint": "capture.custom_loop.recording.Recording.commit",
    "at the beginning": "ontogeny.trainers.trained_run.TrainedRun.describe",
}


@pytest.mark.parametrize("place", HOOKS)
def test_a_recording_that_raises_ends_at_once(place: str, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise RunError("here", "is refused")

    monkeypatch.setattr(HOOKS[place], refuse)
    uri, model = str(tmp_path / "run"), llama()
    training = trainer(tmp_path, model, [ontogeny.Callback(uri, **FEW)], **STEPS)
    with pytest.raises(RunError, match="here: is refused"):
        training.train()
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not training.optimizer.optimizer._optimizer_step_pre_hooks
    assert not Store(uri).exists("lease.json")


def test_training_may_start_again_after_an_error(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    callback = ontogeny.Callback(uri, **FULL)
    stop = stop_after(4)
    training = trainer(tmp_path, llama(), [callback, stop], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        training.train()
    training.remove_callback(stop)
    training.train()
    assert open_run(uri).steps_done > 4
