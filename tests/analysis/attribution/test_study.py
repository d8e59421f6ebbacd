"""The study's attribution against plain counters: tokens, parameters, neurons."""

import functools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reference_analysis import attributed_tokens, neuron_tokens, read_everything, records, select
from tiny_run import make_run, tiny_run

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.attribution.sparse_sums import count_tokens, token_matrix
from analysis.attribution.tables import Attribution
from analysis.measures.selection import SelectionConfig, choose
from analysis.run.run import open_run
from capture.errors import RunError
from cluster.local.threads import run_job


def study(min_count: int, most_frequent: int, most_counted: int, most: int) -> AttributionConfig:
    selection = SelectionConfig(
        min_count=min_count, most_frequent=most_frequent, most_counted=most_counted
    )
    return AttributionConfig.study(max_parameters=most, selection=selection)


CONFIGS = [study(8, 200, 5, 5000), study(3, 6, 2, 40), study(1, 1, 9, 10**6)]


@functools.cache
def attributed(config: AttributionConfig) -> Attribution:
    return attribute(open_run(tiny_run()), run_job, config)


def of_neurons(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["level"] == "neuron"]


# --- tokens ---------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    min_count=st.integers(1, 5),
    most_frequent=st.integers(1, 8),
    most_counted=st.integers(1, 5),
)
@example(counts=[(4, 0)] * 5, min_count=4, most_frequent=3, most_counted=2)
def test_the_chosen_tokens_equal_a_plain_selection(
    counts: list[tuple[int, int]], min_count: int, most_frequent: int, most_counted: int
) -> None:
    sample_V = np.array([sample for sample, _ in counts])
    train_V = sample_V + np.array([more for _, more in counts])  # every sampled token is in train
    names = [f"t{token:02}" for token in range(len(counts))]
    config = study(min_count, most_frequent, most_counted, 1)
    sample = Counter(dict(zip(names, sample_V, strict=True)))
    train = Counter(dict(zip(names, train_V, strict=True)))
    floats = sample_V[None].astype(float), train_V.astype(float)
    found = choose("study", *floats, config.selection)
    assert [names[token] for token in found["token_id"]] == select(sample, train, names, config)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=6), st.integers(0, 99))
def test_tokens_are_counted_with_multiplicity(datums: list[tuple[int, int]], seed: int) -> None:
    token_NT = np.random.default_rng(seed).integers(7, size=(5, 3)).astype(np.int32)
    datum_K, times_K = np.array(datums, int).reshape(-1, 2).T
    plain = Counter(int(t) for n, times in datums for _ in range(times) for t in token_NT[n])
    found = count_tokens(token_NT, datum_K, times_K, 7)
    assert found.tolist() == [plain[token] for token in range(7)]
    times_N = np.bincount(datum_K, times_K, 5)
    assert (times_N @ token_matrix(token_NT, 7)).tolist() == found.tolist()


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
    named = of_neurons(found.tokens)
    assert named.groupby(["unit", "group"])["token"].agg(set).to_dict() == dict(wanted)
    for row in records(of_neurons(found.groups)):
        own = named.query("unit == @row.unit and group == @row.group")["token"]
        assert list(row.tokens) == own.tolist()


def test_a_neuron_counts_its_analysed_parameters_rows_and_datums() -> None:
    run, config = open_run(tiny_run()), CONFIGS[1]
    found, rows = attributed(config), read_everything(run, "outliers")
    named = found.parameters.drop_duplicates(["unit", "index"])
    assert len(named) == config.max_parameters  # in this run every analysed parameter has tokens
    for neuron in records(of_neurons(found.groups)):
        own = named[(named["unit"] == neuron.unit) & (named["column"] == neuron.group)]
        of_neuron = rows[(rows["unit"] == neuron.unit) & rows["index"].isin(own["index"])]
        assert (neuron.rows, neuron.weight) == (len(of_neuron), len(of_neuron) * 8)
        datums = found.datums.query("unit == @neuron.unit and group == @neuron.group")
        counts = of_neuron["datum"].value_counts()
        assert dict(zip(datums["datum"], datums["rows"], strict=True)) == counts.to_dict()
        assert datums["rows"].is_monotonic_decreasing
        strongest = of_neuron.assign(size=of_neuron["shift"].abs()).groupby("datum")["size"].max()
        sizes = dict(zip(datums["datum"], datums["shift"].abs(), strict=True))
        assert sizes == strongest.to_dict()


def test_frequencies_follow_their_definitions() -> None:
    run, found = open_run(tiny_run()), attributed(CONFIGS[0])
    rows = read_everything(run, "outliers")
    train_V = np.bincount(run.token_NT[rows["datum"].unique()].ravel(), minlength=run.num_tokens)
    for row in records(found.parameters.iloc[::97]):
        assert row.train_frequency == pytest.approx(train_V[row.token_id] / train_V.sum())
        assert row.frequency == pytest.approx(row.count / (row.rows * 8))
        assert row.relative_frequency == pytest.approx(row.frequency / row.train_frequency)
    for row in records(of_neurons(found.tokens).iloc[::7]):
        own = found.parameters.query(
            "unit == @row.unit and column == @row.group and token == @row.token"
        )
        expected = (own["train_frequency"] * own["rows"] * 8).sum()
        assert row.count == own["count"].sum() == row.weight
        assert row.expected == pytest.approx(expected)
        assert row.relative_frequency == pytest.approx(row.count / expected)
        assert row.score == pytest.approx(np.log(own["relative_frequency"]).sum())


def test_neurons_are_ordered_by_rows_and_tokens_by_score() -> None:
    found = attributed(CONFIGS[0])
    assert of_neurons(found.groups)["rows"].is_monotonic_decreasing
    for _, own in of_neurons(found.tokens).groupby(["unit", "group"]):
        assert own["score"].is_monotonic_decreasing
        assert own["rank"].tolist() == list(range(len(own)))


def test_windows_of_training_add_up_to_the_whole() -> None:
    found = attributed(CONFIGS[0])
    keys = ["level", "unit", "group", "token_id"]
    summed = found.windows.groupby(keys)["weight"].sum()
    assert summed.to_dict() == found.tokens.set_index(keys)["weight"].to_dict()
    assert found.windows["window"].nunique() == 5


# --- runs without evidence ------------------------------------------------------------------------


def test_a_run_without_weights_has_no_attribution() -> None:
    settings = ["capture.units=[layers.*.norm*.bias]", "capture.outliers.k=5", "training.epochs=1"]
    run = open_run(make_run("memory://attribution-biases", *settings))
    with pytest.raises(RunError, match="has no outliers of weights"):
        attribute(run, run_job, AttributionConfig.study())
    with pytest.raises(
        RunError, match=r"level neuron: the run captured no neurons \(inputs of MLP"
    ):
        attribute(run, run_job, AttributionConfig())


def test_a_run_without_neurons_has_parameters_only() -> None:
    settings = ["capture.units=[layers.*.out_proj.weight]", "training.epochs=1"]
    run = open_run(make_run("memory://attribution-attention", *settings))
    found = attribute(run, run_job, study(1, 200, 5, 5000))
    assert len(found.parameters) > 0
    assert set(found.tokens["level"]) == {"parameter"}
    assert len(found.datums) == 0


def test_thresholds_that_no_token_reaches_give_no_tokens() -> None:
    found = attribute(open_run(tiny_run()), run_job, study(10**6, 200, 5, 5000))
    assert len(found.parameters) == len(found.tokens) == len(found.windows) == 0
    assert not any(map(len, found.groups["tokens"]))
    assert len(found.groups) > 0
