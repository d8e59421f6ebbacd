"""The tokens of one parameter against plain counters, the study's tables and random draws."""

import functools
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from custom_loops import Small, uri
from reference_analysis import read_everything, records
from tiny_run import tiny_run
from torch.nn import functional as F

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.attribution.outlier_weights import RowEvidence
from analysis.jobs.question import Question
from analysis.jobs.tables import read_table
from analysis.measures.selection import SelectionConfig
from analysis.parameters.config import ParameterConfig
from analysis.parameters.tables import TOKENS, ParameterTokens
from analysis.parameters.tokens import chance_of, parameter_tokens, write_parameter
from analysis.run.run import Run, open_run
from capture.custom_loop.record import record
from capture.errors import CaptureError, ConfigError
from capture.shifts.outliers import OutlierConfig
from cluster.local.threads import run_job

SELECTION = SelectionConfig(min_count=8)


@functools.cache
def run() -> Run:
    return open_run(tiny_run())


@functools.cache
def strongest() -> tuple[str, int]:
    """Return unit and index of the weight with the most rows."""
    rows = run().shifts()
    weights = [name for name in run().layout.names if len(run().layout.shapes[name]) == 2]
    counts = rows[rows["unit"].isin(weights)].groupby(["unit", "index"], observed=True).size()
    unit, index = counts.index[int(counts.argmax())]
    return str(unit), int(index)


def asked(**options: object) -> ParameterTokens:
    unit, index = strongest()
    config = ParameterConfig(unit=unit, index=index, **{"selection": SELECTION, **options})
    return parameter_tokens(run(), config)


def own_rows(table: pd.DataFrame) -> pd.DataFrame:
    unit, index = strongest()
    return table[(table["unit"] == unit) & (table["index"] == index)]


@pytest.mark.parametrize("evidence", ["window", "target", "input"])
@pytest.mark.parametrize("steps", [(0, None), (5, 17)])
def test_counts_and_ranks_equal_those_of_plain_counters(evidence: RowEvidence, steps):
    found = asked(evidence=evidence, first_step=steps[0], end_step=steps[1])
    rows = own_rows(read_everything(run(), "outliers"))
    covered = range(steps[0], steps[1] or run().steps_done)
    rows = rows[rows["step"].isin(covered)]
    sample, train = Counter(), Counter()
    for row in records(rows):
        sample.update(tokens_of(row.datum, row.position, evidence))
    for datum in set(
        np.concatenate(run().steps()["datums"].iloc[covered.start : covered.stop].to_numpy())
    ):
        train.update(tokens_of(datum, None, evidence))
    tokens = found.tokens
    assert dict(zip(tokens["token"], tokens["count"], strict=True)) == sample
    wanted = [
        (sample[name] / sample.total()) / (train[name] / train.total()) for name in tokens["token"]
    ]
    np.testing.assert_allclose(tokens["relative_frequency"], wanted)
    assert tokens["relative_frequency"].is_monotonic_decreasing
    assert tokens["frequency_rank"].tolist() == list(range(len(tokens)))
    assert tokens.sort_values("count_rank")["count"].is_monotonic_decreasing
    about = found.about.iloc[0]
    assert (about["rows"], about["datums"]) == (len(rows), rows["datum"].nunique())
    assert about["tokens"] == sample.total()
    assert about["up"] == (rows["shift"] > 0).mean()
    assert about["shift"] == pytest.approx(rows["shift"].astype(float).sum())


def tokens_of(datum: int, position: int | None, evidence: RowEvidence) -> list[str]:
    token_NT = run().target_NT if evidence == "target" else run().token_NT
    if evidence == "window" or position is None:
        return [run().tokens[t] for t in token_NT[datum]]
    return [run().tokens[token_NT[datum, position]]]


def test_the_chosen_tokens_are_those_of_the_study_for_this_parameter():
    study = attribute(run(), run_job, AttributionConfig.study(selection=SELECTION)).parameters
    wanted = own_rows(study)
    tokens = asked().tokens.query("chosen_rank >= 0").sort_values("chosen_rank")
    assert len(wanted) > 0
    for name in ("token", "count"):
        assert tokens[name].tolist() == wanted[name].tolist()
    for name in ("frequency", "train_frequency", "relative_frequency"):
        np.testing.assert_allclose(tokens[name], wanted[name])


def test_other_methods_choose_tokens_too():
    anything = SelectionConfig(min_observations=0, max_q=1, most=4)
    assert asked(select="rate", selection=anything).tokens["chosen_rank"].max() == 3


# --- chance ---------------------------------------------------------------------------------------


def test_rows_of_random_datums_are_beyond_chance_in_5_percent_of_cases():
    """Law 14; 300 cases: more than 26 have probability 0.001 if the rate is 5 %."""
    rng = np.random.default_rng(0)
    token_ST = np.minimum(rng.geometric(0.08, (400, 8)), 60) - 1
    train_V = np.bincount(token_ST.ravel(), minlength=60).astype(float)
    beyond = 0
    for case in range(300):
        rows_K = rng.integers(1, 5, 40).astype(float)
        site_K = rng.choice(400, 40, replace=False)
        count_V = np.bincount(token_ST[site_K].ravel(), np.repeat(rows_K, 8), 60)
        ratio_V = count_V / count_V.sum() / (train_V / train_V.sum())
        beyond += ratio_V[count_V >= 10].max() > chance_of(rows_K, token_ST, train_V, 10, case)
    assert 3 <= beyond <= 26


