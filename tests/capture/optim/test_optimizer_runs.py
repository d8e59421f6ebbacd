"""Whole runs with optimizers other than plain SGD: audit, resumption, and detected errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from tiny import contents, make_run, read_outliers, tiny_config

from analysis.run.run import open_run
from capture.config.settings import Config
from capture.errors import AuditError, ConfigError, RunError, ShardError
from capture.format.chain import read_segments
from capture.format.checkpoint import encode, read_checkpoint, split_checkpoint
from capture.format.markers import File, Marker, segment_key, write_marker
from capture.maintenance.verify import verify
from capture.optim import optimizer
from capture.store import Store
from capture.training import loop as training
from capture.training.loop import Event, Progress

MOMENTUM = ("training.learning_rate=0.3", "training.optimizer.momentum=0.9")
ADAMW = (
    *("training.learning_rate=0.01", "training.optimizer.kind=adamw"),
    *("training.optimizer.weight_decay=0.1", "training.schedule.kind=cosine"),
)
VARIANTS = {
    "momentum": MOMENTUM,
    "nesterov": (*MOMENTUM, "training.optimizer.nesterov=true", "training.accumulate=2"),
    "adamw": ADAMW,
    "bfloat16": (*ADAMW, "training.precision=bfloat16"),
}


class Stopped(Exception):
    """Raised by a test to stop a capture."""


SLOW = {"momentum"}
"""Variants that differ little from others: for the slow proofs."""
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in VARIANTS]


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """Return a finished run, which must not be changed, and its settings."""
    folder = tmp_path_factory.mktemp(request.param)
    make_run(tiny_config(folder, *VARIANTS[request.param]))
    return folder / "run", VARIANTS[request.param]


def stop_after(config: Config, steps: int) -> None:
    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == steps:
            raise Stopped

    with pytest.raises(Stopped):
        training.capture_run(config, report)


def steps_table(run: Path):
    return parquet.read_table(str(run / "steps")).to_pandas()


@pytest.mark.parametrize("steps", [9, pytest.param(23, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_one_that_was_never_stopped(whole, tmp_path, steps):
    run, settings = whole
    config = tiny_config(tmp_path, *settings)
    stop_after(config, steps)
    make_run(config, resume=True)
    assert contents(config.run.uri) == contents(str(run))
    assert verify(Store(config.run.uri)) == []


def test_a_run_learns_and_has_all_outliers(whole):
    run, _ = whole
    steps = steps_table(run)
    assert steps["loss"].iloc[-5:].mean() < steps["loss"].iloc[:5].mean() - 0.1
    assert len(read_outliers(str(run))) == 28 * 4 * 30


def test_analysis_reads_the_weights_and_ignores_optimizer_state(whole):
    run, _ = whole
    opened = open_run(str(run))
    kept = read_checkpoint(Store(str(run)), 16)
    weights = dict(opened.model(16).named_parameters())
    assert any(name.startswith("optimizer/") for name in kept)
    assert not any(name.startswith("optimizer/") for name in read_checkpoint(Store(str(run)), 0))
    assert all(torch.equal(weight, kept[name]) for name, weight in weights.items())


def test_checkpoints_of_plain_sgd_hold_weights_only(tmp_path):
    make_run(tiny_config(tmp_path))
    store = Store(str(tmp_path / "run"))
    assert set(read_checkpoint(store, 28)) == set(open_run(store.uri).model().state_dict())


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
def test_micro_batches_change_nothing_but_rounding(tmp_path, variant):
    settings = (*VARIANTS.get(variant, ()), "capture.segment_steps=4", "training.epochs=1")
    tables = []
    for accumulate in (1, 2, 4):
        name = f"by{accumulate}"
        extra = (*settings, f"training.accumulate={accumulate}")
        make_run(tiny_config(tmp_path, *extra, name=name))
        rows = read_outliers(str(tmp_path / name)).to_pandas().astype({"unit": str})
        keys = ["step", "slot", "unit", "index"]
        first = rows[rows["step"] < 3].set_index(keys)["shift"]
        tables.append(first.to_dict())
    for table in tables[1:]:
        both = tables[0].keys() & table.keys()
        assert len(both) > 0.98 * len(tables[0])  # the k-th and the next may change places
        found, wanted = (np.array([one[key] for key in both]) for one in (table, tables[0]))
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-6)


def test_update_norm_is_in_units_of_the_learning_rate_times_the_gradient(tmp_path):
    """The first gradients of both runs are equal, and tallies ignore the preconditioner."""
    few = ("training.epochs=1", "capture.tally.window_steps=1", "training.learning_rate=0.01")
    make_run(tiny_config(tmp_path, *few, name="sgd"))
    make_run(tiny_config(tmp_path, *few, "training.optimizer.kind=adam", name="adam"))
    folder = "tallies/unit=layers.1.linear2.weight/by=target/window-0000.parquet"
    sgd, adam = (parquet.read_table(str(tmp_path / n / folder)) for n in ("sgd", "adam"))
    assert sgd.equals(adam)
    shifts = [read_outliers(str(tmp_path / n)).to_pandas()["shift"] for n in ("sgd", "adam")]
    assert not np.allclose(*shifts)


# --- what stops a run -----------------------------------------------------------------------------


def change_a_weight(monkeypatch) -> None:
    original = training.Engine.step

    def changing(self, *args, step, **kwargs):
        done = original(self, *args, step=step, **kwargs)
        if step == 9:
            with torch.no_grad():
                self.units["layers.0.linear1.weight"][2, 3] += 1e-3
        return done

    monkeypatch.setattr(training.Engine, "step", changing)


def change_a_gradient(monkeypatch) -> None:
    """Change it as a penalty term would, which is due to no datum."""
    original = training.Engine.gradients

    def adding(self, token_NT, target_NT, step):
        done = original(self, token_NT, target_NT, step)
        if step == 9:
            self.units["layers.0.linear1.weight"].grad *= 1.01
        return done

    monkeypatch.setattr(training.Engine, "gradients", adding)


def clear_the_optimizer_s_state(monkeypatch) -> None:
    original = training.Engine.step

    def forgetting(self, *args, step, **kwargs):
        done = original(self, *args, step=step, **kwargs)
        if step == 8:
            self.optimizer.state.clear()
        return done

    monkeypatch.setattr(training.Engine, "step", forgetting)


def change_the_formula(monkeypatch) -> None:
    original = optimizer.first_moment_weight
    monkeypatch.setattr(optimizer, "first_moment_weight", lambda config: original(config) * 0.999)


@pytest.mark.parametrize(
    ("variant", "disturb", "step"),
    [
        *((variant, change_a_weight, 9) for variant in VARIANTS),
        *((variant, change_a_gradient, 9) for variant in VARIANTS),
        *((variant, change_the_formula, 1) for variant in VARIANTS),
        ("adamw", clear_the_optimizer_s_state, 9),
    ],
)
def test_a_change_that_no_datum_accounts_for_stops_training(
    tmp_path, monkeypatch, variant, disturb, step
):
    disturb(monkeypatch)
    config = tiny_config(tmp_path, *VARIANTS[variant])
    with pytest.raises(AuditError, match=rf"step {step}: shifts miss the applied change by"):
        make_run(config)
    assert [m.end_step for m in read_segments(Store(config.run.uri))] == [8] * (step > 8)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rate", ["1e19", "1e30"])
def test_divergence_is_reported_as_such(tmp_path, variant, rate):
    late = (f"training.learning_rate={rate}", "training.clip=1e30")
    with pytest.raises(AuditError, match="training has diverged"):
        make_run(tiny_config(tmp_path, *VARIANTS[variant], *late))


def test_a_checkpoint_without_optimizer_state_is_not_resumed(tmp_path):
    config = tiny_config(tmp_path, *ADAMW)
    stop_after(config, 9)
    store = Store(config.run.uri)
    (marker,) = read_segments(store)
    key = "checkpoints/step-000008.safetensors"
    weights = optimizer_free(read_checkpoint(store, 8))
    store.put(key, weights)
    kept = [file for file in marker.files if file.key != key]
    files = (*kept, File.of(key, "checkpoints", weights))
    write_marker(store, segment_key(0), Marker(0, 8, files))
    problem = r"step-000008\.safetensors: lacks optimizer/exp_avg/decoder\.bias\. Run: ontogeny ver"
    with pytest.raises(ShardError, match=problem):
        make_run(config, resume=True)


def optimizer_free(tensors: dict[str, torch.Tensor]) -> bytes:
    return encode(split_checkpoint(tensors)[0])


def test_another_optimizer_is_another_configuration(tmp_path):
    stop_after(tiny_config(tmp_path), 9)
    with pytest.raises(RunError, match=r"training\.optimizer\.kind: sgd → adamw"):
        make_run(tiny_config(tmp_path, "training.optimizer.kind=adamw"), resume=True)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("training.accumulate=3", "training.accumulate: got 3, must divide training.batch = 4."),
        ("training.accumulate=0", "training.accumulate: got 0, must be at least 1."),
        (
            "training.precision=float16",
            "training.precision: got 'float16', must be one of float32, bfloat16.",
        ),
        (
            "training.optimizer.kind=lion",
            "training.optimizer.kind: got 'lion', must be one of sgd, adam, adamw, other.",
        ),
        (
            "training.optimizer.nesterov=true",
            "training.optimizer.nesterov: got true without momentum.",
        ),
        (
            "training.optimizer=adam",
            "training.optimizer: got 'adam', must be a group of keys: kind, momentum, ",
        ),
    ],
)
def test_an_invalid_override_is_explained(tmp_path, override, text):
    with pytest.raises(ConfigError) as caught:
        tiny_config(tmp_path, override)
    assert str(caught.value).startswith(text)
