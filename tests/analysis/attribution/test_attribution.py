"""Attribution from rows and tallies against plain pandas; levels, outliers, windows, tables."""

import functools

import numpy as np
import pandas as pd
import pytest
from attributed import attributed
from pandas.testing import assert_frame_equal
from reference_analysis import read_everything, records, rows_of_neurons
from tiny_run import copied, tiny_run

from analysis.attribution import tables as attribution_tables
from analysis.attribution.attribute import attribute, write_attribution
from analysis.attribution.config import AttributionConfig
from analysis.jobs.tables import marker_key, read_table
from analysis.levels import Level, groups_at
from analysis.run.run import open_run
from capture.errors import RunError, ShardError
from capture.format.markers import segment_key
from capture.store import Store
from cluster.local.threads import run_job


@functools.cache
def neuron_rows() -> pd.DataFrame:
    return rows_of_neurons(open_run(tiny_run()))


def weigh(rows: pd.DataFrame, weight: str) -> pd.Series:
    size = rows["shift"].abs().astype(float)
    return {"count": size * 0 + 1, "shift": size, "effect": size * rows["weight"].abs()}[weight]


# --- tokens against pandas ------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["count", "shift", "effect"])
@pytest.mark.parametrize("evidence", ["target", "input"])
def test_tokens_equal_plain_sums_of_rows(evidence: str, weight: str) -> None:
    rows = neuron_rows()
    rows = rows.assign(size=weigh(rows, weight), token=rows[evidence])
    found = attributed(evidence=evidence, weight=weight)
    assert len(found.tokens) > 50
    for row in records(found.tokens.iloc[::5]):
        of_unit = rows[rows["unit"] == row.unit]
        own, others = (of_unit[(of_unit["neuron"] == row.group) == same] for same in (True, False))
        mine = own[own["token"] == row.token_id]
        share = others.loc[others["token"] == row.token_id, "size"].sum() / others["size"].sum()
        assert row.count == len(mine)
        assert row.weight == pytest.approx(mine["size"].sum())
        if share > 0:
            assert row.expected == pytest.approx(share * own["size"].sum())
        assert row.relative_frequency == pytest.approx(row.weight / row.expected)
        away = (mine["shift"] * mine["weight"] > 0) | (mine["weight"] == 0)
        assert row.up == pytest.approx(mine.loc[mine["shift"] > 0, "size"].sum())
        assert row.strengthened == pytest.approx(mine.loc[away, "size"].sum())
        assert row.up + row.down == pytest.approx(row.weight)
        assert row.strengthened + row.weakened == pytest.approx(row.weight)


def test_windows_hold_weight_and_expectation_of_their_steps() -> None:
    rows, found = neuron_rows(), attributed(windows=3)
    assert found.windows["first_step"].unique().tolist() == [0, 8, 16]
    for row in records(found.windows.iloc[::11]):
        now = rows[
            (rows["unit"] == row.unit) & rows["step"].between(row.first_step, row.end_step - 1)
        ]
        own, others = (now[(now["neuron"] == row.group) == same] for same in (True, False))
        assert row.weight == (own["target"] == row.token_id).sum()
        wanted = (others["target"] == row.token_id).mean() * len(own)
        assert row.expected == pytest.approx(wanted, nan_ok=True)


def test_groups_count_their_rows_and_the_strongest_comes_first() -> None:
    rows, found = neuron_rows(), attributed(weight="shift")
    sizes = rows.assign(size=weigh(rows, "shift")).groupby(["unit", "neuron"])["size"]
    keys = list(zip(found.groups["unit"], found.groups["group"], strict=True))
    assert dict(zip(keys, found.groups["rows"], strict=True)) == sizes.size().to_dict()
    assert dict(zip(keys, found.groups["weight"], strict=True)) == pytest.approx(
        sizes.sum().to_dict()
    )
    assert found.groups["weight"].is_monotonic_decreasing
    for group in records(found.groups):
        own = found.tokens.query("unit == @group.unit and group == @group.group")
        assert own["token"].tolist() == list(group.tokens)


def test_datums_have_the_most_weight_and_their_strongest_row() -> None:
    rows, found = neuron_rows(), attributed(weight="shift", max_datums=7)
    rows = rows.assign(size=weigh(rows, "shift"))
    for group in records(found.groups.iloc[::3]):
        own = rows[(rows["unit"] == group.unit) & (rows["neuron"] == group.group)]
        datums = found.datums.query("unit == @group.unit and group == @group.group")
        sums = own.groupby("datum")["size"].sum().sort_values(ascending=False)
        assert datums["weight"].tolist() == pytest.approx(sums.iloc[:7].tolist())
        for datum in records(datums):
            best = own[own["datum"] == datum.datum].sort_values("size", kind="stable").iloc[-1]
            assert abs(datum.shift) == abs(best["shift"])
            same = own[(own["step"] == datum.step) & (own["position"] == datum.position)]
            assert datum.shift in same["shift"].to_numpy()
            assert datum.rows == (own["datum"] == datum.datum).sum()


@pytest.mark.parametrize("level", ["row", "unit", "head"])
@pytest.mark.parametrize("evidence", ["target", "window"])
def test_other_levels_count_the_rows_of_their_groups(level: Level, evidence: str) -> None:
    run = open_run(tiny_run())
    rows = read_everything(run, "outliers").astype({"unit": str})
    groups = groups_at(level, run.layout, heads=2)
    offsets = dict(zip(run.layout.names, run.layout.offsets, strict=False))
    group_M = groups.group_P[rows["unit"].map(offsets) + rows["index"]]
    rows_G = np.bincount(group_M[group_M >= 0])
    found = attributed(level=level, evidence=evidence)
    names = list(zip(groups.units, groups.number_G, strict=True))
    wanted = {names[group]: rows_G[group] for group in np.flatnonzero(rows_G)}
    keys = zip(found.groups["unit"], found.groups["group"], strict=True)
    assert dict(zip(keys, found.groups["rows"], strict=True)) == wanted
    assert len(found.tokens) > 0


