"""Whose doing a bigram's shift was: contributions add up, in a step and over a range."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from analysis.bigram_datums import Causes, find_causes
from analysis.bigram_layers import Layers, Pair, find_layers
from analysis.bigram_shifts import largest_shifts, shifts_of
from analysis.bigram_tables import BIGRAMS, DATUMS, JOB
from analysis.bigrams import (
    BigramConfig,
    Search,
    Shifted,
    find_bigrams,
    require_whole,
    write_bigrams,
)
from analysis.run import Run, open_run
from analysis.tables import read_table
from capture.engine import Engine, TrainingConfig
from capture.errors import AuditError, ConfigError, RunError
from capture.factors import Factors
from capture.gradients import write_shifts
from capture.model import LanguageModel, ModelConfig, fresh_model
from capture.retaking import Update, copied
from tiny_run import copied as copied_run
from tiny_run import tiny_run

V, D, WINDOW, BATCH = 11, 6, 5, 4


def model(*, tied: bool) -> LanguageModel:
    config = ModelConfig(layers=1, width=D, hidden=4, heads=2)
    made = fresh_model(config, vocabulary=V, window=WINDOW, seed=0)
    if tied:
        made.decoder.weight = made.encoder.weight
    return made


def take_step(*, tied: bool) -> tuple[Update, Layers]:
    made = model(tied=tied)
    layers = find_layers(made)
    units = {name: dict(made.named_parameters())[name] for name in layers.units}
    training = TrainingConfig(batch=BATCH, device="cpu")
    engine = Engine(made, training, units=units, last_only=False, seed=0)
    stream = torch.randint(V, (BATCH, WINDOW + 1), generator=torch.Generator().manual_seed(1))
    before = copied(engine, layers.units)
    step = engine.step(stream[:, :-1], stream[:, 1:], step=0, epoch=0)
    after = copied(engine, layers.units)
    return Update(0, [7, 5, 3, 1], step.factors, step.scale, before, after), layers


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def step(request: pytest.FixtureRequest) -> tuple[Update, Layers]:
    return take_step(tied=request.param)


def every_bigram() -> tuple[Tensor, Tensor]:
    v_VV, w_VV = torch.meshgrid(torch.arange(V), torch.arange(V), indexing="ij")
    return v_VV.flatten(), w_VV.flatten()


def causes_of(update: Update, layers: Layers) -> Causes:
    return find_causes(update, layers, *every_bigram(), tolerance=1e-5)


def test_contributions_of_a_step_add_up_to_its_shifts(step: tuple[Update, Layers]) -> None:
    update, layers = step
    found = causes_of(update, layers)
    pairs = [Pair.of(weights, layers) for weights in (update.before, update.after)]
    shift_K = shifts_of(*pairs, *every_bigram())
    assert float(shift_K.abs().max()) > 0.1
    torch.testing.assert_close(found.shift_K, shift_K, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.datum_KN.sum(1), shift_K, rtol=0, atol=1e-6)
    assert bool((found.missed_K.abs() <= found.allowed_K).all())
    assert float(found.allowed_K.max()) < 1e-3


def test_a_contribution_is_that_of_the_datum_s_own_shifts(step: tuple[Update, Layers]) -> None:
    """Against dense shifts of every datum, and the formula as it is written."""
    update, layers = step
    own = {name: dense(update.factors, name, update.scale) for name in layers.units}
    mean = {name: (update.before[name] + update.after[name]) / 2 for name in layers.units}
    of_next = torch.einsum("nvd,wd->nvw", own[layers.unembedding], mean[layers.embedding])
    of_token = torch.einsum("vd,nwd->nvw", mean[layers.unembedding], own[layers.embedding])
    wanted_NK = math.sqrt(D) * (of_next + of_token).flatten(1)
    found = causes_of(update, layers)
    torch.testing.assert_close(found.datum_KN.T.float(), wanted_NK, rtol=1e-4, atol=1e-6)


def dense(factors: Factors, name: str, scale: float) -> Tensor:
    shift_NS = torch.zeros(BATCH, V * D)
    write_shifts(factors[name], scale, shift_NS)
    return shift_NS.view(BATCH, V, D)


def test_what_lacks_a_datum_does_not_pass(step: tuple[Update, Layers]) -> None:
    update, layers = step
    require_whole(causes_of(update, layers), 0)

    def without_the_last(x: Tensor) -> Tensor:
        return x * (torch.arange(BATCH) < BATCH - 1).view(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    lacking = {
        name: [use.mapped(without_the_last) for use in uses]
        for name, uses in update.factors.items()
    }
    with pytest.raises(AuditError, match=r"step 8: contributions miss the shift .* logit by"):
        require_whole(causes_of(replace(update, factors=lacking), layers), 8)


def test_weights_that_are_no_numbers_do_not_pass(step: tuple[Update, Layers]) -> None:
    update, layers = step
    lost = {name: weight * math.nan for name, weight in update.after.items()}
    with pytest.raises(AuditError):
        require_whole(causes_of(replace(update, after=lost), layers), 0)


# --- on a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(tiny_run())


@pytest.fixture(scope="module")
def whole(run: Run) -> Shifted:
    """Every bigram and every datum, over steps 5 to 15."""
    config = BigramConfig(first_step=5, end_step=16, top=1000, datums=51)
    return find_bigrams(run, config)


@pytest.fixture(scope="module")
def each(run: Run) -> Shifted:
    config = BigramConfig(first_step=5, end_step=16, each_step=True, top=1000, datums=4)
    return find_bigrams(run, config)


def by_bigram(found: Shifted) -> pd.Series:
    return found.bigrams.groupby(["next_id", "token_id"])["shift"].sum()


def by_datum(found: Shifted) -> pd.Series:
    rows = found.datums.merge(found.bigrams, on=["first_step", "rank"])
    return rows.groupby(["next_id", "token_id", "datum"])["contribution"].sum()


def test_a_range_is_the_sum_of_its_steps(whole: Shifted, each: Shifted) -> None:
    assert len(whole.bigrams) == 15 * 15
    pd.testing.assert_series_equal(by_bigram(whole), by_bigram(each), atol=1e-12)
    pd.testing.assert_series_equal(by_datum(whole), by_datum(each), rtol=1e-9, atol=1e-12)


def test_the_datums_of_a_range_add_up_to_its_shifts(whole: Shifted) -> None:
    summed = whole.datums.groupby("rank")[["contribution", "share"]].sum()
    shift = whole.bigrams["shift"].to_numpy()
    np.testing.assert_allclose(
        summed["contribution"] + whole.bigrams["missed"], shift, rtol=0, atol=1e-12
    )
    assert whole.bigrams["missed"].abs().max() < 1e-5
    np.testing.assert_allclose(summed["contribution"], summed["share"] * shift, atol=1e-12)


def test_between_checkpoints_it_is_what_the_models_there_say(run: Run) -> None:
    found = find_bigrams(run, BigramConfig(first_step=7, end_step=21, top=9, datums=0)).bigrams
    pairs = [Pair.of(m.state_dict(), find_layers(m)) for m in (run.model(7), run.model(21))]
    wanted = largest_shifts(*pairs, 9)
    assert found["next_id"].tolist() == wanted.next_K.tolist()
    assert found["shift"].tolist() == wanted.shift_K.tolist()
    assert found["next"].tolist() == [run.tokens[v] for v in wanted.next_K]
    assert found["token"].tolist() == [run.tokens[w] for w in wanted.token_K]
    assert found["missed"].isna().all()


def test_a_step_of_its_own_is_a_range_of_one(run: Run) -> None:
    options = {"first_step": 8, "end_step": 9, "top": 5, "datums": 3}
    one, other = (find_bigrams(run, BigramConfig(each_step=e, **options)) for e in (True, False))
    pd.testing.assert_frame_equal(one.bigrams, other.bigrams)
    pd.testing.assert_frame_equal(one.datums, other.datums)
    assert one.datums.groupby("rank").size().tolist() == [3] * 5


def test_only_datums_of_the_steps_contribute(run: Run, each: Shifted) -> None:
    taken = run.steps().set_index("step")["datums"]
    for step, rows in each.datums.groupby("first_step"):
        assert set(rows["datum"]) == set(taken[step])


def test_a_token_limits_to_bigrams_that_have_it(run: Run, whole: Shifted) -> None:
    config = BigramConfig(first_step=5, end_step=16, token="w3", top=1000, datums=0)
    found = find_bigrams(run, config).bigrams
    wanted = whole.bigrams[(whole.bigrams[["token", "next"]] == "w3").any(axis=1)]
    assert len(found) == 29
    columns = ["token", "next", "shift"]
    pd.testing.assert_frame_equal(found[columns], wanted[columns].reset_index(drop=True))


def test_progress_ends_at_its_total(run: Run) -> None:
    for each_step, datums in ((True, 1), (False, 1), (False, 0)):
        told: list[tuple[int, int]] = []
        config = BigramConfig(first_step=5, end_step=16, each_step=each_step, datums=datums)
        find_bigrams(run, config, lambda done, total, told=told: told.append((done, total)))
        total = len(told)
        assert told == [(done, total) for done in range(1, total + 1)]


def test_tables_are_left_in_the_run() -> None:
    run = open_run(copied_run(tiny_run(), "memory://bigrams/tables").uri)
    found = find_bigrams(run, BigramConfig(first_step=3, top=4, datums=2))
    write_bigrams(run, found)
    pd.testing.assert_frame_equal(read_table(run, JOB, "bigrams", BIGRAMS), found.bigrams)
    pd.testing.assert_frame_equal(read_table(run, JOB, "datums", DATUMS), found.datums)


def test_weights_out_of_range_have_no_largest_shift(run: Run) -> None:
    search = Search(run, BigramConfig(), lambda done, total: None)
    fine = Pair(torch.ones(V, D), torch.ones(V, D), 1.0)
    for lost in (
        replace(fine, embedding_VD=fine.embedding_VD * math.nan),
        replace(fine, unembedding_VD=fine.unembedding_VD * math.inf),
    ):
        with pytest.raises(
            RunError, match="has diverged: its weights after step 9 are out of range"
        ):
            search.largest(fine, lost, 9)


@pytest.mark.parametrize(("first", "end"), [(-1, 3), (3, 3), (4, 3), (0, 25), (24, None)])
def test_steps_that_the_run_lacks(first: int, end: int | None, run: Run) -> None:
    with pytest.raises(RunError, match=r"has steps 0:24, of which .* is no part"):
        find_bigrams(run, BigramConfig(first_step=first, end_step=end))


@pytest.mark.parametrize(
    ("field", "found", "text"),
    [
        ("top", 0, r"bigrams.top: got 0, must be at least 1\."),
        ("top", 1001, r"bigrams.top: got 1001, must be at most 1000\."),
        ("datums", -1, r"bigrams.datums: got -1, must be at least 0\."),
    ],
)
def test_impossible_numbers(field: str, found: int, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        BigramConfig(**{field: found})
