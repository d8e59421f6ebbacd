"""Tallies do not depend on interruptions or segments, and can be read in several ways."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tiny import contents, make_run, tiny_config

from analysis.run.run import open_run
from analysis.run.tallies import (
    neuron_history,
    read_tally,
    tally_units,
    tally_windows,
    token_history,
)
from capture.errors import CaptureError, ConfigError, RunError, UnitError
from capture.format.markers import read_marker
from capture.format.tally_tables import SIGNIFICANT_BITS
from capture.format.window_markers import KEY as WINDOW
from capture.maintenance.garbage import remove_garbage
from capture.maintenance.verify import verify
from capture.shards.schema import tally_schema
from capture.shifts.tallies import BYS
from capture.store import Store
from capture.training import open_window
from capture.training.loop import Event, Progress, WindowReplay, capture_run

# Shapes: N datum, T position, M position of the batch, I input width, O output width, V vocabulary.


class Stopped(Exception):
    """Raised by a test to stop a capture."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """28 steps, segments of 8, windows of 5: they end within, at, and between segments."""
    folder = tmp_path_factory.mktemp("tally")
    make_run(tiny_config(folder, "capture.tally.window_steps=5"))
    return str(folder / "run")


def tally_files(uri: str) -> dict[str, bytes]:
    return {key: data for key, data in contents(uri).items() if key.startswith("tallies/")}


@pytest.mark.parametrize(
    "steps",
    [
        1,
        9,
        10,
        pytest.param(16, marks=pytest.mark.slow),
        19,
        pytest.param(27, marks=pytest.mark.slow),
    ],
)
def test_resuming_gives_the_tallies_of_a_run_that_never_stopped(tmp_path, whole, steps):
    config = tiny_config(tmp_path, "capture.tally.window_steps=5")

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == steps:
            raise Stopped

    with pytest.raises(Stopped):
        capture_run(config, stop)
    store = Store(config.run.uri)
    committed = steps // 8 * 8
    assert store.exists(WINDOW) == bool(committed and committed % 5)
    events = make_run(config, resume=True)
    assert contents(config.run.uri) == contents(whole)
    assert not any(isinstance(event, WindowReplay) for event in events)
    assert not store.exists(WINDOW)


@pytest.mark.parametrize(
    "left",
    [
        "nothing",
        pytest.param("no marker", marks=pytest.mark.slow),
        pytest.param("a damaged marker", marks=pytest.mark.slow),
        "a damaged file",
    ],
)
def test_resuming_without_the_sums_of_the_open_window_takes_its_steps_again(tmp_path, whole, left):
    """As runs of earlier versions do."""
    config = tiny_config(tmp_path, "capture.tally.window_steps=5")

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == 9:
            raise Stopped

    with pytest.raises(Stopped):
        capture_run(config, stop)
    store = Store(config.run.uri)
    (file,) = [key for key in store.keys("checkpoints") if "window" in key]
    if left in ("nothing", "no marker"):
        store.delete(WINDOW)
    if left == "nothing":
        store.delete(file)
    if left == "a damaged marker":
        store.put(WINDOW, b"{}")
    if left == "a damaged file":
        store.put(file, store.get(file)[:-1])
    bad = {each.key for each in verify(store) if each.state != "unlisted"}
    assert bad == {"a damaged marker": {WINDOW}, "a damaged file": {file}}.get(left, set())
    events = make_run(config, resume=True)
    assert len([event for event in events if isinstance(event, WindowReplay)]) == 8
    assert contents(config.run.uri) == contents(whole)
    assert verify(store) == []


def test_large_sums_are_stored_less_often(tmp_path, whole, monkeypatch):
    """Sums that would take twice the bytes allowed for a segment are stored with every second."""
    config = tiny_config(tmp_path, "capture.tally.window_steps=28", name="long")
    vocabulary = len(open_run(whole).vocabulary())
    most = 2 * vocabulary * 2 * 2 * (12 + 10) * 4  # both kinds of token, two layers, two sums
    monkeypatch.setattr(open_window, "BYTES_PER_SEGMENT", most // 2)

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == 27:
            raise Stopped

    with pytest.raises(Stopped):
        capture_run(config, stop)
    store = Store(config.run.uri)
    assert read_marker(store, WINDOW).end_step == 16
    assert verify(store) == []
    events = make_run(config, resume=True)
    assert len([event for event in events if isinstance(event, WindowReplay)]) == 8
    make_run(tiny_config(tmp_path, "capture.tally.window_steps=28", name="straight"))
    assert contents(config.run.uri) == contents(f"{tmp_path}/straight")


def test_gc_keeps_the_sums_of_the_open_window(tmp_path):
    config = tiny_config(tmp_path, "capture.tally.window_steps=5")

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == 9:
            raise Stopped

    with pytest.raises(Stopped):
        capture_run(config, stop)
    store = Store(config.run.uri)
    store.put("checkpoints/window-000099-w00.safetensors", b"left by an interruption")
    removed = remove_garbage(store, timedelta(0))
    assert [each.key for each in removed] == ["checkpoints/window-000099-w00.safetensors"]
    assert verify(store) == []
    assert store.exists(WINDOW)


def test_the_length_of_segments_changes_no_tally(tmp_path, whole):
    config = tiny_config(tmp_path, "capture.tally.window_steps=5", "capture.segment_steps=3")
    make_run(config)
    assert tally_files(config.run.uri) == tally_files(whole)


def test_tallies_do_not_change_other_files(tmp_path, whole):
    config = tiny_config(tmp_path, "capture.tally.enabled=false")
    make_run(config)
    rest = {k: v for k, v in contents(whole).items() if not k.startswith("tallies/")}
    assert contents(config.run.uri) == rest


def test_tallies_can_be_read_by_unit_neuron_and_token(whole):
    run = open_run(whole)
    windows = tally_windows(run)
    assert windows["first_step"].tolist() == [0, 5, 10, 15, 20, 25]
    assert windows["end_step"].tolist() == [5, 10, 15, 20, 25, 28]
    assert tally_units(run) == {
        f"layers.{layer}.linear{part}.weight": {1: 12, 2: 10}[part]
        for layer in range(2)
        for part in (1, 2)
    }
    unit, neuron = "layers.1.linear2.weight", 7
    for by in BYS:
        tally = read_tally(run, unit, by)
        assert tally.count_V.sum() == 28 * 4 * 8
        history = neuron_history(run, unit, neuron, by)
        for kind, wanted_VI in (
            ("update_norm", tally.update_norm_VI),
            ("ablation_estimate", tally.ablation_estimate_VI),
        ):
            found_V = history.groupby("token_id")[kind].sum()
            np.testing.assert_allclose(found_V, wanted_VI[found_V.index, neuron], rtol=1e-5)
        token = run.tokens[int(np.argmax(tally.count_V))]
        rows = token_history(run, token, by)
        mine = rows[(rows["unit"] == unit) & (rows["neuron"] == neuron)]
        theirs = history[history["token"] == token]
        assert mine["update_norm"].tolist() == theirs["update_norm"].tolist()
        assert mine["window"].tolist() == theirs["window"].tolist()


def test_update_norm_bounds_the_recorded_shifts_of_a_column(whole):
    """An outlier is a sum of contributions whose norms the column's update norm adds up."""
    run = open_run(whole)
    shifts = run.shifts(unit=(unit := "layers.1.linear1.weight"))
    largest = shifts["abs_diff"].groupby(shifts["index"] % 12).max()
    update_norm_I = read_tally(run, unit).update_norm_VI.sum(0)
    assert (update_norm_I[largest.index] * (1 + 2.0**-SIGNIFICANT_BITS) >= largest).all()


