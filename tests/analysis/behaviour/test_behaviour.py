"""The behaviour analysis: the laws of its job, the whole analysis on a small run, errors."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from merge_law import Split, check_merge_law_of_rows, splits
from table_rows import TableRows
from tiny_run import copied, make_run, tiny_run

from analysis.behaviour import datum_sums
from analysis.behaviour.behaviour import (
    JOB,
    TABLES,
    Behaviour,
    BehaviourConfig,
    analyse_behaviour,
    count_visits,
    write_behaviour,
)
from analysis.behaviour.datum_sums import DatumSums, SumRowsByDatum, finest_cells
from analysis.behaviour.predicates import Predicate, select_datums
from analysis.behaviour.tables import LEVELS, captured_levels
from analysis.jobs.tables import read_table
from analysis.run.run import open_run
from capture.errors import ShardError
from capture.gradients.layout import Layout
from capture.shards.schema import OUTLIERS
from cluster.local.threads import run_job

LAYOUT = Layout(
    {
        "layers.0.self_attn.in_proj_weight": (12, 4),
        "layers.0.self_attn.in_proj_bias": (12,),
        "layers.0.self_attn.out_proj.weight": (4, 4),
        "layers.0.linear1.weight": (3, 4),
        "layers.0.linear2.weight": (4, 3),
    }
)
HEADS, DATUMS, WINDOW = 2, 7, 5
CHOSEN_K = np.array([0, 2, 3, 6])
CONFIG = BehaviourConfig(controls=2, resamples=50)


def random_rows(num_rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    unit_M = rng.integers(len(LAYOUT.names), size=num_rows).astype(np.int16)
    columns = {
        "step": rng.integers(9, size=num_rows),
        "slot": rng.integers(4, size=num_rows),
        "datum": rng.integers(DATUMS, size=num_rows),
        "unit": pa.DictionaryArray.from_arrays(unit_M, LAYOUT.names),
        "index": rng.integers(np.array(LAYOUT.sizes)[unit_M]),
        "shift": rng.normal(size=num_rows),
        "position": rng.integers(WINDOW, size=num_rows),
    }
    return pa.table(columns).cast(OUTLIERS)


def job() -> SumRowsByDatum:
    chosen_N = np.full(DATUMS, -1)
    chosen_N[CHOSEN_K] = np.arange(len(CHOSEN_K))
    marked_KT = np.random.default_rng(0).random((len(CHOSEN_K), WINDOW)) < 0.4
    cells = finest_cells(captured_levels(LAYOUT, HEADS))
    return SumRowsByDatum(LAYOUT, cells, chosen_N, len(CHOSEN_K), marked_KT)


def assert_same(found: DatumSums, wanted: DatumSums) -> None:
    assert found.chosen_J.tolist() == wanted.chosen_J.tolist()
    assert found.rows_JC.tolist() == wanted.rows_JC.tolist()
    assert found.marked_JC.tolist() == wanted.marked_JC.tolist()
    np.testing.assert_allclose(found.shift_JC, wanted.shift_JC, rtol=1e-12)


# --- law 6 ----------------------------------------------------------------------------------------


@given(split=splits(60))
def test_merging_any_split_in_any_order_equals_the_whole(split: Split) -> None:
    check_merge_law_of_rows(job(), random_rows(split.num_rows, split.seed), split, assert_same)


def test_the_number_of_rows_summed_at_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, sums = random_rows(50, 0), job()
    whole = sums.map_shard(TableRows(table))
    monkeypatch.setattr(datum_sums, "ROWS_AT_ONCE", 9)
    assert_same(sums.map_shard(TableRows(table)), whole)


# --- against plain loops --------------------------------------------------------------------------


def groups_of(unit: str, index: int) -> dict[str, tuple[str, int]]:
    """Level → unit and group of an entry, from the definitions of the levels."""
    row, column = divmod(index, LAYOUT.shapes[unit][-1])
    found = {"unit": (unit, -1)}
    if "linear" in unit:
        found["neuron"] = (unit, column)
    if unit.endswith("in_proj_weight"):
        found["head"] = ("layers.0.self_attn", row % 4 // 2)
    if unit.endswith("out_proj.weight"):
        found["head"] = ("layers.0.self_attn", column // 2)
    return found


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_sums_equal_a_plain_loop(num_rows: int, seed: int) -> None:
    table, sums = random_rows(num_rows, seed), job()
    found = sums.finish(sums.map_shard(TableRows(table)))
    for level, groups in enumerate(sums.cells.levels):
        names = list(zip(groups.units, groups.number_G.tolist(), strict=True))
        wanted = np.zeros((3, len(CHOSEN_K), len(names)))
        for row in table.to_pylist():
            key = groups_of(row["unit"], row["index"]).get(groups.level)
            if key and row["datum"] in CHOSEN_K:
                k = CHOSEN_K.tolist().index(row["datum"])
                values = [1, sums.marked_KT[k, row["position"]], abs(row["shift"])]
                wanted[:, k, names.index(key)] += values
        for total, x_KC in zip(
            wanted, (found.rows_JC, found.marked_JC, found.shift_JC), strict=True
        ):
            np.testing.assert_allclose(sums.cells.at(level, x_KC), total, rtol=1e-9)


def test_a_position_outside_the_window_raises() -> None:
    rows = random_rows(5, 0).to_pylist()
    rows[3] |= {"datum": 0, "position": WINDOW}
    table = pa.Table.from_pylist(rows, schema=OUTLIERS)
    with pytest.raises(ShardError, match=r"^shard: has positions \d to 5 in windows of 5\. Run"):
        job().map_shard(TableRows(table, "shard"))


# --- the whole analysis ---------------------------------------------------------------------------


@functools.cache
def found_in_tiny_run() -> Behaviour:
    return analyse_behaviour(open_run(tiny_run()), run_job, Predicate(target="w3"), CONFIG)


def test_means_equal_a_plain_loop() -> None:
    run, found = open_run(tiny_run()), found_in_tiny_run()
    rows = run.shifts()
    at_target = run.target_NT[rows["datum_id"], rows["position"]] == run.tokens.index("w3")
    visits_N = count_visits(run)
    selected = found.selection.loc[found.selection["selected"], "datum"]
    controls = found.selection.loc[~found.selection["selected"], "datum"]
    for unit in run.layout.names[::3]:
        own = rows["unit"] == unit
        count_N, total_N, marked_N, all_marked_N = (
            np.bincount(rows.loc[keep, "datum_id"], minlength=run.num_datums)
            for keep in (own, own | True, own & at_target, at_target)
        )
        shift_N = np.bincount(rows.loc[own, "datum_id"], rows.loc[own, "abs_diff"], run.num_datums)
        shift_N /= np.maximum(visits_N, 1)
        table = found.units[found.units["unit"] == unit].set_index("measure")
        for measure, of_N in (("rows", count_N / np.maximum(total_N, 1)), ("shift", shift_N)):
            assert table.loc[measure, "selected_mean"] == pytest.approx(of_N[selected].mean())
            assert table.loc[measure, "control_mean"] == pytest.approx(of_N[controls].mean())
        both = selected[(all_marked_N[selected] > 0) & (all_marked_N < total_N)[selected]]
        target = marked_N[both] / all_marked_N[both]
        rest = (count_N - marked_N)[both] / (total_N - all_marked_N)[both]
        assert table.loc["target", "selected_mean"] == pytest.approx(target.mean())
        assert table.loc["target", "control_mean"] == pytest.approx(rest.mean())


def test_controls_lack_the_behaviour_and_are_two_per_datum() -> None:
    run, found = open_run(tiny_run()), found_in_tiny_run()
    shows_N = select_datums(run, Predicate(target="w3"))
    selection = found.selection
    assert (shows_N[selection["datum"]] == selection["selected"]).all()
    chosen = selection.loc[selection["selected"], "datum"]
    matched = selection.loc[~selection["selected"], "matched_to"]
    assert matched.value_counts().to_dict() == dict.fromkeys(chosen, 2)
    summary = found.summary.iloc[0]
    assert summary["selected"] == len(chosen) <= summary["datums"] == shows_N.sum()
    assert summary["behaviour"] == "datums that have the target 'w3'"


def test_shares_of_all_units_add_up_to_one() -> None:
    units = found_in_tiny_run().units
    for measure in ("rows", "target"):
        own = units[units["measure"] == measure]
        np.testing.assert_allclose(own[["selected_mean", "control_mean"]].sum(), 1)


def test_the_seed_determines_tables_and_max_datums_limits_the_selection() -> None:
    run, predicate = open_run(tiny_run()), Predicate(target="w3")
    again = analyse_behaviour(run, run_job, predicate, CONFIG)
    for name, table in vars(found_in_tiny_run()).items():
        pd.testing.assert_frame_equal(getattr(again, name), table)
    config = BehaviourConfig(controls=2, resamples=50, max_datums=4)
    few = analyse_behaviour(run, run_job, predicate, config)
    assert few.summary.iloc[0]["selected"] == few.selection["selected"].sum() == 4


def test_tables_are_written_and_read_back() -> None:
    store = copied(tiny_run(), "memory://behaviour-tables")
    run = open_run(store.uri)
    write_behaviour(run, found_in_tiny_run())
    for name, schema in TABLES.items():
        pd.testing.assert_frame_equal(
            read_table(run, JOB, name, schema), getattr(found_in_tiny_run(), name)
        )


def test_levels_without_captured_units_have_empty_tables() -> None:
    uri = make_run("memory://behaviour-no-attention", 'capture.units=["*.norm1.*"]')
    found = analyse_behaviour(open_run(uri), run_job, Predicate(contains="w3"), CONFIG)
    assert found.heads.empty
    assert found.neurons.empty
    assert set(found.units["measure"]) == {"rows", "shift"}
    assert list(LEVELS.values()) == ["units", "heads", "neurons"]


def test_a_neuron_moved_by_a_behaviour_is_found() -> None:
    """In these shards, datums of the behaviour have more of their rows in one neuron."""
    run = open_run(tiny_run())
    shows_N = select_datums(run, Predicate(contains="w3"))
    unit, fan_in = "layers.1.linear2.weight", run.layout.shapes["layers.1.linear2.weight"][1]

    def planted(job: Any, shards: Sequence[Any]) -> Any:
        tables = [shard.table(OUTLIERS.names) for shard in shards]
        rows = pa.concat_tables(tables).to_pandas()
        rng = np.random.default_rng(0)
        moved = shows_N[rows["datum"]] & (rng.random(len(rows)) < 0.2)
        rows["unit"] = rows["unit"].astype(str).mask(moved, unit)
        rows["index"] = rows["index"].mask(moved, 7 + fan_in * rng.integers(0, 4, len(rows)))
        table = pa.Table.from_pandas(rows, OUTLIERS, preserve_index=False)
        return job.finish(job.map_shard(TableRows(table)))

    found = analyse_behaviour(run, planted, Predicate(contains="w3"), CONFIG)
    best = found.neurons[found.neurons["measure"] == "rows"].iloc[0]
    assert (best["unit"], best["group"]) == (unit, 7)
    assert best["q"] < 0.001
    assert 0 < best["low"] < best["difference"] < best["high"]
