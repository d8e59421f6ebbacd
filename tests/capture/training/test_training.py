"""Laws 1, 3, 5 and 7 on whole runs: audited, reproducible, resumable, and never half visible."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from reference import top_k
from tiny import contents, make_run, read_outliers, tiny_config
from torch.nn import functional as F

from capture.engine import evaluation
from capture.engine.build import build_engine
from capture.engine.evaluation import Evaluation
from capture.engine.observer import to_device
from capture.errors import AuditError, ConfigError, RunError, StoreError, UnitError
from capture.format.chain import read_segments
from capture.format.checkpoint import read_checkpoint
from capture.format.markers import segment_key
from capture.gradients.layout import Layout
from capture.gradients.torch_functions import READERS
from capture.maintenance.verify import verify
from capture.store import Store
from capture.training import loop as training
from capture.training.loop import Event, Progress


class Stopped(Exception):
    """Raised by a test to stop a capture from outside."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("whole")
    make_run(tiny_config(folder))
    return folder / "run"


def stop_after(steps: int) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == steps:
            raise Stopped

    return report


def steps_table(run: Path):
    return parquet.read_table(str(run / "steps")).to_pandas()


def test_every_step_is_audited_and_recorded(whole):
    steps = steps_table(whole)
    assert steps["step"].tolist() == list(range(len(steps)))
    assert len(steps) == 28
    assert (steps["audit_error"] < 1e-5).all()
    assert (steps["audit_error"] > 0).all()
    assert steps["learning_rate"].unique().tolist() == [5.0, 5.0 * 0.95]
    np.testing.assert_allclose(
        steps["clip"], np.minimum(1, 0.5 / (steps["gradient_norm"] + 1e-6)), rtol=1e-6
    )
    assert steps["loss"].iloc[-5:].mean() < steps["loss"].iloc[:5].mean()


def test_an_epoch_visits_every_datum_at_most_once(whole):
    for _, epoch in steps_table(whole).groupby("epoch"):
        datums = np.concatenate(epoch["datums"].tolist())
        assert len(set(datums)) == len(datums) == 4 * 14


def test_outliers_are_the_largest_shifts_and_name_their_datum(whole):
    rows = read_outliers(str(whole)).to_pandas()
    assert len(rows) == 28 * 4 * 30
    steps = steps_table(whole).set_index("step")
    for step, slot, datum in set(zip(rows["step"], rows["slot"], rows["datum"], strict=True)):
        assert steps.loc[step, "datums"][slot] == datum
    assert rows.groupby(["step", "slot"]).size().eq(30).all()
    assert rows["position"].between(0, 7).all()


def test_a_shard_is_sorted_by_unit_index_step_and_slot(whole):
    for path in sorted((whole / "outliers").iterdir()):
        rows = parquet.read_table(str(path)).to_pandas().astype({"unit": str})
        keys = list(rows[["unit", "index", "step", "slot"]].itertuples(index=False, name=None))
        assert keys == sorted(keys)


def make_plan(folder: Path, *overrides: str) -> training.StepPlan:
    config = tiny_config(folder, *overrides)
    corpus = training.load_corpus(config.corpus, batch=config.training.batch)
    return training.StepPlan(config, corpus)


