"""The estimated cost of a run equals its actual cost."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from spawned import SETTINGS, capture_datum, on_workers
from tiny import make_run, tiny_config

from analysis.run.run import Run, open_run
from capture.config.records import KINDS
from capture.config.settings import Config
from capture.corpus.datums import load_corpus
from capture.engine.step_plan import StepPlan
from capture.estimates import costs
from capture.estimates.calibration import PLAIN, Calibration, calibrate
from capture.estimates.costs import (
    checkpoint_spacings,
    dense_bytes,
    estimate_costs,
    put_requests,
    training_seconds,
)
from capture.estimates.large_models import (
    ASSUMPTIONS,
    TrainingScale,
    dense_bytes_of,
    estimate_records,
)
from capture.estimates.run_counts import count_run
from capture.format import factor_parts
from capture.store import Store
from capture.store.config import PART_BYTES

EVERYTHING = ("capture.factors.enabled=true", "capture.segment_steps=6", "training.epochs=3")
ADAMW = ("training.learning_rate=0.01", "training.optimizer.kind=adamw")
BY_UNIT = ("capture.outliers.scope=unit", "capture.outliers.k=15")
OPTIMIZERS = {
    "sgd": (),
    "momentum": ("training.learning_rate=0.3", "training.optimizer.momentum=0.9", *BY_UNIT),
    "adamw": (*ADAMW, "training.optimizer.weight_decay=0.1"),
}


def plan_of(config: Config) -> StepPlan:
    return StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))


SLOW = {"sgd"}
"""Variants that differ little from others: for the slow proofs."""
CASES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in OPTIMIZERS
]


@pytest.fixture(scope="module", params=CASES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StepPlan, Calibration, Run]:
    """Return a run with all records, its plan and its calibration."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_config(folder, *EVERYTHING, *OPTIMIZERS[request.param])
    plan = plan_of(config)
    found = calibrate(plan, 0)
    make_run(config)
    return plan, found, open_run(config.run.uri)


def files_of(run: Run) -> tuple[Counter[str], Counter[str]]:
    """Count objects and bytes by kind. run.yaml counts as corpus."""
    objects, sizes = Counter[str](), Counter[str]()
    for marker in (run.start, *run.segments):
        for file in marker.files:
            kind = "corpus" if file.kind == "config" else file.kind
            objects[kind] += 1
            sizes[kind] += file.num_bytes
    for key in run.store.keys("segments"):
        objects["markers"] += 1
        sizes["markers"] += len(run.store.get(key))
    return objects, sizes


def test_objects_are_counted_exactly(made: tuple[StepPlan, Calibration, Run]):
    plan, found, run = made
    objects, _ = files_of(run)
    assert {cost.kind: cost.objects for cost in estimate_costs(plan, found)} == dict(objects)
    assert sum(objects.values()) == len(run.store.keys())


@pytest.mark.parametrize(
    ("segment_steps", "most"),
    [
        pytest.param(5, 10, marks=pytest.mark.slow),
        (8, 3),
        pytest.param(100, 10, marks=pytest.mark.slow),
    ],
)
def test_factor_tables_are_counted_as_they_are_cut(segment_steps, most, tmp_path, monkeypatch):
    """14 steps of 4 datums, in segments whose last one is shorter."""
    monkeypatch.setattr(factor_parts, "PART_ROWS", most)
    settings = ("training.epochs=1", f"capture.segment_steps={segment_steps}")
    config = tiny_config(tmp_path, *EVERYTHING, *settings)
    plan = plan_of(config)
    foreseen = {cost.kind: cost.objects for cost in estimate_costs(plan, calibrate(plan, 0))}
    make_run(config)
    assert foreseen == dict(files_of(open_run(config.run.uri))[0])


