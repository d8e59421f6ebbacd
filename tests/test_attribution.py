"""Attribution: tokens, parameters, neurons against plain counters; tables whole or not at all."""

import functools
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from analysis import attribution
from analysis.attribution import Attribution, AttributionConfig, attribute, write_attribution
from analysis.run import open_run
from analysis.tables import marker_key, read_table
from analysis.tokens import count_tokens, notable_tokens
from capture.errors import ConfigError, RunError, ShardError
from capture.markers import segment_key
from capture.store import Store
from cluster.local import run_job
from reference_analysis import attributed_tokens, neuron_tokens, read_everything, records, select
from tiny_run import copied, make_run, tiny_run

CONFIGS = [
    AttributionConfig(min_count=8),
    AttributionConfig(min_count=3, most_frequent=6, most_counted=2, max_parameters=40),
    AttributionConfig(min_count=1, most_frequent=1, most_counted=9, max_parameters=10**6),
]


@functools.cache
def attributed(config: AttributionConfig) -> Attribution:
    return attribute(open_run(tiny_run()), run_job, config)


# --- tokens ---------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    min_count=st.integers(1, 5),
    most_frequent=st.integers(1, 8),
    most_counted=st.integers(1, 5),
)
@example(counts=[(4, 0)] * 5, min_count=4, most_frequent=3, most_counted=2)
def test_notable_tokens_equal_a_plain_selection(
    counts: list[tuple[int, int]], min_count: int, most_frequent: int, most_counted: int
) -> None:
    sample_V = np.array([sample for sample, _ in counts])
    train_V = sample_V + np.array([more for _, more in counts])  # every sampled token is in train
    names = [f"t{token:02}" for token in range(len(counts))]
    config = AttributionConfig(
        min_count=min_count, most_frequent=most_frequent, most_counted=most_counted
    )
    sample = Counter(dict(zip(names, sample_V, strict=True)))
    train = Counter(dict(zip(names, train_V, strict=True)))
    found = notable_tokens(
        sample_V,
        train_V,
        min_count=min_count,
        most_frequent=most_frequent,
        most_counted=most_counted,
    )
    assert [names[token] for token in found] == select(sample, train, names, config)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=6), st.integers(0, 99))
def test_tokens_are_counted_with_multiplicity(datums: list[tuple[int, int]], seed: int) -> None:
    token_NT = np.random.default_rng(seed).integers(7, size=(5, 3)).astype(np.int32)
    datum_K, times_K = np.array(datums, int).reshape(-1, 2).T
    plain = Counter(int(t) for n, times in datums for _ in range(times) for t in token_NT[n])
    found = count_tokens(token_NT, datum_K, times_K, 7)
    assert found.tolist() == [plain[token] for token in range(7)]


# --- against plain counters -----------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_equal_plain_counting(config: AttributionConfig) -> None:
    found = attributed(config).parameters
    columns = found[["unit", "index", "rows", "token", "count"]]
    wanted = attributed_tokens(open_run(tiny_run()), config)
    assert wanted
    assert list(columns.itertuples(index=False, name=None)) == wanted


@pytest.mark.parametrize("config", CONFIGS)
def test_a_neuron_has_the_tokens_of_its_parameters(config: AttributionConfig) -> None:
    run, found = open_run(tiny_run()), attributed(config)
    wanted = neuron_tokens(run, attributed_tokens(run, config))
    tokens = found.neurons.groupby(["unit", "neuron"])["token"].agg(set)
    assert tokens.to_dict() == dict(wanted)
    for row in records(found.summary):
        own = found.neurons.query("unit == @row.unit and neuron == @row.neuron")["token"]
        assert list(row.tokens) == own.tolist()


def test_a_neuron_counts_its_analysed_parameters_rows_and_datums() -> None:
    run, config = open_run(tiny_run()), CONFIGS[1]
    found, rows = attributed(config), read_everything(run, "outliers")
    named = found.parameters.drop_duplicates(["unit", "index"])
    assert len(named) == config.max_parameters  # in this run every analysed parameter has tokens
    for neuron in records(found.summary):
        own = named[(named["unit"] == neuron.unit) & (named["column"] == neuron.neuron)]
        of_neuron = rows[(rows["unit"] == neuron.unit) & rows["index"].isin(own["index"])]
        assert (neuron.parameters, neuron.rows) == (len(own), len(of_neuron))
        datums = found.datums
        datums = datums[(datums["unit"] == neuron.unit) & (datums["neuron"] == neuron.neuron)]
        counts = of_neuron["datum"].value_counts()
        assert dict(zip(datums["datum"], datums["rows"], strict=True)) == counts.to_dict()
        assert datums["rows"].is_monotonic_decreasing


def test_frequencies_are_what_their_names_say() -> None:
    run, found = open_run(tiny_run()), attributed(CONFIGS[0])
    rows = read_everything(run, "outliers")
    train_V = np.bincount(run.token_NT[rows["datum"].unique()].ravel(), minlength=run.num_tokens)
    for row in records(found.parameters.iloc[::97]):
        assert row.train_frequency == pytest.approx(train_V[row.token_id] / train_V.sum())
        assert row.frequency == pytest.approx(row.count / (row.rows * 8))
        assert row.relative_frequency == pytest.approx(row.frequency / row.train_frequency)
    for row in records(found.neurons.iloc[::7]):
        own = found.parameters.query(
            "unit == @row.unit and column == @row.neuron and token == @row.token"
        )
        expected = (own["train_frequency"] * own["rows"] * 8).sum()
        assert (row.named_by, row.count) == (len(own), own["count"].sum())
        assert row.relative_frequency == pytest.approx(row.count / expected)
        assert row.strength == pytest.approx(np.log(own["relative_frequency"]).sum())


