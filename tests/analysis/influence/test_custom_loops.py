"""Influence in runs of custom training loops: what works, and what other questions are told."""

import functools
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.influence.config import METHODS, InfluenceConfig
from analysis.influence.influence import MODEL_FREE, compute_influence
from analysis.influence.queries.parsing import build_queries
from analysis.run.run import Run, open_run
from capture.errors import RunError
from cluster.cli import main
from ontogeny import FactorConfig, record

WORDS = [f"w{number}" for number in range(6)]
EQUAL, RAGGED = ((0, 1, 2, 3), (3, 4, 5, 1)), ((0, 1, 2, 3), (4, 5, 1))


@functools.cache
def recorded(datums: Sequence[Sequence[int]] = EQUAL, *, factors: bool = False) -> str:
    """Record one step of two datums, the shorter padded; return the run's URI."""
    uri = f"memory://influence-own/{len(datums[1])}/{factors}"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    how = {"vocabulary": WORDS, "factors": FactorConfig(enabled=factors)}
    with record(model, optimizer, run=uri, datums=[list(own) for own in datums], **how) as seen:
        seen.datums([0, 1])
        token = torch.tensor([[*own, 0][:4] for own in datums])
        target = token[:, 1:].clone()
        target[1, len(datums[1]) - 1 :] = -100
        F.cross_entropy(model(token[:, :-1]).flatten(0, 1), target.flatten()).backward()
        optimizer.step()
    return uri


def run(factors: bool = False) -> Run:
    return open_run(recorded(factors=factors))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factors", [False, True])
def test_methods_need_no_model_or_say_which_ones_do_not(method: str, factors: bool) -> None:
    asked = run(factors)
    queries, config = build_queries(asked, "datum:train:0"), InfluenceConfig(method=method)
    if method in ("path", "outliers"):
        lacks_factors = method == "path" and not factors
        problem = "has no factors of step 0" if lacks_factors else "Pass it: open_run"
        with pytest.raises(RunError, match=problem):
            compute_influence(asked, queries, config)
        return
    if method in MODEL_FREE:
        found = compute_influence(asked, queries, config).datums
        assert found["influence"].abs().sum() > 0
        return
    with pytest.raises(RunError) as caught:
        compute_influence(asked, queries, config)
    text = str(caught.value)
    assert f"custom training loop, for which influence has no method {method}" in text
    assert "Use --method path, outliers, bm25, common-tokens or random" in text
    assert "--model" not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


@pytest.mark.parametrize("method", ["path", "outliers"])
def test_with_its_model_the_record_answers_about_predictions(method: str) -> None:
    """Reference: the change of the loss in the one step. Outliers give its first order."""
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    asked = open_run(recorded(factors=True), model=model)
    queries, config = build_queries(asked, "loss:train"), InfluenceConfig(method=method)
    found = compute_influence(asked, queries, config).datums["influence"]
    assert (found < 0).all()
    (query,) = queries
    after, before = (query.value(asked.weights(step)) for step in (1, 0))
    error = 1e-4 if method == "path" else 0.1
    assert found.sum() == pytest.approx(after - before, rel=error)


def test_the_loss_of_held_out_text_is_not_asked_of_training_text(capsys) -> None:
    assert main(["influence", run().uri, "loss", "--method", "bm25"]) == 2
    error = capsys.readouterr().err
    assert "has no held-out text, which loss asks about by default. Ask for loss:train" in error
    assert error.count("\n") == 1
    (query,) = build_queries(run(), "loss")  # as silence asks, beside others
    assert query.name == "train loss (no held-out text)"
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    (query, same) = build_queries(
        open_run(run().uri, model=model), ["token:w3", "row:1.weight:2@w3"]
    )
    assert query.name == "log p of w3 on train (no held-out text)"
    assert same.name == "row 1.weight:2 on w3 on train (no held-out text)"
    assert main(["influence", run().uri, "loss:train", "--method", "bm25"]) == 0
    assert "train loss" in capsys.readouterr().out


@pytest.mark.parametrize("query", ["loss:train", "datum:train:0", "token:w3"])
def test_datums_of_different_length_are_refused_in_one_line(query: str, capsys) -> None:
    assert main(["influence", recorded(RAGGED), query, "--method", "bm25"]) == 2
    error = capsys.readouterr().err
    assert "has datums of different length, about which no query can ask" in error
    assert error.count("\n") == 1


def test_a_query_about_the_model_says_that_it_is_missing(capsys) -> None:
    asked = ["head:1.self_attn:0", "--method", "bm25"]
    assert main(["influence", run().uri, *asked]) == 2
    error = capsys.readouterr().err
    assert "only its code can build the model" in error
    assert "or --model MODULE:FUNCTION" in error


@pytest.mark.parametrize(
    ("factors", "remedy"),
    [
        (False, "Record factors while it trains: ontogeny.record or ontogeny.Callback(…, factors="),
        (
            True,
            "Its factors give gradients, lifetime shifts, spectra of gradients and path influence",
        ),
    ],
)
def test_what_needs_replay_says_what_factors_give(factors: bool, remedy: str) -> None:
    with pytest.raises(RunError, match="whose steps cannot be replayed") as caught:
        _ = run(factors).gradients.replayable
    assert remedy in str(caught.value)
    assert "needs a run of ontogeny capture" in str(caught.value)