def test_each_worker_has_its_own_tables(made: tuple[StepPlan, Calibration, Run], tmp_path: Path):
    """A table holds twelve datums: three steps of one process, or six steps of each of two
    workers."""
    _, found, _ = made
    larger = replace(found, factor_row_bytes=factor_parts.PART_BYTES // 12)
    alone, both = (
        {cost.kind: cost.objects for cost in estimate_costs(plan, larger)}
        for count in (1, 2)
        for plan in [plan_of(tiny_config(tmp_path, *EVERYTHING, f"workers.count={count}"))]
    )
    assert (alone["outliers"], both["outliers"]) == (7, 14)
    assert (alone["factors"], both["factors"]) == (14, 14)
    assert alone | {"outliers": 14} == both


def test_segments_that_are_left_out_cost_nothing(
    made: tuple[StepPlan, Calibration, Run], tmp_path: Path
):
    _, found, _ = made
    whole, part = (
        {cost.kind: cost for cost in estimate_costs(plan, found)}
        for settings in ((), ("capture.outliers.steps=[0-7]", "capture.factors.steps=[99-200]"))
        for plan in [plan_of(tiny_config(tmp_path, *EVERYTHING, *settings))]
    )
    share = part["outliers"].objects / whole["outliers"].objects
    assert 0 < share < 1
    assert part["outliers"].num_bytes == pytest.approx(whole["outliers"].num_bytes * share, rel=0.2)
    assert part["outliers"].step_seconds <= whole["outliers"].step_seconds
    assert (part["factors"].objects, part["factors"].num_bytes) == (0, 0)
    assert part["tallies"] == whole["tallies"]


@pytest.mark.slow
def test_objects_of_all_workers_are_counted(tmp_path: Path):
    settings = ("training.epochs=1", "workers.count=2")
    plan = plan_of(tiny_config(tmp_path, *SETTINGS["datum"], *settings))
    foreseen = {cost.kind: cost.objects for cost in estimate_costs(plan, calibrate(plan, 0))}
    on_workers(2, capture_datum, tmp_path)
    assert foreseen == dict(files_of(open_run(plan.config.run.uri))[0])


def test_bytes_are_estimated(made: tuple[StepPlan, Calibration, Run]):
    plan, found, run = made
    _, sizes = files_of(run)
    foreseen = {cost.kind: cost.num_bytes for cost in estimate_costs(plan, found)}
    assert foreseen["checkpoints"] == sizes["checkpoints"]
    for kind in ("outliers", "factors", "tallies", "steps", "corpus", "markers"):
        assert foreseen[kind] == pytest.approx(sizes[kind], rel=0.15), kind
    assert sum(foreseen.values()) == pytest.approx(sum(sizes.values()), rel=0.1)


def test_memory_counts_tables_being_packed_and_a_checkpoint_twice(
    made: tuple[StepPlan, Calibration, Run],
):
    plan, found, run = made
    alone, one, eight = (
        {
            cost.kind: cost.memory_bytes
            for cost in estimate_costs(plan, replace(found, packing_threads=packers))
        }
        for packers in (0, 1, 8)
    )
    largest = 6 * 4 * found.factor_row_bytes
    assert 4 * largest < alone["factors"] == one["factors"] < eight["factors"] < 40 * largest
    (checkpoint,) = run.segments[-1].files_of("checkpoints")
    assert alone["checkpoints"] == 2 * checkpoint.num_bytes


def test_calibration_writes_nothing(tmp_path: Path):
    config = tiny_config(tmp_path)
    calibrate(plan_of(config), 0)
    assert Store(config.run.uri).keys() == []
    assert not (tmp_path / "run").exists()


def test_records_that_are_off_are_estimated_too(made: tuple[StepPlan, Calibration, Run], tmp_path):
    plan = plan_of(tiny_config(tmp_path, "capture.record=checkpoints", *EVERYTHING[1:]))
    foreseen = estimate_costs(plan, calibrate(plan, 0))
    others = {cost.kind: cost.objects for cost in estimate_costs(*made[:2])}
    assert {cost.kind: cost.objects for cost in foreseen} == others
    assert [cost.kind for cost in foreseen if not costs.is_recorded(plan, cost.kind)] == [*KINDS]


def test_the_counts_of_a_run_follow_from_its_plan(made: tuple[StepPlan, Calibration, Run]):
    plan, found, run = made
    course = count_run(plan)
    assert (course.steps, course.segments) == (run.num_steps, len(run.segments))
    assert course.datums == run.num_steps * 4
    assert course.evaluated == 3 * len(run.datum_table("validation"))
    assert dense_bytes(course, found) == 4 * run.layout.size * course.datums
    assert set(found.step_seconds) >= {PLAIN, plan.config.capture.kinds}


def test_training_time_adds_steps_evaluations_and_windows(
    made: tuple[StepPlan, Calibration, Run], tmp_path: Path
):
    plan, found, run = made
    known = replace(found, recorded_seconds=1.0, evaluation_seconds=0.01, window_seconds=7.0)
    evaluated = 3 * len(run.datum_table("validation"))
    rows = sum(file.rows or 0 for marker in run.segments for file in marker.files_of("tallies"))
    seen = sum(file.rows or 0 for file in found.segments[1] if file.kind == "tallies")
    wanted = run.num_steps + 0.01 * evaluated + 7.0 * rows / seen
    assert training_seconds(plan, known) == pytest.approx(wanted)
    bare = plan_of(tiny_config(tmp_path, *EVERYTHING, "capture.tally.enabled=false"))
    assert training_seconds(bare, known) == pytest.approx(run.num_steps + 0.01 * evaluated)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("capture.record=checkpoints",),
        ("capture.record=checkpoints", *OPTIMIZERS["adamw"]),
        ("capture.segment_steps=1",),
    ],
)
def test_recording_is_timed_for_all_settings(settings: tuple[str, ...], tmp_path: Path):
    found = calibrate(plan_of(tiny_config(tmp_path, *settings)), 0)
    assert found.recorded_seconds >= found.step_seconds[PLAIN]
    assert found.window_seconds >= 0