def test_some_windows_can_be_read_alone(whole):
    run = open_run(whole)
    unit = "layers.0.linear1.weight"
    parts = [read_tally(run, unit, windows=[window]) for window in range(6)]
    together = read_tally(run, unit)
    assert parts[0].count_V.sum() == 5 * 4 * 8
    np.testing.assert_allclose(
        sum(p.update_norm_VI for p in parts), together.update_norm_VI, rtol=1e-5
    )
    np.testing.assert_allclose(
        sum(p.ablation_estimate_VI for p in parts),
        together.ablation_estimate_VI,
        rtol=1e-4,
        atol=1e-6,
    )


def test_pandas_reads_one_neuron_with_filters_on_folder_names(whole):
    found = pd.read_parquet(
        f"{whole}/tallies",
        columns=["token_id", "ablation_estimate_3"],
        filters=[("unit", "==", "layers.0.linear1.weight"), ("by", "==", "input")],
    )
    history = neuron_history(open_run(whole), "layers.0.linear1.weight", 3, "input")
    assert found["ablation_estimate_3"].tolist() == history["ablation_estimate"].tolist()


def test_tallies_of_schema_version_1_can_be_read(tmp_path, whole, monkeypatch):
    """Version 1 named the columns ``mass_N`` and ``use_N``."""

    def former_schema(num_neurons: int) -> pa.Schema:
        names = {"update_norm": "mass", "ablation_estimate": "use"}
        today = tally_schema(num_neurons)
        kinds = [name.rpartition("_") for name in today.names]
        return pa.schema(
            field.with_name(f"{names[kind]}_{number}") if kind in names else field
            for field, (kind, _, number) in zip(today, kinds, strict=True)
        )

    config = tiny_config(tmp_path, "capture.tally.window_steps=5")
    with monkeypatch.context() as former:
        former.setattr("capture.format.tally_tables.tally_schema", former_schema)
        former.setattr("capture.shards.encoding.SCHEMA_VERSION", 1)
        make_run(config)
    today, old = open_run(whole), open_run(config.run.uri)
    with old.shards("tallies")[0].reading() as file:
        assert {"mass_0", "use_0"} < set(file.schema_arrow.names)
    unit = "layers.0.linear1.weight"
    for by in BYS:
        found, wanted = read_tally(old, unit, by), read_tally(today, unit, by)
        assert np.array_equal(found.count_V, wanted.count_V)
        assert np.array_equal(found.update_norm_VI, wanted.update_norm_VI)
        assert np.array_equal(found.ablation_estimate_VI, wanted.ablation_estimate_VI)
        assert neuron_history(old, unit, 3, by).equals(neuron_history(today, unit, 3, by))
        token = today.tokens[int(np.argmax(wanted.count_V))]
        assert token_history(old, token, by).equals(token_history(today, token, by))


