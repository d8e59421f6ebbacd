"""The neurons job, its tables and the command: sums against plain loops, and bad input."""

import argparse
import functools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from merge_law import Split, check_merge_law_of_rows, splits
from pandas.testing import assert_frame_equal
from rich.console import Console
from table_rows import TableRows
from tiny_run import copied, make_run, tiny_run

from analysis.jobs.tables import read_table
from analysis.neurons.clustering import ClusteringConfig
from analysis.neurons.datums import NeuronDatumSums, OutlierSums, SumOutliersByNeuron, mlp_units
from analysis.neurons.grouping import (
    NeuronClusters,
    NeuronsConfig,
    group_neurons,
    read_outlier_sums,
    write_neurons,
)
from analysis.neurons.tables import TABLES
from analysis.run.run import open_run
from analysis.run.scan import read_all
from analysis.run.tallies import read_tally
from capture.errors import CaptureError, ConfigError, RunError, ShardError
from capture.format.markers import segment_key
from capture.gradients.layout import Layout
from capture.shards.schema import OUTLIERS
from cluster.commands import neurons as command
from cluster.local.threads import run_job
from cluster.terminal.neuron_tables import show_neurons

LAYOUT = Layout({"a.linear1.weight": (3, 4), "a.linear1.bias": (3,), "a.linear2.weight": (5, 2)})
TARGET_NT = np.random.default_rng(3).integers(7, size=(6, 8)).astype(np.int32)
JOB = SumOutliersByNeuron(LAYOUT, TARGET_NT, num_tokens=7)
SMALL = NeuronsConfig(
    clustering=ClusteringConfig(min_cluster=3, components=6), min_rows=5, bootstraps=3
)


def random_rows(num_rows: int, seed: int) -> pa.Table:
    """Outliers of the layout in no particular order."""
    rng = np.random.default_rng(seed)
    unit_M = rng.integers(len(LAYOUT.names), size=num_rows).astype(np.int16)
    columns = {
        "step": rng.integers(9, size=num_rows),
        "slot": rng.integers(4, size=num_rows),
        "datum": rng.integers(len(TARGET_NT), size=num_rows),
        "unit": pa.DictionaryArray.from_arrays(unit_M, LAYOUT.names),
        "index": rng.integers(np.array(LAYOUT.sizes)[unit_M]),
        "shift": rng.normal(size=num_rows),
        "position": rng.integers(8, size=num_rows),
    }
    return pa.table(columns).cast(OUTLIERS)


@functools.cache
def grouped(config: NeuronsConfig = SMALL) -> NeuronClusters:
    run = open_run(tiny_run())
    return group_neurons(run, read_outlier_sums(run, run_job), config)


# --- the job --------------------------------------------------------------------------------------


def assert_same(a: OutlierSums, b: OutlierSums) -> None:
    for one, other in ((a.datums, b.datums), (a.tokens, b.tokens)):
        np.testing.assert_array_equal(one.key_K, other.key_K)
        np.testing.assert_array_equal(one.rows_K, other.rows_K)
        np.testing.assert_allclose(one.shift_K, other.shift_K, rtol=1e-12)


@given(split=splits(60))
def test_merging_any_split_in_any_order_equals_the_whole(split: Split) -> None:
    check_merge_law_of_rows(JOB, random_rows(split.num_rows, split.seed), split, assert_same)


