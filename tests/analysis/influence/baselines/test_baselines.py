"""Baselines against slow references, and what they say of queries without text."""

import functools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny_run import make_run, tiny_run
from torch.nn import functional as F

from analysis.influence.baselines import gradients, record, text
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.run.run import Run, open_run
from analysis.run.tallies import read_tally, tally_units
from capture.errors import RunError

UNIT = "layers.1.linear2.weight"
ASKED = ("datum:validation:1", f"neuron:{UNIT}:3@w5", "norm:decoder.weight:2")


@functools.cache
def run() -> Run:
    return open_run(tiny_run())


@functools.cache
def queries() -> tuple[Query, ...]:
    completion = {"kind": "completion", "prompt": "w1 w2 .", "completion": "w4 w9"}
    return tuple(build_queries(run(), [*ASKED, completion]))


@functools.cache
def slow_gradients() -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the queries [Q, P] and of every datum's loss [D, P], one at a time."""
    model = run().network().requires_grad_(True)
    named = dict(model.named_parameters())
    tokens, targets = (torch.from_numpy(x).long() for x in (run().token_NT, run().target_NT))

    def flat(found) -> np.ndarray:
        return torch.cat([own.flatten() for own in found]).double().numpy()

    own_QP = [flat(query.gradient(named)[1].values()) for query in queries()]
    own_DP = []
    for token_T, target_T in zip(tokens, targets, strict=True):
        loss = F.cross_entropy(model(token_T[None])[0], target_T)
        own_DP.append(flat(torch.autograd.grad(loss, list(named.values()))))
    return np.stack(own_QP), np.stack(own_DP)


def test_the_dot_product_is_that_of_one_backward_pass_for_each_datum():
    own_QP, own_DP = slow_gradients()
    wanted_QD = -own_QP @ own_DP.T
    found_QD = gradients.final_gradient_dot(run(), queries())
    np.testing.assert_allclose(found_QD, wanted_QD, rtol=1e-3, atol=1e-5 * abs(wanted_QD).max())


def test_the_cosine_is_the_dot_product_of_directions():
    own_QP, own_DP = slow_gradients()
    lengths = np.linalg.norm(own_QP, axis=1)[:, None] * np.linalg.norm(own_DP, axis=1)
    found_QD = gradients.final_gradient_cosine(run(), queries())
    np.testing.assert_allclose(found_QD, -own_QP @ own_DP.T / lengths, atol=1e-5)


def slow_bm25(documents: list[list[int]], query: list[int]) -> list[float]:
    """BM25 as its formula is printed, with Lucene's inverse document frequency."""
    average = sum(map(len, documents)) / len(documents)
    found = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for token in query:
            having = sum(token in other for other in documents)
            rarity = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            norm = 1.5 * (1 - 0.75 + 0.75 * len(document) / average)
            score += rarity * counts[token] * 2.5 / (counts[token] + norm)
        found.append(score)
    return found


def test_bm25_is_its_formula_and_common_tokens_are_counted():
    token_DM = np.column_stack([run().token_NT, run().target_NT[:, -1]])
    ids = [run().tokens.index(name) for name in ("w1", "w2", ".", "w4", "w9")]
    found_QD = text.bm25(run(), queries())
    np.testing.assert_allclose(found_QD[3], slow_bm25(token_DM.tolist(), ids))
    wanted = [len(set(ids) & set(token_M)) for token_M in token_DM.tolist()]
    assert text.common_tokens(run(), queries())[3].tolist() == wanted


def test_text_scores_have_the_sign_of_what_is_better_and_need_a_text():
    found_QD = text.bm25(run(), queries())
    assert (found_QD[0] <= 0).all()  # a loss: datums that are like it lower it
    (token,) = text.query_tokens(run(), queries()[1])
    assert run().tokens[token] == "w5"
    assert np.isnan(found_QD[2]).all()
    held_out = run().datums("validation").iloc[1]
    assert text.query_tokens(run(), queries()[0]).tolist() == [
        *held_out["tokens"],
        held_out["last_target"],
    ]


def test_the_outlier_record_is_a_sum_over_its_rows():
    own_QP, _ = slow_gradients()
    names = list(run().checkpoint(0))
    sizes = {name: own.numel() for name, own in run().checkpoint(0).items()}
    model_names = [name for name, _ in run().network().named_parameters()]
    assert set(model_names) <= set(names)
    start = dict(zip(model_names, np.cumsum([0, *(sizes[n] for n in model_names)]), strict=False))
    wanted_QD = np.zeros((len(queries()), run().num_datums))
    for row in run().shifts().to_dict("records"):
        place = start[row["unit"]] + row["index"]
        wanted_QD[:, row["datum_id"]] += own_QP[:, place] * row["diff"]
    found_QD = record.outlier_record(run(), queries())
    np.testing.assert_allclose(found_QD, wanted_QD, rtol=1e-4, atol=1e-9)


def test_tallies_are_a_sum_over_positions_and_neurons():
    wanted_D = np.zeros(run().num_datums)
    _, gradient = queries()[1].gradient(dict(run().network().named_parameters()))
    for unit in tally_units(run()):
        tally = read_tally(run(), unit)
        for datum, target_T in enumerate(run().target_NT):
            for target in target_T:
                for neuron in range(gradient[unit].shape[1]):
                    moved = tally.update_norm_VI[target, neuron] / max(tally.count_V[target], 1)
                    wanted_D[datum] += float(gradient[unit][:, neuron].norm()) * moved
    found_QD = record.tallies(run(), queries())
    np.testing.assert_allclose(found_QD[1], wanted_D, rtol=1e-4)
    assert (found_QD[0] <= 0).all()


def test_a_run_without_the_record_says_how_to_get_it():
    uri = make_run("memory://no-outliers", "capture.record=checkpoints", "training.epochs=1")
    with pytest.raises(RunError, match="ontogeny replay"):
        record.outlier_record(open_run(uri), queries())