def test_rows_of_the_datums_with_a_token_are_beyond_chance():
    token_ST = np.random.default_rng(0).integers(1, 60, (400, 8))
    token_ST[:40, 3] = 0
    train_V = np.bincount(token_ST.ravel(), minlength=60).astype(float)
    chance = chance_of(np.ones(40), token_ST, train_V, 10, 0)
    assert 1 < chance < 5 < (1 / 8) / (40 / (400 * 8))


def test_without_a_token_that_is_frequent_enough_nothing_is_beyond_chance():
    found = asked(selection=SelectionConfig(min_count=10**6))
    assert found.about["chance"].item() == 0
    assert not found.tokens["beyond_chance"].any()


# --- errors and tables ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "layers.0.linear1"}, r"layers\.0\.linear1: was not captured.*Did you mean"),
        ({"index": 9999}, r"\[9999\]: does not exist: the unit is 12 × 16, its indices are 0 to"),
        ({"first_step": 20, "end_step": 90}, r"has steps 0 to 23, asked for 20 to 89"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options, message):
    config = {"unit": "layers.1.linear1.weight", "index": 0} | options
    with pytest.raises(CaptureError, match=message):
        parameter_tokens(run(), ParameterConfig(**config))


def test_a_parameter_without_outliers_is_refused():
    unit = "layers.0.linear1.weight"
    has = set(run().shifts(unit=unit)["index"])
    index = next(i for i in range(12 * 16) if i not in has)
    counts = run().shifts(unit=unit).groupby("index").size()
    most = f"The one with the most in this unit is {counts.idxmax()}, with {counts.max()}."
    message = re.escape(f"{unit}:{index}: has no recorded outliers in steps 0 to 23. {most}")
    with pytest.raises(CaptureError, match=message):
        parameter_tokens(run(), ParameterConfig(unit=unit, index=index))


def test_a_unit_without_outliers_is_said_to_have_none():
    has = set(run().shifts(steps=range(1))["unit"])
    unit = next(name for name in run().layout.names if name not in has)
    with pytest.raises(CaptureError, match=r"The whole unit has none; capture\.outliers\.scope"):
        parameter_tokens(run(), ParameterConfig(unit=unit, index=0, end_step=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evidence": "update-norm"}, "evidence: got update-norm, must be one of target, input, w"),
        ({"select": "most"}, "select: got most, must be one of rate, odds"),
        ({"index": -1}, "index: got -1, must be at least 0"),
        ({"first_step": 3, "end_step": 3}, "end_step: got 3, must be above the first step, 3"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ParameterConfig(**({"unit": "a", "index": 0} | options))


def test_tables_are_written_and_read_back(tmp_path):
    opened, found = open_run(tiny_run(), tables=str(tmp_path)), asked()
    question = Question.of("parameter", ParameterConfig(unit="a", index=1))
    write_parameter(opened, found, question, "one")
    assert read_table(opened, "parameter/one", "tokens", TOKENS).equals(found.tokens)


# --- datums of different length -------------------------------------------------------------------


@pytest.mark.parametrize("evidence", ["window", "target", "input"])
def test_padding_of_shorter_datums_is_no_token(tmp_path, evidence: RowEvidence):
    datums = [[1, 2, 3], [4, 5], [1, 2, 3, 6, 7, 8], [9, 8, 7, 6]]
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outliers = OutlierConfig(k=30, scope="unit")
    with record(model, optimizer, run=uri(tmp_path), datums=datums, outliers=outliers) as recorder:
        recorder.datums(range(4))
        token_NT, target_NT = torch.zeros(4, 5, dtype=torch.int64), torch.full((4, 5), -100)
        for row, datum in enumerate(datums):
            token_NT[row, : len(datum) - 1] = torch.tensor(datum[:-1])
            target_NT[row, : len(datum) - 1] = torch.tensor(datum[1:])
        F.cross_entropy(model(token_NT).flatten(0, 1), target_NT.flatten()).backward()
        optimizer.step()
    opened = open_run(uri(tmp_path))
    config = ParameterConfig(unit="layer.bias", index=0, evidence=evidence)
    found = parameter_tokens(opened, config)
    rows = opened.shifts(unit="layer.bias", index=0)
    assert len(rows) == 4
    wanted = Counter()
    for row in records(rows):
        own = datums[row.datum_id]
        sides = {
            "window": own[:-1],
            "target": [own[row.position + 1]],
            "input": [own[row.position]],
        }
        wanted.update(sides[evidence])
    tokens = found.tokens
    assert dict(zip(tokens["token_id"], tokens["count"], strict=True)) == wanted
    assert tokens["train_frequency"].sum() <= 1 + 1e-9
    if evidence == "window":
        assert tokens["relative_frequency"].tolist() == pytest.approx([1.0] * len(tokens))