def test_recorded_outliers_are_the_top_k_of_a_dense_second_telling(whole, tmp_path):
    """The first step again, one datum and one backward pass at a time."""
    plan = make_plan(tmp_path)
    engine = build_engine(plan, plan.config.capture.kinds)
    planned = next(plan.planned_steps(0))
    token_NT, target_NT = to_device(plan.corpus.train, engine.device)
    datum_N = torch.from_numpy(planned.datum_N)
    rows = []
    for slot, datum in enumerate(datum_N):
        masks = engine.masks([slot], 0, 8)
        logits = engine.model(token_NT[datum : datum + 1], masks)
        loss = torch.nn.functional.cross_entropy(logits[0], target_NT[datum], reduction="sum")
        grads = torch.autograd.grad(loss / (4 * 8), list(engine.units.values()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    step = steps_table(whole).iloc[0]
    shift_NP = torch.stack(rows).numpy() * -(step["learning_rate"] * step["clip"])
    found = read_outliers(str(whole)).to_pandas().query("step == 0")
    offsets = dict(zip(engine.units, Layout.of(engine.units).offsets, strict=False))
    column = found["index"] + found["unit"].astype(str).map(offsets)
    pairs = sorted(zip(found["slot"].tolist(), column.tolist(), strict=True))
    assert pairs == top_k(shift_NP, 30)
    np.testing.assert_allclose(found["shift"], shift_NP[found["slot"], column], rtol=1e-3)


def test_the_same_configuration_gives_the_same_bytes(whole, tmp_path):
    make_run(tiny_config(tmp_path))
    assert contents(str(tmp_path / "run")) == contents(str(whole))


def test_another_seed_gives_another_run(whole, tmp_path):
    make_run(tiny_config(tmp_path, "run.seed=1"))
    assert contents(str(tmp_path / "run")) != contents(str(whole))


@pytest.mark.parametrize("segment_steps", [1, 5, 28, 100])
def test_rows_do_not_depend_on_the_length_of_segments(whole, tmp_path, segment_steps):
    make_run(tiny_config(tmp_path, f"capture.segment_steps={segment_steps}"))
    order = [(name, "ascending") for name in ("step", "slot", "unit", "index")]
    wanted, found = (
        read_outliers(str(run)).to_pandas().astype({"unit": str}).sort_values([n for n, _ in order])
        for run in (whole, tmp_path / "run")
    )
    np.testing.assert_array_equal(found.to_numpy(), wanted.to_numpy())
    last = read_checkpoint(Store(str(tmp_path / "run")), 28)
    for name, tensor in read_checkpoint(Store(str(whole)), 28).items():
        assert torch.equal(tensor, last[name])


@pytest.mark.parametrize("steps", [1, 8, 9, 23, 27])
def test_a_resumed_run_equals_one_that_was_never_stopped(whole, tmp_path, steps):
    config = tiny_config(tmp_path)
    with pytest.raises(Stopped):
        training.capture_run(config, stop_after(steps))
    assert len(read_segments(Store(config.run.uri))) == steps // 8
    make_run(config, resume=True)
    assert contents(config.run.uri) == contents(str(whole))
    assert verify(Store(config.run.uri)) == []


def test_a_rerun_of_a_finished_run_changes_nothing(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    config = tiny_config(tmp_path, f"corpus.path={whole.parent / 'text.txt'}")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert make_run(config, resume=True) == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_an_existing_run_is_refused_and_replaced_with_overwrite(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    config = tiny_config(tmp_path, "run.seed=1")
    before = contents(config.run.uri)
    with pytest.raises(RunError, match=r"holds a run already\. Add --resume to go on with it or"):
        make_run(config)
    with pytest.raises(RunError, match=r"was made with another configuration \(run\.seed: 0 → 1"):
        make_run(config, resume=True)
    assert contents(config.run.uri) == before
    make_run(config, overwrite=True)
    assert contents(config.run.uri) != before
    assert verify(Store(config.run.uri)) == []


def test_a_folder_that_is_not_a_run_is_never_changed(tmp_path):
    config = tiny_config(tmp_path)
    precious = Path(config.run.uri) / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match="is not a run and not empty"):
            make_run(config, **options)
    assert precious.read_text() == "years of work"
    assert list(precious.parent.iterdir()) == [precious]


def test_an_error_found_late_leaves_the_old_run_in_place(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    before = contents(str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="'nothing' matches no parameter"):
        make_run(tiny_config(tmp_path, "capture.units=[nothing]"), overwrite=True)
    monkeypatch.delitem(READERS, F.embedding)
    with pytest.raises(UnitError, match=r"encoder\.weight: is used by embedding, which capture"):
        make_run(tiny_config(tmp_path, "capture.units=['*']"), overwrite=True)
    assert contents(str(tmp_path / "run")) == before


def test_another_text_is_not_resumed(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    config = tiny_config(tmp_path, f"corpus.path={whole.parent / 'text.txt'}")
    (whole.parent / "text.txt").write_text("other words " * 400)
    try:
        with pytest.raises(RunError, match="was made with another text"):
            make_run(config, resume=True)
    finally:
        tiny_config(whole.parent)


def test_an_unexplained_change_of_a_weight_stops_the_training(tmp_path, monkeypatch):
    """A captured weight is changed outside the optimizer."""
    original = training.Engine.step

    def step_with_change(self, *args, step, **kwargs):
        done = original(self, *args, step=step, **kwargs)
        if step == 9:
            with torch.no_grad():
                self.units["layers.0.linear1.weight"][2, 3] += 1e-3
        return done

    monkeypatch.setattr(training.Engine, "step", step_with_change)
    config = tiny_config(tmp_path)
    with pytest.raises(AuditError, match=r"step 9: shifts miss the applied change by .* of it"):
        make_run(config)
    assert [m.end_step for m in read_segments(Store(config.run.uri))] == [8]


def test_diverged_training_is_reported_as_such(tmp_path):
    config = tiny_config(tmp_path, "training.learning_rate=1e30", "training.clip=1e30")
    with pytest.raises(AuditError, match="training has diverged"):
        make_run(config)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_loss_positions_change_the_record_and_not_the_training(whole, tmp_path, positions):
    make_run(tiny_config(tmp_path, f"capture.loss_positions={positions}"))
    steps = steps_table(tmp_path / "run")
    assert (steps["audit_error"] < 1e-5).all()
    assert steps["loss"].tolist() == steps_table(whole)["loss"].tolist()
    same = contents(str(tmp_path / "run")) == contents(str(whole))
    assert same == (positions == "all")


def test_the_step_scope_keeps_k_rows_a_step(tmp_path):
    make_run(tiny_config(tmp_path, "capture.outliers.scope=step"))
    rows = read_outliers(str(tmp_path / "run")).to_pandas()
    assert rows.groupby("step").size().eq(30).all()


def test_more_outliers_than_parameters_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"k: got 9999999, must be at most \d+, the number of"):
        make_run(tiny_config(tmp_path, "capture.outliers.k=9999999"))
    assert not (tmp_path / "run").exists()


def test_progress_and_held_out_loss_are_reported(tmp_path):
    reports = make_run(tiny_config(tmp_path))
    steps = [r for r in reports if isinstance(r, Progress)]
    assert [r.steps_done for r in steps] == list(range(1, 29))
    assert {r.num_steps for r in steps} == {28}
    assert steps[-1].rows == 28 * 4 * 30
    size = sum(f.num_bytes for m in read_segments(Store(str(tmp_path / "run"))) for f in m.files)
    assert steps[-1].stored_bytes == size
    evaluations = [r for r in reports if isinstance(r, Evaluation)]
    assert [(r.step, r.split) for r in evaluations] == [(14, "validation"), (28, "validation")]
    stored = parquet.read_table(str(tmp_path / "run" / "evaluations")).to_pandas()
    assert stored["loss"].tolist() == [r.loss for r in evaluations]
    np.testing.assert_allclose(stored["perplexity"], np.exp(stored["loss"]))


def test_a_loss_with_infinite_perplexity_is_recorded(tmp_path, monkeypatch):
    scores = evaluation.Scores(800.0, accuracy=0.0, datum_accuracy=0.0)
    monkeypatch.setattr(evaluation, "score", lambda *_, **options: scores)
    reports = make_run(tiny_config(tmp_path, "training.epochs=1"))
    assert [r.perplexity for r in reports if isinstance(r, Evaluation)] == [np.inf]
    stored = parquet.read_table(str(tmp_path / "run" / "evaluations")).to_pandas()
    assert stored[["loss", "perplexity"]].to_numpy().tolist() == [[800.0, np.inf]]


def test_an_error_of_the_store_stops_the_training(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    original = Store.put

    def failing(self, key, data):
        if key == segment_key(1):
            raise StoreError(key, "cannot be written: the disk is full")
        original(self, key, data)

    monkeypatch.setattr(Store, "put", failing)
    with pytest.raises(StoreError, match="the disk is full"):
        make_run(config)
    monkeypatch.undo()
    assert [m.end_step for m in read_segments(Store(config.run.uri))] == [8]
    make_run(config, resume=True)
    assert verify(Store(config.run.uri)) == []