@given(num_rows=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_sums_equal_a_plain_loop(num_rows: int, seed: int) -> None:
    table = random_rows(num_rows, seed)
    found = JOB.map_shard(TableRows(table))
    rows_GN, shift_GV = np.zeros((6, 6)), np.zeros((6, 7))
    for row in table.to_pylist():
        if row["unit"].endswith("weight"):
            width = LAYOUT.shapes[row["unit"]][1]
            neuron = (4 if "linear2" in row["unit"] else 0) + row["index"] % width
            rows_GN[neuron, row["datum"]] += 1
            shift_GV[neuron, TARGET_NT[row["datum"], row["position"]]] += abs(row["shift"])
    np.testing.assert_array_equal(dense(found.datums, found.datums.rows_K), rows_GN)
    np.testing.assert_allclose(dense(found.tokens, found.tokens.shift_K), shift_GV)


def dense(sums: NeuronDatumSums, value_K: np.ndarray) -> np.ndarray:
    return sums.matrix(6, value_K).toarray()


def test_impossible_rows_raise() -> None:
    table = random_rows(5, 0)
    column = table.schema.get_field_index("position")
    beyond = table.set_column(column, OUTLIERS.field("position"), pa.array([8] * 5, pa.int16()))
    with pytest.raises(ShardError, match=r"^rows: has positions 8 to 8, a datum has 8. Run: onto"):
        JOB.map_shard(TableRows(beyond))
    narrow = SumOutliersByNeuron(LAYOUT, TARGET_NT[:1], num_tokens=7)
    with pytest.raises(ShardError, match="has datums"):
        narrow.map_shard(TableRows(table))


# --- a run ----------------------------------------------------------------------------------------


def test_neurons_are_those_with_enough_rows_and_count_them() -> None:
    run, found = open_run(tiny_run()), grouped()
    rows = read_all(run.shards("outliers"), OUTLIERS).to_pandas()
    rows = rows[rows["unit"].isin(list(mlp_units(run.layout)))]
    width = rows["unit"].map({name: shape[1] for name, shape in mlp_shapes(run.layout).items()})
    plain = rows.groupby([rows["unit"], rows["index"] % width.astype(int)], observed=True).size()
    kept = plain[plain >= SMALL.min_rows]
    assert len(kept) > 20
    counted = found.neurons.set_index(["unit", "neuron"])["rows"].to_dict()
    assert counted == kept.to_dict()
    whole = found.stability.iloc[0]
    assert whole["neurons"] == len(kept)
    assert whole["neurons"] + whole["left_out"] == sum(mlp_units(run.layout).values())


def mlp_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    return {name: layout.shapes[name] for name in mlp_units(layout)}


def test_the_tables_agree_with_each_other() -> None:
    for config in (SMALL, NeuronsConfig(clustering=joined_into(4), min_rows=5, bootstraps=2)):
        found = grouped(config)
        neurons, clusters = found.neurons, found.clusters
        sizes = neurons.loc[neurons["cluster"] >= 0, "cluster"].value_counts()
        assert sizes.to_dict() == dict(zip(clusters["cluster"], clusters["size"], strict=True))
        assert clusters["size"].is_monotonic_decreasing
        assert clusters[["stability", "low", "high"]].map(lambda x: 0 <= x <= 1).all(axis=None)
        assert neurons["topics"].tolist() == neurons["topic_tokens"].map(len).tolist()
        whole = found.stability.iloc[0]
        assert whole["clusters"] == len(clusters)
        assert whole["clustered"] == pytest.approx((neurons["cluster"] >= 0).mean())
        assert whole["polysemantic"] == (neurons["topics"] > 1).sum()
        for cluster, units in zip(clusters["cluster"], clusters["units"], strict=True):
            assert set(units) == set(neurons.loc[neurons["cluster"] == cluster, "unit"])
    assert len(clusters) == 4


def joined_into(clusters: int) -> ClusteringConfig:
    return ClusteringConfig(method="agglomerative", clusters=clusters, components=6)


def test_tables_are_read_back_and_determined_by_the_seed() -> None:
    run = open_run(copied(tiny_run(), "memory://neurons-tables").uri)
    found = group_neurons(run, read_outlier_sums(run, run_job), SMALL)
    write_neurons(run, found)
    for name, schema in TABLES.items():
        frame = read_table(run, "neurons", name, schema)
        assert frame.columns.tolist() == schema.names
        again = getattr(grouped(), name)
        lists = ["topic_tokens", "tokens", "units"]
        kept = [column for column in schema.names if column not in lists]
        assert_frame_equal(frame[kept], again[kept])
        for column in set(lists) & set(schema.names):
            assert [plain(x) for x in frame[column]] == [plain(x) for x in again[column]]


def plain(value: object) -> object:
    """Nested arrays as nested lists."""
    return [plain(x) for x in value] if isinstance(value, np.ndarray | list) else value


def test_the_sum_of_shifts_can_be_counted_instead_of_rows() -> None:
    config = NeuronsConfig(clustering=joined_into(3), weight="shift", min_rows=5, bootstraps=2)
    found = grouped(config)
    assert found.stability["weight"].tolist() == ["shift"]
    assert found.neurons["rows"].equals(grouped().neurons["rows"])


def test_token_profiles_come_from_tallies() -> None:
    config = NeuronsConfig(clustering=joined_into(3), min_rows=5, bootstraps=2, tokens_weight=1.0)
    run = open_run(make_run("memory://neurons-tallies", "capture.tally.enabled=true"))
    assert all(len(read_tally(run, unit).update_norm_VI) for unit in mlp_units(run.layout))
    found = group_neurons(run, read_outlier_sums(run, run_job), config)
    assert len(found.clusters) == 3
    without = open_run(make_run("memory://neurons-bare", "capture.tally.enabled=false"))
    with pytest.raises(RunError, match="holds no tallies"):
        group_neurons(without, read_outlier_sums(without, run_job), config)


# --- errors ---------------------------------------------------------------------------------------


def test_too_few_neurons_raise() -> None:
    run = open_run(tiny_run())
    config = NeuronsConfig(min_rows=10**6)
    problem = "has 0 neurons with 1000000 or more outlier rows, clustering needs 10. Lower --min"
    with pytest.raises(RunError, match=problem):
        group_neurons(run, read_outlier_sums(run, run_job), config)
    many = NeuronsConfig(clustering=joined_into(500))
    with pytest.raises(RunError, match="clustering needs 501"):
        group_neurons(run, read_outlier_sums(run, run_job), many)


def test_a_run_without_mlp_weights_raises() -> None:
    settings = ["capture.units=[layers.*.out_proj.weight]", "capture.tally.enabled=false"]
    run = open_run(make_run("memory://neurons-attention", *settings, "training.epochs=1"))
    with pytest.raises(RunError, match=r"captured no MLP weights. Capture some with capture\.u"):
        read_outlier_sums(run, run_job)


def test_a_run_without_segments_raises() -> None:
    store = copied(tiny_run(), "memory://neurons-none")
    for segment in range(4):
        store.delete(segment_key(segment))
    with pytest.raises(RunError, match="holds no committed segment yet"):
        read_outlier_sums(open_run(store.uri), run_job)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"weight": "norm"}, "neurons.weight: got 'norm', must be one of rows, shift."),
        ({"min_rows": 0}, "neurons.min_rows: got 0, must be at least 1."),
        ({"bootstraps": 1}, "neurons.bootstraps: got 1, must be at least 2."),
        ({"tokens_weight": 1.5}, "neurons.tokens_weight: got 1.5, must be from 0 to 1."),
        ({"tokens_weight": float("nan")}, "neurons.tokens_weight: got nan, must be from 0 to 1."),
    ],
)
def test_invalid_settings_raise(values: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{text}$"):
        NeuronsConfig(**values)


# --- the command ----------------------------------------------------------------------------------


def printed(*words: str) -> str:
    """Output of the command."""
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    arguments = parser.parse_args(["neurons", *words])
    console = Console(width=110, highlight=False)
    with console.capture() as capture:
        assert arguments.command(arguments, console) == 0
    return capture.get()


def test_the_command_prints_clusters_and_writes_tables() -> None:
    uri = copied(tiny_run(), "memory://neurons-command").uri
    settings = ["--min-rows", "5", "--bootstraps", "2", "--components", "6"]
    text = printed(uri, "--method", "agglomerative", "--clusters", "4", *settings, "--rows", "3")
    assert "Neurons that the same data moved" in text
    assert "The 3 largest of 4 clusters are shown." in text
    assert "agree with this one to " in text
    assert "neurons are polysemantic" in text
    assert len(read_table(open_run(uri), "neurons", "clusters", TABLES["clusters"])) == 4
    assert printed(uri, "--min-cluster", "3", *settings, "--quiet", "--name", "small") == ""


def test_the_command_prints_topics_without_clusters() -> None:
    found = grouped()
    topics = pd.Series({0: [["w1", "[w2]"], ["w3"]], 1: [["w4"]]})
    neurons = found.neurons.iloc[:2].assign(topics=[2, 1], topic_tokens=topics)
    stability = found.stability.assign(clusters=0, clustered=0.0, agreement=np.nan, polysemantic=1)
    console = Console(width=110, highlight=False)
    with console.capture() as capture:
        show_neurons(console, NeuronClusters(neurons, found.clusters.iloc[:0], stability), rows=5)
    assert "w1 [w2]  |  w3" in capture.get()
    assert "100% of" in capture.get()
    assert "agree" not in capture.get()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--rows", "0"], "--rows: got 0, must be at least 1."),
        (["--clusters", "3"], "neurons.clusters: got 3, but hdbscan chooses"),
        (["--bootstraps", "0"], "neurons.bootstraps: got 0"),
    ],
)
def test_bad_arguments_raise_with_exit_code_2(words: list[str], text: str) -> None:
    with pytest.raises(CaptureError, match=text) as caught:
        printed(tiny_run(), *words)
    assert caught.value.exit_code == 2
