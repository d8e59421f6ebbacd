"""The benchmark of linearity: slow training responds as its derivative says, unstable does not."""

import pytest
from tiny_run import make_run

from benchmarks.linearity import measure
from capture.errors import ConfigError
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.store import Store

SETTINGS = (
    *("training.epochs=1", "training.batch=8", "model.dropout=0", "training.clip=1000"),
    *("model.layers=1", "model.width=8", "model.hidden=8", "capture.outliers.k=5"),
)


def run_at(learning_rate: float, *more: str) -> ReplayableRun:
    settings = (*SETTINGS, f"training.learning_rate={learning_rate}", *more)
    return read_replayable_run(Store(make_run("memory://linearity", *settings)))


def test_small_steps_respond_as_the_derivative_says() -> None:
    *_, last = measure(run_at(1e-3), 6, [1e-7])
    assert last.cosine > 0.999
    assert last.removal == pytest.approx(last.predicted_removal, rel=0.02)
    assert last.growth["1e-07"] == pytest.approx(last.predicted_growth, rel=1e-4)


def test_the_first_step_is_linear_in_the_weights_of_the_datums() -> None:
    first, *_, last = measure(run_at(3.0), 6, [])
    assert first.removal == pytest.approx(first.predicted_removal)
    assert first.cosine == pytest.approx(1)
    assert last.cosine < 0.99


def test_other_optimizers_are_refused() -> None:
    run = run_at(1e-3, "training.optimizer.kind=adam")
    with pytest.raises(ConfigError, match="Wanted: plain sgd, and clip above 100"):
        measure(run, 2, [])
