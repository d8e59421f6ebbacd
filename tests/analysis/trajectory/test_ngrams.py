"""Divergence from n-grams: zero for the n-gram model itself, and equal to a count by hand."""

from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.trajectory.metrics.ngrams import ngram_divergence
from analysis.trajectory.observed.text import Text, Windows

V = 7


def windows(seed: int, count: int, window: int = 6) -> Windows:
    token_NM = np.random.default_rng(seed).integers(0, V, (count, window + 1))
    return Windows(token_NM[:, :-1], token_NM[:, 1:])


TEXT = Text(V, 6, windows(1, 9), windows(0, 30), [])


def counted(order: int) -> dict[tuple[int, ...], Counter[int]]:
    """Count next tokens after each context, one position at a time."""
    found: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    assert TEXT.training
    for token_T, target_T in zip(TEXT.training.token_NT, TEXT.training.target_NT, strict=True):
        for t in range(order - 2 if order > 1 else 0, len(token_T)):
            context = tuple(token_T[t - order + 2 : t + 1].tolist()) if order > 1 else ()
            found[context][int(target_T[t])] += 1
    return found


def rows_of(logits) -> dict[str, object]:
    model = SimpleNamespace(logits=logits)
    return {row.component: row for row in ngram_divergence(model, TEXT)}  # pyright: ignore


@pytest.mark.parametrize(("name", "order"), [("unigram", 1), ("bigram", 2), ("trigram", 3)])
def test_it_equals_a_sum_by_hand(name: str, order: int) -> None:
    logits_VV = torch.from_numpy(np.random.default_rng(5).normal(size=(V, V)))
    found, grams = rows_of(lambda token_NT: logits_VV[token_NT])[name], counted(order)
    means = []
    assert TEXT.held_out
    for token_T in TEXT.held_out.token_NT:
        each = []
        for t in range(max(order - 2, 0), len(token_T)):
            context = tuple(token_T[t - order + 2 : t + 1].tolist()) if order > 1 else ()
            if context in grams:
                total = grams[context].total()
                log_p_V = logits_VV[token_T[t]].log_softmax(0)
                each.append(
                    sum(
                        n / total * (np.log(n / total) - float(log_p_V[v]))
                        for v, n in grams[context].items()
                    )
                )
        if each:
            means.append(np.mean(each))
    assert found.value == pytest.approx(np.mean(means))  # pyright: ignore
    assert found.n == len(means)  # pyright: ignore


@pytest.mark.parametrize(("name", "order"), [("unigram", 1), ("bigram", 2)])
def test_the_ngram_model_itself_is_at_zero(name: str, order: int) -> None:
    grams = counted(order)

    def logits(token_NT: Tensor) -> Tensor:
        table_VV = torch.full((V, V), -40.0, dtype=torch.float64)
        for context, nexts in grams.items():
            rows = [context[-1]] if context else range(V)
            for row in rows:
                for v, n in nexts.items():
                    table_VV[row, v] = np.log(n / nexts.total())
        return table_VV[token_NT]

    found = rows_of(logits)
    assert found[name].value == pytest.approx(0, abs=1e-9)  # pyright: ignore
    other = "bigram" if name == "unigram" else "unigram"
    assert found[other].value > 0.02  # pyright: ignore


def test_a_uniform_prediction_is_at_the_null() -> None:
    for row in rows_of(lambda token_NT: torch.zeros(*token_NT.shape, V)).values():
        assert row.value == pytest.approx(row.null, rel=1e-6)  # pyright: ignore
