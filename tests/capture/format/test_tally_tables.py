"""Tallies of a run: that nothing about its history changes them, and how they read."""

import numpy as np
import pandas as pd
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
from capture.format.tally_tables import SIGNIFICANT_BITS
from capture.shifts.tallies import BYS
from capture.store.store import Store
from capture.training.loop import Event, Progress, Retracing, capture_run

# Shapes: N datum, T position, M position of the batch, I input width, O output width, V vocabulary.


class Stopped(Exception):
    """What a test raises to stop a capture from outside."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """28 steps, segments of 8, windows of 5: they end within, at, and between segments."""
    folder = tmp_path_factory.mktemp("tally")
    make_run(tiny_config(folder, "capture.tally.window_steps=5"))
    return str(folder / "run")


def tally_files(uri: str) -> dict[str, bytes]:
    return {key: data for key, data in contents(uri).items() if key.startswith("tallies/")}


@pytest.mark.parametrize("steps", [1, 9, 10, 16, 19, 27])
def test_resuming_gives_the_tallies_of_a_run_that_never_stopped(tmp_path, whole, steps):
    config = tiny_config(tmp_path, "capture.tally.window_steps=5")

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.steps_done == steps:
            raise Stopped

    with pytest.raises(Stopped):
        capture_run(config, stop)
    events = make_run(config, resume=True)
    assert tally_files(config.run.uri) == tally_files(whole)
    committed = steps // 8 * 8
    retraced = [event for event in events if isinstance(event, Retracing)]
    assert len(retraced) == ((committed - committed // 5 * 5 // 8 * 8) if committed % 5 else 0)


def test_the_length_of_segments_changes_no_tally(tmp_path, whole):
    config = tiny_config(tmp_path, "capture.tally.window_steps=5", "capture.segment_steps=3")
    make_run(config)
    assert tally_files(config.run.uri) == tally_files(whole)


def test_tallies_change_nothing_else(tmp_path, whole):
    config = tiny_config(tmp_path, "capture.tally.enabled=false")
    make_run(config)
    rest = {k: v for k, v in contents(whole).items() if not k.startswith("tallies/")}
    assert contents(config.run.uri) == rest


def test_a_run_reads_back_by_unit_by_neuron_and_by_token(whole):
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
        for kind, wanted_VI in (("mass", tally.mass_VI), ("use", tally.use_VI)):
            found_V = history.groupby("token_id")[kind].sum()
            np.testing.assert_allclose(found_V, wanted_VI[found_V.index, neuron], rtol=1e-5)
        token = run.tokens[int(np.argmax(tally.count_V))]
        rows = token_history(run, token, by)
        mine = rows[(rows["unit"] == unit) & (rows["neuron"] == neuron)]
        theirs = history[history["token"] == token]
        assert mine["mass"].tolist() == theirs["mass"].tolist()
        assert mine["window"].tolist() == theirs["window"].tolist()


def test_mass_bounds_what_the_recorded_shifts_of_a_column_can_be(whole):
    """Each outlier's shift is a sum of contributions no longer than the column's mass."""
    run = open_run(whole)
    shifts = run.shifts(unit=(unit := "layers.1.linear1.weight"))
    largest = shifts["abs_diff"].groupby(shifts["index"] % 12).max()
    mass_I = read_tally(run, unit).mass_VI.sum(0)
    assert (mass_I[largest.index] * (1 + 2.0**-SIGNIFICANT_BITS) >= largest).all()


def test_some_windows_can_be_read_alone(whole):
    run = open_run(whole)
    unit = "layers.0.linear1.weight"
    parts = [read_tally(run, unit, windows=[window]) for window in range(6)]
    together = read_tally(run, unit)
    assert parts[0].count_V.sum() == 5 * 4 * 8
    np.testing.assert_allclose(sum(p.mass_VI for p in parts), together.mass_VI, rtol=1e-5)
    np.testing.assert_allclose(sum(p.use_VI for p in parts), together.use_VI, rtol=1e-4, atol=1e-6)


def test_pandas_reads_one_neuron_by_the_names_of_the_folders(whole):
    found = pd.read_parquet(
        f"{whole}/tallies",
        columns=["token_id", "use_3"],
        filters=[("unit", "==", "layers.0.linear1.weight"), ("by", "==", "input")],
    )
    history = neuron_history(open_run(whole), "layers.0.linear1.weight", 3, "input")
    assert found["use_3"].tolist() == history["use"].tolist()


def test_one_neuron_reads_a_small_part_of_a_table(whole):
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
    assert sizes["mass_3"] + sizes["use_3"] < 0.2 * sum(sizes.values())
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
def test_wrong_questions_get_a_clear_answer(whole, ask, kind: type[CaptureError], message):
    with pytest.raises(kind, match=message):
        ask(open_run(whole))


def test_a_run_without_tallies_says_how_to_get_them(tmp_path):
    config = tiny_config(tmp_path, "capture.tally.enabled=false")
    make_run(config)
    with pytest.raises(RunError, match=r"holds no tallies.*capture\.tally\.enabled=true"):
        read_tally(open_run(config.run.uri), "layers.0.linear1.weight")
