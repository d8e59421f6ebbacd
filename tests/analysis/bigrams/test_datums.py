"""Contributions of datums to a step's bigram shifts: together with the carry they add up."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from analysis.bigrams.bigrams import require_conservation
from analysis.bigrams.datums import Contributions, find_contributions
from analysis.bigrams.layers import EmbeddingNames, EmbeddingPair, find_embeddings
from analysis.bigrams.shifts import shifts_of
from capture.engine.engine import Engine
from capture.errors import AuditError
from capture.gradients.dense import write_shifts
from capture.models.transformer import ModelConfig, fresh_model
from capture.optim.config import TrainingConfig
from capture.optim.optimizer_config import OptimizerConfig
from capture.optim.update import BFLOAT16_ROUNDING
from capture.replay.steps import Update, copy_weights

V, D, WINDOW, BATCH = 11, 6, 5, 4
STEPS = 3
"""Steps before the examined one, so that optimizers have a state."""
TRAININGS = {
    "sgd": TrainingConfig(batch=BATCH),
    "two_pieces": TrainingConfig(batch=BATCH, accumulate=2),
    "momentum": TrainingConfig(
        batch=BATCH, optimizer=OptimizerConfig(momentum=0.9, weight_decay=0.01), learning_rate=1
    ),
    "adamw": TrainingConfig(
        batch=BATCH, optimizer=OptimizerConfig(kind="adamw", weight_decay=0.1), learning_rate=0.1
    ),
    "bfloat16": TrainingConfig(batch=BATCH, precision="bfloat16"),
}


def take_step(training: TrainingConfig, *, tied: bool) -> tuple[Update, EmbeddingNames]:
    config = ModelConfig(layers=1, width=D, hidden=4, heads=2)
    made = fresh_model(config, vocabulary=V, window=WINDOW, seed=0)
    if tied:
        made.decoder.weight = made.encoder.weight
    layers = find_embeddings(made)
    units = {name: dict(made.named_parameters())[name] for name in layers.units}
    training = replace(training, device="cpu")
    engine = Engine(made, training, units=units, last_only=False, seed=0)
    draw = torch.Generator().manual_seed(1)
    *earlier, last = torch.randint(V, (STEPS + 1, BATCH, WINDOW + 1), generator=draw)
    for step, stream in enumerate(earlier):
        engine.step(stream[:, :-1], stream[:, 1:], step=step, epoch=0)
    before = copy_weights(engine, units)
    taken = engine.step(last[:, :-1], last[:, 1:], step=STEPS, epoch=0)
    parts = taken.factors, taken.scale, taken.preconditioner, taken.carry
    return Update(STEPS, [7, 5, 3, 1], *parts, before, copy_weights(engine, units)), layers


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module", params=TRAININGS)
def step(request: pytest.FixtureRequest, tied: bool) -> tuple[Update, EmbeddingNames]:
    return take_step(TRAININGS[request.param], tied=tied)


@pytest.fixture(scope="module")
def plain_step(tied: bool) -> tuple[Update, EmbeddingNames]:
    return take_step(TRAININGS["sgd"], tied=tied)


def every_bigram() -> tuple[Tensor, Tensor]:
    return torch.arange(V).repeat_interleave(V), torch.arange(V).repeat(V)


def contributions_of(
    update: Update, layers: EmbeddingNames, tolerance: float = BFLOAT16_ROUNDING
) -> Contributions:
    return find_contributions(update, layers, *every_bigram(), tolerance=tolerance)


@pytest.mark.parametrize("name", TRAININGS)
def test_contributions_and_carry_of_a_step_add_up_to_its_shifts(name: str, tied: bool) -> None:
    update, layers = take_step(TRAININGS[name], tied=tied)
    rounded = name == "bfloat16"
    found = contributions_of(update, layers, BFLOAT16_ROUNDING if rounded else 1e-5)
    before, after = (EmbeddingPair.of(weights, layers) for weights in (update.before, update.after))
    shift_K = shifts_of(before, after, *every_bigram())
    assert float(shift_K.abs().max()) > 0.01
    torch.testing.assert_close(found.shift_K, shift_K, rtol=1e-12, atol=1e-13)
    summed_K = found.datum_KN.sum(1) + found.carry_K
    torch.testing.assert_close(summed_K, shift_K, rtol=0, atol=0.05 if rounded else 1e-5)
    require_conservation(found, 0)
    assert bool(found.carry_K.any()) == (name in ("momentum", "adamw"))


def test_contributions_equal_those_of_dense_shifts(step: tuple[Update, EmbeddingNames]) -> None:
    """Reference: dense shifts of every datum in the formula of the module's docstring."""
    update, layers = step
    own = {name: dense(update, name) for name in layers.units}
    mean = {name: (update.before[name] + update.after[name]) / 2 for name in layers.units}
    of_next = torch.einsum("nvd,wd->nvw", own[layers.unembedding], mean[layers.embedding])
    of_token = torch.einsum("vd,nwd->nvw", mean[layers.unembedding], own[layers.embedding])
    wanted_NK = math.sqrt(D) * (of_next + of_token).flatten(1)
    found = contributions_of(update, layers)
    torch.testing.assert_close(found.datum_KN.T.float(), wanted_NK, rtol=1e-4, atol=1e-5)


def dense(update: Update, name: str) -> Tensor:
    shift_NS = torch.zeros(BATCH, V * D)
    write_shifts(update.factors[name], update.scale, shift_NS)
    shift_NVD = shift_NS.view(BATCH, V, D)
    return shift_NVD * update.preconditioner[name] if update.preconditioner else shift_NVD


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_carry_equals_that_of_the_dense_carry(name: str, tied: bool) -> None:
    update, layers = take_step(TRAININGS[name], tied=tied)
    assert update.carry is not None
    mean = {unit: (update.before[unit] + update.after[unit]) / 2 for unit in layers.units}
    of_next_VV = update.carry[layers.unembedding] @ mean[layers.embedding].T
    of_token_VV = mean[layers.unembedding] @ update.carry[layers.embedding].T
    wanted_K = math.sqrt(D) * (of_next_VV + of_token_VV).flatten()
    found = contributions_of(update, layers)
    torch.testing.assert_close(found.carry_K.float(), wanted_K, rtol=1e-4, atol=1e-5)


def test_a_missing_datum_fails_the_audit(step: tuple[Update, EmbeddingNames]) -> None:
    update, layers = step

    def without_the_last(x: Tensor) -> Tensor:
        return x * (torch.arange(BATCH) < BATCH - 1).view(-1, *[1] * (x.dim() - 1)).to(x.dtype)

    lacking = {
        name: [use.map_tensors(without_the_last) for use in uses]
        for name, uses in update.factors.items()
    }
    require_conservation(contributions_of(update, layers), 8)
    with pytest.raises(AuditError, match=r"step 8: contributions miss the shift .* logit by"):
        require_conservation(contributions_of(replace(update, factors=lacking), layers), 8)


def test_a_missing_carry_fails_the_audit() -> None:
    update, layers = take_step(TRAININGS["momentum"], tied=False)
    with pytest.raises(AuditError):
        require_conservation(contributions_of(replace(update, carry=None), layers), 0)


def test_weights_that_are_nan_fail_the_audit(plain_step: tuple[Update, EmbeddingNames]) -> None:
    update, layers = plain_step
    lost = {name: weight * math.nan for name, weight in update.after.items()}
    with pytest.raises(AuditError):
        require_conservation(contributions_of(replace(update, after=lost), layers), 0)