def test_reading_one_neuron_reads_a_small_part_of_a_table(whole):
    store = Store(whole)
    unit = "layers.0.linear1.weight"
    (shard, *_) = [s for s in open_run(whole).shards("tallies") if f"unit={unit}" in s.file.key]
    with shard.reading() as file:
        group = file.metadata.row_group(0)
        sizes = {
            group.column(i).path_in_schema: group.column(i).total_compressed_size
            for i in range(group.num_columns)
        }
    assert len(sizes) == 3 + 2 * 12
    assert sizes["update_norm_3"] + sizes["ablation_estimate_3"] < 0.2 * sum(sizes.values())
    assert store.exists(shard.file.key)


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (lambda run: read_tally(run, "layers.0.norm1.weight"), UnitError, "has no tallies"),
        (
            lambda run: neuron_history(run, "layers.0.linear1.weight", 12),
            UnitError,
            "neuron 12: does not exist: they are 0 to 11",
        ),
        (lambda run: token_history(run, "catt"), ConfigError, "Did you mean cat"),
        (
            lambda run: read_tally(run, "layers.0.linear1.weight", windows=[9]),
            RunError,
            "has no tallies of window 9",
        ),
    ],
)
def test_impossible_queries_raise_with_the_reason(whole, ask, kind: type[CaptureError], message):
    with pytest.raises(kind, match=message):
        ask(open_run(whole))


def test_a_run_without_tallies_names_the_setting_that_records_them(tmp_path):
    config = tiny_config(tmp_path, "capture.tally.enabled=false")
    make_run(config)
    with pytest.raises(RunError, match=r"holds no tallies.*capture\.tally\.enabled=true"):
        read_tally(open_run(config.run.uri), "layers.0.linear1.weight")