def test_neurons_stand_by_rows_and_tokens_by_strength() -> None:
    found = attributed(CONFIGS[0])
    assert found.summary["rows"].is_monotonic_decreasing
    for _, own in found.neurons.groupby(["unit", "neuron"]):
        assert own["strength"].is_monotonic_decreasing


# --- tables ---------------------------------------------------------------------------------------


def test_tables_are_read_as_they_were_written() -> None:
    run = open_run(copied(tiny_run(), "memory://attribution-tables").uri)
    found = attributed(CONFIGS[1])
    write_attribution(run, found)
    for name, schema in attribution.TABLES.items():
        frame = read_table(run, "attribute", name, schema)
        assert frame.columns.tolist() == schema.names
        assert_frame_equal(
            frame.drop(columns="tokens", errors="ignore"), without_lists(found, name)
        )
    assert (
        read_table(run, "attribute", "summary", attribution.SUMMARY)["tokens"].map(list).tolist()
        == found.summary["tokens"].map(list).tolist()
    )
    write_attribution(run, attributed(CONFIGS[0]))  # in the place of the first
    again = read_table(run, "attribute", "neurons", attribution.NEURONS)
    assert_frame_equal(again, attributed(CONFIGS[0]).neurons)


def without_lists(found: Attribution, name: str) -> pd.DataFrame:
    return getattr(found, name).drop(columns="tokens", errors="ignore")


def test_tables_appear_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(copied(tiny_run(), "memory://attribution-whole").uri)
    write_attribution(run, attributed(CONFIGS[0]))
    original = Store.put

    def breaks(store: Store, key: str, data: bytes | memoryview) -> None:
        if key.endswith("summary.parquet"):
            raise OSError("disk full")
        original(store, key, data)

    monkeypatch.setattr(Store, "put", breaks)
    with pytest.raises(OSError, match="disk full"):
        write_attribution(run, attributed(CONFIGS[1]))
    with pytest.raises(RunError, match=r"has no tables of attribute\. Run: ontogeny attribute mem"):
        read_table(run, "attribute", "parameters", attribution.PARAMETERS)


def test_tables_of_an_earlier_state_of_the_run_are_refused() -> None:
    store = copied(tiny_run(), "memory://attribution-stale")
    last = store.get(segment_key(3))
    store.delete(segment_key(3))
    short = open_run(store.uri)
    write_attribution(short, attribute(short, run_job, CONFIGS[1]))
    store.put(segment_key(3), last)
    problem = "has tables of attribute for 21 steps, but 24 are done. Run: ontogeny attribute mem"
    with pytest.raises(RunError, match=problem):
        read_table(open_run(store.uri), "attribute", "neurons", attribution.NEURONS)


def test_a_damaged_table_is_named() -> None:
    run = open_run(copied(tiny_run(), "memory://attribution-damaged").uri)
    write_attribution(run, attributed(CONFIGS[1]))
    run.store.put("analysis/attribute/neurons.parquet", b"")
    with pytest.raises(ShardError, match=r"neurons\.parquet: holds 0 bytes"):
        read_table(run, "attribute", "neurons", attribution.NEURONS)
    run.store.put(marker_key("attribute"), b"{}")
    with pytest.raises(ShardError, match=r"analysis/attribute/tables.json: is not a readable"):
        read_table(run, "attribute", "datums", attribution.DATUMS)


# --- what cannot be attributed --------------------------------------------------------------------


@pytest.mark.parametrize("name", AttributionConfig.__dataclass_fields__)
def test_impossible_settings_are_refused(name: str) -> None:
    values: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=f"^attribution.{name}: got 0, must be at least 1.$"):
        AttributionConfig(**values)


def test_a_run_without_weights_has_no_attribution() -> None:
    settings = ["capture.units=[layers.*.norm*.bias]", "capture.outliers.k=5", "training.epochs=1"]
    run = open_run(make_run("memory://attribution-biases", *settings))
    with pytest.raises(RunError, match="has no outliers of weights"):
        attribute(run, run_job, AttributionConfig())


def test_a_run_without_neurons_has_parameters_only() -> None:
    settings = ["capture.units=[layers.*.out_proj.weight]", "training.epochs=1"]
    run = open_run(make_run("memory://attribution-attention", *settings))
    found = attribute(run, run_job, AttributionConfig(min_count=1))
    assert len(found.parameters) > 0
    assert len(found.neurons) == len(found.summary) == len(found.datums) == 0
    write_attribution(run, found)


def test_thresholds_that_nothing_reaches_leave_the_tokens_out() -> None:
    run = open_run(tiny_run())
    found = attribute(run, run_job, AttributionConfig(min_count=10**6))
    assert len(found.parameters) == len(found.neurons) == 0
    assert not any(map(len, found.summary["tokens"]))
    assert len(found.summary) > 0