def test_expected_weights_from_the_training_text() -> None:
    run, rows = open_run(tiny_run()), read_everything(open_run(tiny_run()), "outliers")
    found = attributed(background="train")
    train_V = np.bincount(run.target_NT[rows["datum"].unique()].ravel(), minlength=run.num_tokens)
    weight = found.groups.set_index(["unit", "group"])["weight"]
    for row in records(found.tokens):
        expected = weight[row.unit, row.group] * train_V[row.token_id] / train_V.sum()
        assert row.expected == pytest.approx(expected)
    keys = ["unit", "group", "token_id"]
    summed = found.windows.groupby(keys)["expected"].sum()
    assert found.tokens.set_index(keys)["expected"].to_dict() == pytest.approx(summed.to_dict())


def test_a_range_of_steps_uses_only_its_rows() -> None:
    found = attributed(first_step=9, end_step=16)
    rows = neuron_rows().query("9 <= step < 16")
    assert found.groups["rows"].sum() == len(rows)
    assert found.windows[["first_step", "end_step"]].agg(["min", "max"]).to_numpy().tolist() == [
        [9, 10],
        [14, 16],
    ]


# --- other outliers -------------------------------------------------------------------------------


@pytest.mark.parametrize("notion", ["unit", "neuron", "parameter"])
@pytest.mark.parametrize("keep", [0.25, 1])
def test_other_notions_keep_the_largest_quotients(notion: str, keep: float) -> None:
    run = open_run(tiny_run())
    rows = read_everything(run, "outliers").astype({"unit": str})
    shapes = run.layout.shapes
    columns = rows["unit"].map({name: s[1] if len(s) == 2 else 1 for name, s in shapes.items()})
    like = {"unit": 0, "neuron": rows["index"] % columns, "parameter": rows["index"]}[notion]
    rows = rows.assign(like=like, square=rows["shift"].astype(float) ** 2)
    scale = np.sqrt(rows.groupby(["unit", "like"])["square"].transform("mean"))
    size = rows["shift"].abs() / scale
    wanted = rows[size >= np.sort(size)[::-1][round(keep * len(size)) - 1]]
    neurons = wanted["unit"].str.endswith(("linear1.weight", "linear2.weight"))
    found = attributed(outliers=notion, keep=keep).groups["rows"].sum()
    assert found == pytest.approx(neurons.sum(), rel=0.01)  # bins have a width


# --- tables ---------------------------------------------------------------------------------------


def test_tables_read_back_as_they_were_written() -> None:
    run = open_run(copied(tiny_run(), "memory://attribution-tables").uri)
    for found in (
        attributed(),
        attributed(evidence="ablation-estimate"),
        attributed(level="parameter"),
    ):
        write_attribution(run, found)  # in the place of the one before
        for name, schema in attribution_tables.TABLES.items():
            frame = read_table(run, "attribute", name, schema)
            assert frame.columns.tolist() == schema.names
            if name == "groups":
                assert (
                    frame["tokens"].map(list).tolist() == found.groups["tokens"].map(list).tolist()
                )
            assert_frame_equal(
                without_lists(frame, name), without_lists(getattr(found, name), name)
            )


def without_lists(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame.drop(columns="tokens") if name == "groups" else frame


def test_tables_appear_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(copied(tiny_run(), "memory://attribution-whole").uri)
    write_attribution(run, attributed())
    original = Store.put

    def breaks(store: Store, key: str, data: bytes | memoryview) -> None:
        if key.endswith("windows.parquet"):
            raise OSError("disk full")
        original(store, key, data)

    monkeypatch.setattr(Store, "put", breaks)
    with pytest.raises(OSError, match="disk full"):
        write_attribution(run, attributed(weight="shift"))
    with pytest.raises(RunError, match=r"has no tables of attribute\. Run: ontogeny attribute mem"):
        read_table(run, "attribute", "tokens", attribution_tables.TOKENS)


def test_tables_of_an_earlier_state_of_the_run_are_refused() -> None:
    store = copied(tiny_run(), "memory://attribution-stale")
    last = store.get(segment_key(3))
    store.delete(segment_key(3))
    short = open_run(store.uri)
    write_attribution(short, attribute(short, run_job, AttributionConfig()))
    store.put(segment_key(3), last)
    problem = "has tables of attribute for 21 steps, but 24 are done. Run: ontogeny attribute mem"
    with pytest.raises(RunError, match=problem):
        read_table(open_run(store.uri), "attribute", "tokens", attribution_tables.TOKENS)


def test_a_damaged_table_is_named() -> None:
    run = open_run(copied(tiny_run(), "memory://attribution-damaged").uri)
    write_attribution(run, attributed())
    run.store.put("analysis/attribute/tokens.parquet", b"")
    with pytest.raises(ShardError, match=r"tokens\.parquet: holds 0 bytes"):
        read_table(run, "attribute", "tokens", attribution_tables.TOKENS)
    run.store.put(marker_key("attribute"), b"{}")
    with pytest.raises(ShardError, match=r"analysis/attribute/tables.json: is not a readable"):
        read_table(run, "attribute", "datums", attribution_tables.DATUMS)
