"""The scale model: limits that can be derived by hand, and independence of certain inputs.

The costs in these tests are round numbers; ``benchmarks.scale.costs`` reads the measured ones.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale.analysis import predict_attribution
from benchmarks.scale.measured import measured_tables
from benchmarks.scale.model import (
    KINDS,
    Assumed,
    Kind,
    Measured,
    gpus_per_replica,
    predict,
    record_bytes,
    replay_days,
)
from benchmarks.scale.tables import ASSUMPTIONS, SOURCES, clock, size, tables, with_tables
from benchmarks.scale.workloads import GPT3, SEVEN, SMALL, STUDY, transformer
from capture.models.transformer import LanguageModel, ModelConfig

MEASURED = Measured(
    recording={"outliers": 0.2, "tallies": 0.02, "factors": 0.0, "checkpoints": 0.0, "dense": 0.1},
    outlier_bytes=7.5,
    factor_share=0.7,
    rows_per_core_second=1e7,
    shard_seconds=0.02,
    task_seconds=0.001,
)
ASSUMED = Assumed()
ENDLESS = dataclasses.replace(
    ASSUMED,
    node_store_bytes_per_second=1e30,
    store_bytes_per_second=1e30,
    put_per_prefix_second=1e30,
    network_bytes_per_second=1e30,
    latency_seconds=0.0,
    step_seconds=0.0,
)
"""Only arithmetic costs time."""
WORKLOADS = (STUDY, SMALL, SEVEN, GPT3)
kinds = st.sampled_from(KINDS)
workloads = st.sampled_from(WORKLOADS)
gpus = st.integers(7, 13).map(lambda power: 2**power)


# --- what is stored -------------------------------------------------------------------------------


def test_the_dense_record_is_the_study_s_own_estimate() -> None:
    assert record_bytes(GPT3, "dense", MEASURED) == pytest.approx(490e18, rel=0.02)
    assert record_bytes(STUDY, "dense", MEASURED) == pytest.approx(850e9, rel=0.01)


def test_the_workload_of_the_study_has_the_sizes_of_the_trained_model() -> None:
    shape = ModelConfig(layers=3, width=200, hidden=200, heads=4)
    with torch.device("meta"):
        named = dict(LanguageModel(shape, vocabulary=28_782, window=35).named_parameters())
    sizes = {name: weight.numel() for name, weight in named.items()}
    assert sum(sizes.values()) == STUDY.parameters
    assert sum(n for name, n in sizes.items() if name.startswith("layers.")) == STUDY.captured
    assert STUDY.steps == 5 * 58_560 // 20
    assert STUDY.token_floats * 35 == 210_000


@given(work=workloads, kind=kinds, more=st.integers(2, 50))
def test_all_records_but_tallies_grow_with_the_datums(work, kind: Kind, more: int) -> None:
    longer = dataclasses.replace(work, datums=work.datums * more)
    ratio = record_bytes(longer, kind, MEASURED) / record_bytes(work, kind, MEASURED)
    assert ratio == pytest.approx(1 if kind == "tallies" else more, rel=0.02)


def test_factors_are_smaller_than_dense_gradients_for_short_windows() -> None:
    def share(window: int) -> float:
        work = transformer(
            "x",
            layers=2,
            width=512,
            hidden=2048,
            vocabulary=100,
            tokens=1e9,
            window=window,
            batch=8,
        )
        sizes = [record_bytes(work, kind, MEASURED) for kind in ("factors", "dense")]
        return sizes[0] / sizes[1]

    assert share(16) < 0.1
    assert share(32) == pytest.approx(2 * share(16), rel=0.01)


# --- training -------------------------------------------------------------------------------------


@given(work=workloads, kind=kinds)
def test_twice_the_gpus_halve_the_time_if_only_arithmetic_costs_time(work, kind: Kind) -> None:
    """This holds while all replicas have the same number of slots."""
    replica = gpus_per_replica(work, ENDLESS)
    one, two = (predict(work, kind, n * replica, MEASURED, ENDLESS) for n in (1, 2))
    assert two.step_seconds == pytest.approx(one.step_seconds / 2)
    flops = work.batch * work.datum_flops * (1 + MEASURED.recording[kind])
    assert one.step_seconds == pytest.approx(flops / (replica * ENDLESS.gpu_flops))


@given(work=workloads, kind=kinds, gpus=gpus)
def test_a_step_is_never_faster_than_any_of_its_parts(work, kind: Kind, gpus: int) -> None:
    found = predict(work, kind, gpus, MEASURED, ASSUMED)
    parts = [value for name, value in vars(found).items() if name.endswith("_seconds")]
    assert found.step_seconds >= max(parts)
    assert found.step_seconds <= sum(parts)


@given(work=workloads, kind=kinds, gpus=gpus)
def test_a_faster_store_never_makes_a_step_slower(work, kind: Kind, gpus: int) -> None:
    wide = dataclasses.replace(ASSUMED, prefixes=16, store_bytes_per_second=1e14)
    before = predict(work, kind, gpus, MEASURED, ASSUMED)
    after = predict(work, kind, gpus, MEASURED, wide)
    assert after.step_seconds <= before.step_seconds


@given(work=workloads, gpus=gpus)
def test_no_record_is_faster_than_checkpoints_alone(work, gpus) -> None:
    seconds = {kind: predict(work, kind, gpus, MEASURED, ENDLESS).step_seconds for kind in KINDS}
    assert min(seconds.values()) == seconds["checkpoints"]
    real = {kind: predict(work, kind, gpus, MEASURED, ASSUMED).step_seconds for kind in KINDS}
    assert real["checkpoints"] <= min(real.values())


def test_gpus_without_slots_do_not_shorten_a_step() -> None:
    at = [predict(STUDY, "outliers", gpus, MEASURED, ENDLESS) for gpus in (20, 40, 4096)]
    assert [found.replicas for found in at] == [20, 20, 20]
    assert len({found.step_seconds for found in at}) == 1


def test_a_single_replica_takes_no_time_for_the_all_reduce() -> None:
    assert predict(STUDY, "outliers", 1, MEASURED, ASSUMED).all_reduce_seconds == 0
    assert predict(STUDY, "outliers", 2, MEASURED, ASSUMED).all_reduce_seconds > 0


def test_too_few_gpus_for_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"GPT-3 needs 66 GPUs to hold it, got 8"):
        predict(GPT3, "outliers", 8, MEASURED, ASSUMED)


def test_the_part_that_is_made_slow_becomes_the_bottleneck() -> None:
    slow = {
        "training": {"gpu_flops": 1e9},
        "all-reduce": {"network_bytes_per_second": 1.0},
        "store bandwidth": {"store_bytes_per_second": 1.0},
        "requests": {"put_per_prefix_second": 1e-6},
        "checkpoint": {"node_store_bytes_per_second": 1e3, "store_bytes_per_second": 1e30},
    }
    for name, change in slow.items():
        assumed = dataclasses.replace(ENDLESS, **change)
        assert predict(SMALL, "outliers", 64, MEASURED, assumed).bottleneck == name
    costly = dataclasses.replace(MEASURED, recording=dict.fromkeys(KINDS, 9.0))
    assert predict(SMALL, "outliers", 64, costly, ENDLESS).bottleneck == "recording"


def test_more_writing_nodes_or_longer_segments_remove_the_checkpoint_bottleneck() -> None:
    """One node writes a checkpoint of GPT-3 for longer than a segment trains; eight do not."""
    assert predict(GPT3, "outliers", 4096, MEASURED, ASSUMED).bottleneck == "checkpoint"
    for change in ({"checkpoint_nodes": 8}, {"checkpoint_nodes": 512}):
        spread = dataclasses.replace(ASSUMED, **change)
        assert predict(GPT3, "outliers", 4096, MEASURED, spread).bottleneck == "training"
    longer = dataclasses.replace(GPT3, segment_steps=1000)
    assert predict(longer, "outliers", 4096, MEASURED, ASSUMED).bottleneck == "training"


def test_longer_segments_need_fewer_objects_and_fewer_bytes() -> None:
    long = dataclasses.replace(SEVEN, segment_steps=1000)
    short, long_ = (predict(w, "outliers", 1024, MEASURED, ASSUMED) for w in (SEVEN, long))
    assert long_.objects == pytest.approx(short.objects / 10, rel=0.01)
    assert long_.stored_bytes < short.stored_bytes


# --- replay and attribution -----------------------------------------------------------------------


@given(work=workloads, kind=kinds)
def test_replay_of_a_whole_run_takes_as_long_as_training_on_one_replica(work, kind) -> None:
    replica = gpus_per_replica(work, ENDLESS)
    trained = predict(work, kind, replica, MEASURED, ENDLESS).days
    replayed = replay_days(work, kind, replica, MEASURED, ENDLESS)
    assert replayed == pytest.approx(trained, rel=0.02)


def test_replay_speeds_up_with_gpus_up_to_one_replica_per_segment() -> None:
    days = [replay_days(STUDY, "outliers", gpus, MEASURED, ENDLESS) for gpus in (1, 49, 147, 4096)]
    assert days[0] == pytest.approx(49 * days[1]) == pytest.approx(147 * days[2])
    assert days[3] == days[2]
    assert days[2] < predict(STUDY, "outliers", 4096, MEASURED, ENDLESS).days


@given(work=workloads, workers=st.integers(1, 512), gpus=gpus)
def test_more_gpus_never_delay_an_attribution(work, workers: int, gpus: int) -> None:
    few, many = (predict_attribution(work, workers, n, MEASURED, ASSUMED) for n in (gpus, 2 * gpus))
    assert many.seconds <= few.seconds
    assert many.driver_seconds <= 4096 * MEASURED.task_seconds
    assert 2 ** (few.depth - 1) < few.shards <= 2**few.depth


def test_a_partial_has_at_most_one_entry_per_neuron_and_token() -> None:
    found = predict_attribution(GPT3, 64, 4096, MEASURED, ASSUMED)
    assert found.partial_bytes == 8.0 * GPT3.neurons * GPT3.vocabulary
    assert (
        predict_attribution(STUDY, 1, 1, MEASURED, ASSUMED).partial_bytes
        <= 16.0 * STUDY.datums * 1000
    )


def test_a_slow_driver_becomes_the_bottleneck() -> None:
    slow = dataclasses.replace(MEASURED, task_seconds=10.0)
    assert predict_attribution(SEVEN, 256, 4096, slow, ASSUMED).bottleneck == "driver"


# --- the page docs/scale.md -----------------------------------------------------------------------


def test_the_tables_describe_every_assumption_and_every_measurement() -> None:
    assert ASSUMPTIONS.keys() == {field.name for field in dataclasses.fields(Assumed)}
    measured = {field.name for field in dataclasses.fields(Measured)}
    assert SOURCES.keys() | {"recording"} == measured


def test_the_tables_of_the_page_follow_from_the_results() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    made = [*tables(), *measured_tables()]
    assert with_tables(text, made) == text
    assert all(table in text for table in made)


def test_new_tables_replace_the_old_ones_by_number() -> None:
    page = "a\n<!-- table 1 -->\n| x |\n| y |\nb\n<!-- table 0 -->\n"
    assert with_tables(page, ["| 0 |", "| 1 |"]) == (
        "a\n<!-- table 1 -->\n| 1 |\nb\n<!-- table 0 -->\n| 0 |\n"
    )


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 B"), (999.4, "999 B"), (999.6, "1.0 kB"), (8.5e11, "850 GB")]
)
def test_sizes_have_a_unit(count: float, text: str) -> None:
    assert size(count) == text


def test_times_use_the_largest_unit_in_which_they_are_at_least_1() -> None:
    texts = [clock(seconds) for seconds in (0.5, 59.9, 5400, 86_400, 3.2e7)]
    assert texts == ["0.5 s", "59.9 s", "1.5 h", "1.0 d", "1.0 years"]
