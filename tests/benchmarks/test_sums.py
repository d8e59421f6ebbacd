"""What the study of grokking measures beside metrics: ranks, gradients, hidden states."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ontogeny
from benchmarks.studies.sums.phases import hidden_states, states_sentence, states_table
from benchmarks.studies.sums.random_directions import random_claims, random_counts
from benchmarks.studies.sums.ranks import fewest, gradient, gradient_values, low_ranks


def test_the_fewest_directions_hold_99_percent_of_the_squares() -> None:
    assert fewest(np.array([3.0])) == 1
    assert fewest(np.sqrt([0.98, 0.01, 0.01])) == 2
    assert fewest(np.sqrt([0.5, 0.48, 0.02])) == 3
    assert fewest(np.ones(100)) == 99
    two = torch.diag(torch.tensor([2.0, 2.0, 0.0]))
    assert low_ranks({"a": two, "bias": torch.ones(3)}) == {"a": [2, 3]}


class Sums(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 6)

    def forward(self, token_NT: torch.Tensor) -> torch.Tensor:
        return self.out(self.embedding(token_NT).cumsum(1))


def test_gradients_are_those_of_the_loss_at_the_last_position() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Sums()
    stored = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    token_NT = torch.randint(5, (7, 3), generator=generator)
    target_N = torch.randint(6, (7,), generator=generator)
    found_P = gradient(model, stored, token_NT, target_N)
    model.load_state_dict(stored)
    loss = torch.nn.functional.cross_entropy(model(token_NT)[:, -1], target_N)
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    np.testing.assert_allclose(found_P, wanted.numpy(), rtol=1e-5, atol=1e-7)

    rows = pd.DataFrame({"tokens": token_NT.tolist(), "last_target": target_N.tolist()})
    run: Any = SimpleNamespace(
        datums=lambda split: rows, model=lambda: model, checkpoint=lambda step: stored
    )
    assert gradient_values(run, [0, 1]) == {"steps": 2, "as_they_are": 1, "unit_length": 1}


def test_hidden_states_are_told_by_run_and_beside_random_walks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    tables = SimpleNamespace(
        state_choice=pd.DataFrame(
            {"states": [1, 2, 3], "chosen": [False, False, True], "null_chosen": [0, 1, 2]}
        ),
        state_summary=pd.DataFrame({"state": [0, 1, 2], "detour": [False, True, False]}),
        states=pd.DataFrame(
            {
                "run": ["a"] * 4 + ["b"] * 3,
                "step": [0, 10, 20, 30, 0, 10, 20],
                "state": [0, 0, 1, 0, 0, 2, 2],
            }
        ),
    )

    def transitions(runs: Any, config: Any) -> Any:
        asked.append((runs, config))
        return tables

    monkeypatch.setattr(ontogeny, "transitions", transitions)
    runs: Any = [SimpleNamespace(uri="a"), SimpleNamespace(uri="b")]
    found = hidden_states(runs, ("loss",), "loss")
    assert asked[0][0] is runs
    assert (found["chosen"], found["tried"], found["null"]) == (3, 3, [2, 3, 3])
    assert found["paths"] == [[(0, 0), (1, 20), (0, 30)], [(0, 0), (2, 10)]]
    assert found["detours"] == [1]
    assert states_table(found, [4, 5])[2:] == [
        "| 4 | 2 | 0 from step 0, 1 from step 20, 0 from step 30 |",
        "| 5 | 2 | 0 from step 0, 2 from step 10 |",
    ]
    assert states_sentence(found).startswith("One model for all 2 seeds: 3 states of at most 3")


def test_accuracies_are_counted_below_within_and_above_the_range_of_each_null() -> None:
    lefts = {1: 0.1, 2: 0.3, 3: 0.6}
    directions = [{"without": {"8": (0.0, left)}} for left in lefts.values()]
    every = [{"seed": 4, "snapshots": {"directions": directions}}]
    far = [[0.1, 0.5], [0.1, 0.2], [0.7, 0.8]]
    nulls = [{"seed": 4, "removed": {"8": [0.2, 0.6]}, "as_far": {"8": far}}]
    assert random_counts(every, nulls)[2:] == [
        "| the first | 1 | 0, 1, 0 | 1, 0, 0 |",
        "| a later one | 2 | 1, 0, 1 | 0, 2, 0 |",
    ]
    assert list(random_claims(every, nulls).values()) == [True, False, True, False]