def test_checkpoints_farther_apart_take_less_space_and_longer_replays(
    made: tuple[StepPlan, Calibration, Run],
):
    plan, found, run = made
    near, far = checkpoint_spacings(plan, found, [2, 20])
    assert near.num_bytes > far.num_bytes
    assert near.reach_seconds < far.reach_seconds
    (own,) = checkpoint_spacings(plan, found, [plan.config.capture.segment_steps])
    assert own.num_bytes == files_of(run)[1]["checkpoints"]


@pytest.mark.parametrize(
    ("num_bytes", "requests"),
    [(0, 1), (2 * PART_BYTES, 1), (2 * PART_BYTES + 1, 5), (10 * PART_BYTES, 12)],
)
def test_large_objects_are_written_in_parts(num_bytes: int, requests: int):
    assert put_requests(num_bytes) == requests


# --- of any size ----------------------------------------------------------------------------------

GPT3 = TrainingScale(175e9, 700e9, window=1000, gpus=1024)
"""The study's example."""


def test_dense_estimates_equal_those_of_the_study():
    """The study estimates 490 exabytes for GPT-3, and 4 bytes per parameter and datum for
    itself."""
    assert dense_bytes_of(GPT3) == pytest.approx(490e18)
    own = TrainingScale(1e6, 1e6, window=35, gpus=1)
    assert dense_bytes_of(own) == pytest.approx(4 * 1e6 * 1e6 / 35)


def test_gpt_3_has_96_layers_and_records_in_order_of_size():
    layers = (175e9 / (12 * ASSUMPTIONS.width_per_layer**2)) ** (1 / 3)
    assert round(layers) == 96
    sizes = {estimate.kind: estimate.num_bytes for estimate in estimate_records(GPT3)}
    assert sizes["outliers"] < sizes["checkpoints"] < sizes["factors"] < sizes["dense"]


@pytest.mark.parametrize("kind", ["outliers", "factors", "dense"])
def test_twice_the_tokens_take_twice_the_bytes(kind: str):
    double = TrainingScale(175e9, 1400e9, window=1000, gpus=1024)
    once, twice = (
        next(e.num_bytes for e in estimate_records(scale) if e.kind == kind)
        for scale in (GPT3, double)
    )
    assert twice == pytest.approx(2 * once)
