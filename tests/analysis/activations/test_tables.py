"""Activation tables equal recounts over all positions; choice of tokens and neuron."""

import functools
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tiny_run import copied, tiny_run

from analysis.activations import comparison as activation_comparison
from analysis.activations.comparison import neighbours
from analysis.activations.config import ActivationConfig
from analysis.activations.quantities import measure, units_of
from analysis.activations.tables import JOB, TABLES, Activations, activations, write_activations
from analysis.jobs.tables import read_table, write_tables
from analysis.run.run import Run, open_run

UNIT = "layers.1.linear2.weight"
ATTRIBUTED = pa.schema(
    [("level", pa.string()), ("unit", pa.string()), ("group", pa.int32()), ("token_id", pa.int32())]
)


@functools.cache
def found() -> Activations:
    return activations(open_run(tiny_run()), ActivationConfig(tokens=("w3", "w7", "w3", ".")))


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    run = open_run(tiny_run())
    return measure(run.model(), run.token_NT, list(units_of(run.model())))


def records(frame: pd.DataFrame) -> list[Any]:
    """Return the rows with their values as attributes."""
    return list(frame.itertuples())


def values(run: Run, row: Any) -> np.ndarray:
    """Return the activations of the row's neuron at positions with its token as target."""
    return inputs()[row.unit][:, :, row.neuron][run.target_NT == row.token_id].astype(np.float64)


def attributed(name: str, *rows: tuple[str, str, int, int], schema: pa.Schema = ATTRIBUTED) -> Run:
    """Return a run with these attributed tokens: level, unit, group, token id."""
    run = open_run(copied(tiny_run(), f"memory://activations-{name}").uri)
    frame = pd.DataFrame(rows, columns=ATTRIBUTED.names)
    write_tables(run, "attribute", {"tokens": frame}, {"tokens": schema})
    return run


def about(run: Run, **settings: Any) -> dict[str, Any]:
    (row,) = activations(run, ActivationConfig(**settings)).about.to_dict("records")
    return {str(name): value for name, value in row.items()}


# --- tables equal recounts ------------------------------------------------------------------------


def test_statistics_are_those_of_the_tokens_positions() -> None:
    run, statistics = open_run(tiny_run()), found().statistics
    assert statistics["token"].drop_duplicates().tolist() == ["w3", "w7", "."]
    assert len(statistics) == 3 * sum(units_of(run.model()).values())
    for row in records(statistics):
        x_M = values(run, row)
        assert (row.count, row.token) == (len(x_M), run.tokens[row.token_id])
        wanted = x_M.mean(), x_M.std(), x_M.min(), x_M.max()
        np.testing.assert_allclose((row.mean, row.std, row.min, row.max), wanted, atol=1e-5)
        x_NT = inputs()[row.unit][:, :, row.neuron].astype(np.float64)
        away = abs(x_M.mean() - x_NT.mean())
        np.testing.assert_allclose(row.score * x_NT.std(), away, atol=1e-5)


def test_ranks_are_the_extremes_of_the_statistics() -> None:
    for token, ranks in found().ranks.groupby("token"):
        own = found().statistics[found().statistics["token"] == token]
        own = own[own["unit"].str.endswith("linear2.weight")]  # inputs of linear1: another scale
        assert ranks["rank"].tolist() == list(range(10))
        for end, rising in (("min", True), ("max", False)):
            wanted = own.sort_values("mean", ascending=rising, kind="stable").head(10)
            names = [f"{end}_unit", f"{end}_neuron", f"{end}_mean"]
            assert np.array_equal(ranks[names], wanted[["unit", "neuron", "mean"]])


def test_comparisons_use_every_position_of_rare_tokens() -> None:
    run = open_run(tiny_run())
    for row in records(found().comparisons):
        x_M = values(run, row)
        assert row.count == len(x_M)
        wanted = [x_M.mean(), x_M.std(), *np.percentile(x_M, [0, 25, 50, 75, 100])]
        spread = [row.mean, row.std, row.min, row.q25, row.median, row.q75, row.max]
        np.testing.assert_allclose(spread, wanted, atol=1e-5)


def test_the_figures_compare_what_the_study_compared() -> None:
    comparisons, about = found().comparisons, found().about.iloc[0]
    one, two, three = (comparisons[comparisons["figure"] == figure] for figure in (1, 2, 3))
    assert one["token"].tolist()[0] == "w3"
    assert one["focus"].tolist() == [True] + [False] * 6
    assert set(two["token"]) == {"w3"}
    assert two["neuron"].tolist() == neighbours(
        about["neuron"], 16 if "1.w" in about["unit"] else 12
    )
    assert two.loc[two["focus"], "neuron"].tolist() == [about["neuron"]]
    assert three.loc[three["focus"], "token"].tolist() == ["w3", "w7", "."]
    others = three.loc[~three["focus"], "token"].tolist()
    assert others == one["token"].tolist()[1:]
    assert len(set(others)) == 6
    assert not {"w3", "w7", ".", ",", "<unk>"} & set(others)
    assert set(comparisons["unit"]) == {about["unit"]}
    assert {*one["neuron"], *three["neuron"]} == {about["neuron"]}


