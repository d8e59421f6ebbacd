"""Attribution from rows and tallies against plain pandas; levels, outliers, windows, tables."""

import functools
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from analysis import attribution_tables
from analysis.attribution import attribute, write_attribution
from analysis.attribution_config import AttributionConfig
from analysis.attribution_tables import Attribution
from analysis.evidence import RowEvidence
from analysis.levels import LEVELS, Level, groups_at, parameters_at
from analysis.neuron_tokens import neuron_tokens
from analysis.run import open_run
from analysis.selection import SelectionConfig
from analysis.tables import marker_key, read_table
from analysis.tallies import read_tally, tally_windows
from capture.errors import ConfigError, RunError, ShardError, UnitError
from capture.gradients import Layout
from capture.markers import segment_key
from capture.store import Store
from cluster.local import run_job
from reference_analysis import read_everything, records, rows_of_neurons
from tiny_run import copied, make_run, tiny_run

ANY = SelectionConfig(min_observations=0, max_q=1, most=4)
"""Choose tokens although a tiny run proves little."""


@functools.cache
def attributed(**settings: Any) -> Attribution:
    config = AttributionConfig(**{"selection": ANY, **settings})
    return attribute(open_run(tiny_run()), run_job, config)


@functools.cache
def neuron_rows() -> pd.DataFrame:
    return rows_of_neurons(open_run(tiny_run()))


def weigh(rows: pd.DataFrame, weight: str) -> pd.Series:
    size = rows["shift"].abs().astype(float)
    return {"count": size * 0 + 1, "shift": size, "effect": size * rows["weight"].abs()}[weight]


# --- levels ---------------------------------------------------------------------------------------

LAYOUT = Layout(
    {
        "layers.0.self_attn.in_proj_weight": (12, 4),
        "layers.0.self_attn.in_proj_bias": (12,),
        "layers.0.self_attn.out_proj.weight": (4, 4),
        "layers.0.linear1.weight": (3, 4),
        "layers.1.self_attn.out_proj.weight": (4, 4),
    }
)


def named_groups(level: Level) -> dict[tuple[str, int], tuple[str, int] | None]:
    """(unit, index) of every captured parameter → what its group is called."""
    groups = groups_at(level, LAYOUT, heads=2)
    found = {}
    for unit, start, size in zip(LAYOUT.names, LAYOUT.offsets, LAYOUT.sizes, strict=False):
        for index in range(size):
            group = groups.group_P[start + index]
            name = (groups.units[group], int(groups.number_G[group])) if group >= 0 else None
            found[unit, index] = name
    return found


