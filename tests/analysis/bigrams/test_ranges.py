"""Bigram logits over a range of steps: sums over its steps, and agreement with checkpoints."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_run import copied, make_run, tiny_run

from analysis.bigrams.bigrams import (
    BigramConfig,
    BigramSearch,
    BigramTables,
    find_bigrams,
    write_bigrams,
)
from analysis.bigrams.layers import EmbeddingPair, find_embeddings
from analysis.bigrams.shifts import largest_shifts
from analysis.bigrams.tables import BIGRAMS, DATUMS, JOB
from analysis.jobs.tables import read_table
from analysis.run.run import Run, open_run
from capture.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(tiny_run())


@pytest.fixture(scope="module")
def whole(run: Run) -> BigramTables:
    """Every bigram and every datum, over steps 5 to 15."""
    config = BigramConfig(first_step=5, end_step=16, top=1000, datums=51)
    return find_bigrams(run, config)


@pytest.fixture(scope="module")
def each(run: Run) -> BigramTables:
    config = BigramConfig(first_step=5, end_step=16, each_step=True, top=1000, datums=4)
    return find_bigrams(run, config)


def by_bigram(found: BigramTables) -> pd.Series:
    return found.bigrams.groupby(["next_id", "token_id"])["shift"].sum()


def by_datum(found: BigramTables) -> pd.Series:
    rows = found.datums.merge(found.bigrams, on=["first_step", "rank"])
    return rows.groupby(["next_id", "token_id", "datum"])["contribution"].sum()


def test_a_range_is_the_sum_of_its_steps(whole: BigramTables, each: BigramTables) -> None:
    assert len(whole.bigrams) == 15 * 15
    pd.testing.assert_series_equal(by_bigram(whole), by_bigram(each), atol=1e-12)
    pd.testing.assert_series_equal(by_datum(whole), by_datum(each), rtol=1e-9, atol=1e-12)


def test_the_datums_of_a_range_add_up_to_its_shifts(whole: BigramTables) -> None:
    summed = whole.datums.groupby("rank")[["contribution", "share"]].sum()
    shift = whole.bigrams["shift"].to_numpy()
    np.testing.assert_allclose(
        summed["contribution"] + whole.bigrams["missed"], shift, rtol=0, atol=1e-12
    )
    assert whole.bigrams["missed"].abs().max() < 1e-5
    np.testing.assert_allclose(summed["contribution"], summed["share"] * shift, atol=1e-12)


def test_over_a_range_carry_adds_up_too() -> None:
    settings = ("training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.epochs=1")
    run = open_run(make_run("memory://bigrams/adamw", *settings))
    found = find_bigrams(run, BigramConfig(first_step=2, end_step=9, top=40, datums=51))
    assert (found.bigrams["carry"] != 0).all()
    summed = found.datums.groupby("rank")["contribution"].sum() + found.bigrams["carry"]
    np.testing.assert_allclose(summed, found.bigrams["shift"], rtol=0, atol=1e-5)


def test_a_range_equals_the_difference_of_the_models_at_its_ends(run: Run) -> None:
    found = find_bigrams(run, BigramConfig(first_step=7, end_step=21, top=9, datums=0)).bigrams
    before, after = (
        EmbeddingPair.of(model.state_dict(), find_embeddings(model))
        for model in (run.model(7), run.model(21))
    )
    wanted = largest_shifts(before, after, 9)
    assert found["next_id"].tolist() == wanted.next_K.tolist()
    assert found["shift"].tolist() == wanted.shift_K.tolist()
    assert found["next"].tolist() == [run.tokens[v] for v in wanted.next_K]
    assert found["token"].tolist() == [run.tokens[w] for w in wanted.token_K]
    assert found["missed"].isna().all()


def test_each_step_equals_a_range_of_one_step(run: Run) -> None:
    config = BigramConfig(first_step=8, end_step=9, top=5, datums=3)
    one, other = (find_bigrams(run, replace(config, each_step=each)) for each in (True, False))
    pd.testing.assert_frame_equal(one.bigrams, other.bigrams)
    pd.testing.assert_frame_equal(one.datums, other.datums)
    assert one.datums.groupby("rank").size().tolist() == [3] * 5


def test_only_datums_of_the_steps_contribute(run: Run, each: BigramTables) -> None:
    taken = run.steps().set_index("step")["datums"]
    for step, rows in each.datums.groupby("first_step"):
        assert set(rows["datum"]) == set(taken[step])


def test_a_token_limits_the_bigrams(run: Run, whole: BigramTables) -> None:
    config = BigramConfig(first_step=5, end_step=16, token="w3", top=1000, datums=0)
    found = find_bigrams(run, config).bigrams
    wanted = whole.bigrams[(whole.bigrams[["token", "next"]] == "w3").any(axis=1)]
    assert len(found) == 29
    columns = ["token", "next", "shift"]
    pd.testing.assert_frame_equal(found[columns], wanted[columns].reset_index(drop=True))


def test_progress_ends_at_its_total(run: Run) -> None:
    for each_step, datums in ((True, 1), (False, 1), (False, 0)):
        reported: list[tuple[int, int]] = []
        config = BigramConfig(first_step=5, end_step=16, each_step=each_step, datums=datums)
        find_bigrams(
            run, config, lambda done, total, reported=reported: reported.append((done, total))
        )
        total = len(reported)
        assert reported == [(done, total) for done in range(1, total + 1)]


def test_tables_are_written_into_the_run() -> None:
    run = open_run(copied(tiny_run(), "memory://bigrams/tables").uri)
    found = find_bigrams(run, BigramConfig(first_step=3, top=4, datums=2))
    write_bigrams(run, found)
    pd.testing.assert_frame_equal(read_table(run, JOB, "bigrams", BIGRAMS), found.bigrams)
    pd.testing.assert_frame_equal(read_table(run, JOB, "datums", DATUMS), found.datums)


def test_weights_that_are_not_finite_raise(run: Run) -> None:
    search = BigramSearch(run, BigramConfig(), lambda done, total: None)
    fine = EmbeddingPair(torch.ones(5, 2), torch.ones(5, 2), 1.0)
    for lost in (
        replace(fine, embedding_VD=fine.embedding_VD * math.nan),
        replace(fine, unembedding_VD=fine.unembedding_VD * math.inf),
    ):
        with pytest.raises(RunError, match="has diverged: its weights after step 9 are not finite"):
            search.largest(fine, lost, 9)


@pytest.mark.parametrize(("first", "end"), [(-1, 3), (3, 3), (4, 3), (0, 25), (24, None)])
def test_steps_that_are_not_committed_raise(first: int, end: int | None, run: Run) -> None:
    with pytest.raises(RunError, match=r"has steps 0:24, which do not contain"):
        find_bigrams(run, BigramConfig(first_step=first, end_step=end))


@pytest.mark.parametrize(
    ("field", "found", "text"),
    [
        ("top", 0, r"bigrams.top: got 0, must be at least 1\."),
        ("top", 1001, r"bigrams.top: got 1001, must be at most 1000\."),
        ("datums", -1, r"bigrams.datums: got -1, must be at least 0\."),
    ],
)
def test_invalid_settings_raise(field: str, found: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(BigramConfig(), **{field: found})