def test_histograms_of_a_figure_share_their_bins_and_hold_every_position() -> None:
    comparisons, histograms = found().comparisons, found().histograms
    for figure, own in histograms.groupby("figure"):
        lows = own["low"].to_numpy().reshape(-1, 30)
        assert (lows == lows[0]).all()
        wanted = comparisons[comparisons["figure"] == figure]
        counts = own["count"].to_numpy().reshape(-1, 30)
        assert counts.sum(1).tolist() == wanted["count"].tolist()
        assert own["group"].tolist()[::30] == wanted["token"].tolist()
        assert own["neuron"].tolist()[::30] == wanted["neuron"].tolist()
        assert own["low"].min() == wanted["min"].min()
        assert own["high"].max() == wanted["max"].max()


def test_comparisons_use_some_positions_of_frequent_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_comparison, "MAX_POSITIONS", 5)
    run = open_run(tiny_run())
    few = activations(run, ActivationConfig(tokens=("w3",), neuron=f"{UNIT}:4")).comparisons
    again = activations(run, ActivationConfig(tokens=("w3",), neuron=f"{UNIT}:4")).comparisons
    assert (few["count"] == 5).all()
    pd.testing.assert_frame_equal(few, again)


def test_another_seed_draws_other_words() -> None:
    run = open_run(tiny_run())
    a, b = (
        activations(run, ActivationConfig(tokens=("w3",), neuron=f"{UNIT}:4", seed=seed))
        for seed in (0, 1)
    )
    assert a.comparisons["token"].tolist() != b.comparisons["token"].tolist()
    pd.testing.assert_frame_equal(a.statistics, b.statistics)


def test_by_input_counts_the_positions_that_read_the_token() -> None:
    run = open_run(tiny_run())
    table = activations(run, ActivationConfig(tokens=("w3",), by="input"))
    token = run.tokens.index("w3")
    assert (table.statistics["count"] == (run.token_NT == token).sum()).all()
    assert table.about["by"].item() == "input"


def test_an_earlier_checkpoint_has_other_activations() -> None:
    run = open_run(tiny_run())
    early = activations(run, ActivationConfig(tokens=("w3",), step=7))
    assert early.about["step"].item() == 7
    assert found().about["step"].item() == run.steps_done == 24
    own = found().statistics[found().statistics["token"] == "w3"]
    assert not np.allclose(early.statistics["mean"], own["mean"], atol=1e-3)


def test_tables_read_back_as_they_were_written() -> None:
    run = open_run(copied(tiny_run(), "memory://activations-written").uri)
    write_activations(run, found())
    for name, schema in TABLES.items():
        frame = read_table(run, JOB, name, schema)
        pd.testing.assert_frame_equal(frame, vars(found())[name])
        assert frame.columns.tolist() == schema.names


# --- choice of tokens and neuron ------------------------------------------------------------------


def test_without_attribution_frequency_and_activation_choose() -> None:
    run = open_run(tiny_run())
    table = activations(run, ActivationConfig())
    row, first = table.about.iloc[0], table.ranks.iloc[0]
    assert (row["tokens_from"], row["neuron_from"]) == ("frequency", "activation")
    assert (row["unit"], row["neuron"]) == (first["max_unit"], first["max_neuron"])
    counts = np.bincount(run.target_NT.ravel(), minlength=run.num_tokens)
    words = [token for token in np.argsort(-counts, kind="stable") if run.tokens[token][0] == "w"]
    assert table.ranks["token_id"].drop_duplicates().tolist() == words
    assert row["positions"] == run.target_NT.size == row["datums"] * 8


def test_attribution_chooses_tokens_and_neuron() -> None:
    run = attributed(
        "attributed",
        ("head", "layers.0.self_attn", 1, 9),
        ("neuron", UNIT, 4, 5),
        ("neuron", UNIT, 4, 2),
        ("neuron", "layers.0.linear1.weight", 15, 5),
        ("neuron", "layers.0.linear1.weight", 15, 7),
    )
    table = activations(run, ActivationConfig())
    row = table.about.iloc[0]
    assert (row["tokens_from"], row["neuron_from"]) == ("attribution", "attribution")
    assert (row["unit"], row["neuron"]) == (UNIT, 4)
    assert list(row["tokens"]) == [run.tokens[5], run.tokens[2]]
    assert table.ranks["token_id"].drop_duplicates().tolist() == [5, 2, 7]
    others = table.comparisons.loc[~table.comparisons["focus"] & (table.comparisons["figure"] == 1)]
    assert not {5, 2} & set(others["token_id"])

    asked = about(run, neuron="layers.0.linear1.weight:15")
    assert (asked["tokens_from"], asked["neuron_from"]) == ("attribution", "asked")
    assert list(asked["tokens"]) == [run.tokens[5], run.tokens[7]]

    asked = about(run, tokens=(run.tokens[7],))
    assert (asked["unit"], asked["neuron"]) == ("layers.0.linear1.weight", 15)
    assert (asked["tokens_from"], asked["neuron_from"]) == ("asked", "attribution")

    unattributed = about(run, tokens=(run.tokens[8],))
    assert unattributed["neuron_from"] == "activation"


def test_the_asked_neurons_own_tokens_come_first() -> None:
    rows = [("neuron", UNIT, n, 1 + n) for n in range(9)]
    table = activations(attributed("many", *rows), ActivationConfig(neuron=f"{UNIT}:6"))
    assert table.ranks["token_id"].iloc[0] == 7
    assert list(table.about["tokens"].item()) == [open_run(tiny_run()).tokens[7]]


def test_an_attribution_without_tokens_chooses_nothing() -> None:
    assert about(attributed("nothing"))["tokens_from"] == "frequency"