def test_neurons_are_columns_of_mlp_units_and_rows_are_outputs() -> None:
    neurons, rows = named_groups("neuron"), named_groups("row")
    for (unit, index), name in neurons.items():
        assert name == ((unit, index % 4) if unit.endswith("linear1.weight") else None)
    for (unit, index), name in rows.items():
        assert name == ((unit, index // 4) if len(LAYOUT.shapes[unit]) == 2 else None)
    for (unit, _), name in named_groups("unit").items():
        assert name == (unit, -1)


def test_a_head_has_rows_of_each_projection_in_and_columns_of_the_one_out() -> None:
    for (unit, index), name in named_groups("head").items():
        row, column = divmod(index, 4)
        attention = unit[:8] + ".self_attn"
        if unit.endswith("in_proj_weight"):
            assert name == (attention, row % 4 // 2)
        elif unit.endswith("out_proj.weight"):
            assert name == (attention, column // 2)
        else:
            assert name is None


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "parameter"])
def test_families_are_units_layers_of_heads_or_all_units(level: Level) -> None:
    groups = groups_at(level, LAYOUT, heads=2)
    own = pd.DataFrame({"unit": groups.units, "family": groups.family_G})
    families = 1 if level == "unit" else own["unit"].nunique()
    assert own["family"].nunique() == groups.num_families == families
    assert level == "unit" or (own.groupby("unit")["family"].nunique() == 1).all()


def test_parameters_leave_the_rest_of_their_unit_as_one_group() -> None:
    groups = parameters_at(np.array([80, 3, 78]), LAYOUT)
    names = [(name, number) for name, number in zip(groups.units, groups.number_G, strict=True)]
    first, last = LAYOUT.names[0], LAYOUT.names[3]
    assert names == [(last, 4), (first, 3), (last, 2)]
    assert groups.family_G.tolist() == [1, 0, 1, 0, 1]
    assert np.bincount(groups.group_P + 1).tolist() == [12 + 16 + 16, 1, 1, 1, 47, 10]


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


def test_groups_have_their_rows_and_the_strongest_stands_first() -> None:
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


def test_datums_are_the_heaviest_and_name_their_strongest_row() -> None:
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


def test_the_background_may_be_the_training_text() -> None:
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


def test_only_some_steps_are_only_their_rows() -> None:
    found = attributed(first_step=9, end_step=16)
    rows = neuron_rows().query("9 <= step < 16")
    assert found.groups["rows"].sum() == len(rows)
    assert found.windows[["first_step", "end_step"]].agg(["min", "max"]).to_numpy().tolist() == [
        [9, 10],
        [14, 16],
    ]


# --- one neuron, directly -------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", ["target", "input", "window"])
def test_a_neuron_s_tokens_equal_plain_counting(evidence: RowEvidence) -> None:
    run, unit, steps = open_run(tiny_run()), "layers.1.linear2.weight", range(3, 20)
    rows = neuron_rows().query("unit == @unit and neuron == 4 and 3 <= step < 20")
    counts, sizes = Counter(), Counter()
    for row in records(rows):
        own = run.token_NT[row.datum].tolist() if evidence == "window" else [getattr(row, evidence)]
        for token in own:
            counts[token] += 1
            sizes[token] += abs(row.shift)
    found = neuron_tokens(run, unit, 4, evidence=evidence, steps=steps)
    assert dict(zip(found["token_id"], found["count"], strict=True)) == counts
    assert dict(zip(found["token_id"], found["size"], strict=True)) == pytest.approx(dict(sizes))
    assert found["count"].is_monotonic_decreasing
    assert found["share"].sum() == pytest.approx(1)
    token_NT = run.target_NT if evidence == "target" else run.token_NT
    first = records(found)[0]
    text = (token_NT == first.token_id).mean()
    assert first.relative_frequency == pytest.approx(first.share / text)


def test_a_neuron_that_is_not_there_is_refused() -> None:
    run = open_run(tiny_run())
    with pytest.raises(
        UnitError, match=r"no captured unit with neurons. Did you mean layers\.1\.l"
    ):
        neuron_tokens(run, "layers.1.linear3.weight", 0)
    with pytest.raises(UnitError, match=r"neuron 12: does not exist: 0 to 11 do"):
        neuron_tokens(run, "layers.1.linear2.weight", 12)


# --- other outliers -------------------------------------------------------------------------------


@pytest.mark.parametrize("notion", ["unit", "neuron", "parameter"])
@pytest.mark.parametrize("keep", [0.25, 1])
def test_other_outliers_are_the_largest_for_their_like(notion: str, keep: float) -> None:
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


# --- tallies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", ["mass", "use", "input-mass", "input-use"])
def test_tallies_are_the_evidence_of_every_neuron(evidence: str) -> None:
    run, found = open_run(tiny_run()), attributed(evidence=evidence)
    by = "input" if evidence.startswith("input") else "target"
    windows = tally_windows(run)["window"]
    assert len(found.tokens) > 20
    read = functools.cache(lambda unit, *windows: read_tally(run, unit, by, *windows))
    for row in records(found.tokens.iloc[::5]):
        tally = read(row.unit)
        value_VI = tally.use_VI if evidence.endswith("use") else tally.mass_VI
        weight_VI = np.maximum(value_VI, 0).astype(float)
        others = weight_VI.sum(1) - weight_VI[:, row.group]
        expected = others[row.token_id] / others.sum() * weight_VI[:, row.group].sum()
        assert row.weight == pytest.approx(weight_VI[row.token_id, row.group])
        if expected > 0:  # else the background is given a floor
            assert row.expected == pytest.approx(expected, rel=1e-5)
        assert row.count == tally.count_V[row.token_id]
        assert np.isnan(row.up)
        each = [read(row.unit, (w,)) for w in windows]
        own = found.windows.query("unit == @row.unit and group == @row.group")
        own = own[own["token_id"] == row.token_id]
        if evidence.endswith("use"):
            values = np.array([tally.use_VI[row.token_id, row.group] for tally in each])
            assert own["weight"].tolist() == pytest.approx(np.maximum(values, 0).tolist())
            assert row.strengthened == pytest.approx(np.maximum(values, 0).sum())
            assert row.weakened == pytest.approx(np.maximum(-values, 0).sum())
        else:
            assert own["weight"].sum() == pytest.approx(row.weight, rel=1e-5)
            assert np.isnan(row.strengthened)


def test_with_tallies_datums_still_come_from_rows() -> None:
    mass, rows = (attributed(evidence=evidence).datums for evidence in ("mass", "target"))
    keys = ["unit", "group", "datum"]
    assert mass.set_index(keys).sort_index().equals(rows.set_index(keys).sort_index())


def test_tallies_of_an_epoch_are_those_of_its_steps() -> None:
    run, half = open_run(tiny_run()), attributed(evidence="mass", end_step=12)
    assert half.windows["end_step"].unique().tolist() == [12]
    row = half.tokens.iloc[0]
    mass_VI = read_tally(run, row["unit"], windows=[0]).mass_VI
    assert row["weight"] == pytest.approx(mass_VI[int(row["token_id"]), int(row["group"])])
    problem = "has tallies of steps 0:12, 12:24; none of these windows lies within 3:20"
    with pytest.raises(RunError, match=problem):
        attributed(evidence="use", first_step=3, end_step=20)


def test_a_run_without_tallies_says_how_to_get_them() -> None:
    run = open_run(make_run("memory://attribution-bare", "capture.tally.enabled=false"))
    with pytest.raises(RunError, match=r"Capture with capture\.tally\.enabled=true"):
        attribute(run, run_job, AttributionConfig(evidence="mass"))


# --- tables ---------------------------------------------------------------------------------------


def test_tables_are_read_as_they_were_written() -> None:
    run = open_run(copied(tiny_run(), "memory://attribution-tables").uri)
    for found in (attributed(), attributed(evidence="use"), attributed(level="parameter")):
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


# --- what cannot be attributed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"level": "layer"}, "level: got layer, must be one of parameter, neuron, row, unit, head"),
        ({"windows": 0}, "windows: got 0, must be at least 1"),
        ({"max_parameters": 0}, "max_parameters: got 0, must be at least 1"),
        ({"max_datums": 0}, "max_datums: got 0, must be at least 1"),
        ({"keep": 0.0}, r"keep: got 0\.0, must be above 0 and at most 1"),
        ({"first_step": -1}, "first_step: got -1, must be at least 0"),
        ({"first_step": 5, "end_step": 5}, "end_step: got 5, must be above the first step, 5"),
        (
            {"evidence": "use", "level": "head"},
            "level: got head, with evidence use it must be neuron. Other settings need one of the "
            "evidences target, input, window",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"^attribution\.{problem}\.$"):
        AttributionConfig(**settings)


@pytest.mark.parametrize(("first", "end"), [(24, None), (3, 25)])
def test_steps_that_the_run_lacks_are_refused(first: int, end: int | None) -> None:
    problem = f"has steps 0 to 23, asked for {first} to {(end or 24) - 1}. Steps are chosen as in"
    with pytest.raises(RunError, match=problem):
        attributed(first_step=first, end_step=end)


def test_a_run_without_segments_is_refused() -> None:
    store = copied(tiny_run(), "memory://attribution-empty")
    for segment in range(4):
        store.delete(segment_key(segment))
    for config in (AttributionConfig(), AttributionConfig(evidence="use")):
        with pytest.raises(RunError, match="holds no committed segment yet"):
            attribute(open_run(store.uri), run_job, config)
