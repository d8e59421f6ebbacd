"""How often the split is checked: checks follow the seed, and their cost; other steps pay little.

Calls are counted, and not timed.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from custom_loops import TOP, uri
from split_models import N, Parts, Repeated, T, next_token, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointError

from analysis.run.run import open_run
from capture.custom_loop.checks.call_watch import CallWatch
from capture.custom_loop.checks.split_guard import (
    CHEAP_CALLS,
    CHECKPOINTED,
    COSTLY,
    MOST_TRIES,
    SplitGuard,
)
from capture.custom_loop.record import record
from capture.engine.split import UNCHECKED, is_drawn

UNITS = ["embedding.*", "layer.*", "out.*"]
STEPS, SEED = 40, 0
"""Steps of a recording, and the seed that `record` gives its runs."""


class Doubled(Parts):
    """The layer has twice as many rows as positions, so a check must look at every datum."""

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.embedding(token_NT)
        rows = self.body(torch.cat([x_NTD, x_NTD.flip(1)], 1).flatten(0, 1))
        both = rows.unflatten(0, (len(x_NTD), 2 * T))
        return self.out(both[:, :T] + both[:, T:])


class Checkpointed(Parts):
    """Fails without its dropout, as checkpointed blocks do that run again in a backward pass."""

    def forward(self, token_NT: Tensor) -> Tensor:
        kept = F.dropout(torch.ones(1000), 0.5)
        if bool(kept.eq(1).all()):
            raise CheckpointError
        return self.out(self.body(self.embedding(token_NT)))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """Count operations looked at, and calls of the model repeated, in every step."""
    monkeypatch.setattr("capture.engine.split.EVERY", 4)
    steps = [Counter[str]()]
    note, check = CallWatch.note_operation, SplitGuard.check

    def counting_note(watch: CallWatch, *given: object) -> object:
        steps[-1]["operations"] += 1
        return note(watch, *given)  # pyright: ignore

    def counting_check(guard: SplitGuard, *given: object) -> None:
        guard.watch.num_repeats = 0
        check(guard, *given)  # pyright: ignore
        steps[-1]["repeats"] = guard.watch.num_repeats
        steps.append(Counter())

    monkeypatch.setattr(CallWatch, "note_operation", counting_note)
    monkeypatch.setattr(SplitGuard, "check", counting_check)
    return steps


def record_steps(folder: Path, model: nn.Module, scale: Tensor | None = None) -> None:
    """Record ``STEPS`` steps; a ``scale`` of the loss is written to before each update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"units": UNITS, "datums": N, "outliers": TOP}
    with record(model, optimizer, run=uri(folder), **options) as recorder:
        for _ in range(STEPS):
            recorder.datums(range(N))
            loss = next_token(model, tokens())
            (loss if scale is None else loss * scale).backward()
            if scale is not None:
                scale.add_(0)
            optimizer.step()
            optimizer.zero_grad()


def drawn() -> list[int]:
    return [step for step in range(1, STEPS) if is_drawn(SEED, step)]


def test_only_steps_with_a_check_look_at_the_loops_operations(
    tmp_path: Path, counted: list[Counter[str]]
) -> None:
    record_steps(tmp_path, Repeated())
    due = {0, *drawn()}
    assert 3 < len(due) < STEPS / 2
    assert {n for n, step in enumerate(counted[:STEPS]) if step["operations"]} == due
    assert {n for n, step in enumerate(counted[:STEPS]) if step["repeats"]} == due
    assert sum(step["repeats"] for step in counted) == len(due)


def test_checks_that_call_the_model_often_are_made_more_rarely(
    tmp_path: Path, counted: list[Counter[str]]
) -> None:
    record_steps(tmp_path, Doubled())
    due = [0, *drawn()]
    made = [n for n, step in enumerate(counted[:STEPS]) if step["repeats"]]
    assert made == due[:: N // CHEAP_CALLS]
    assert {counted[step]["repeats"] for step in made} == {N}
    left = len(due) - len(made)
    said = [segment.unchecked for segment in open_run(uri(tmp_path)).segments]
    assert sum((Counter(each) for each in said), Counter()) == {f"{UNCHECKED}: {COSTLY}": left}


def test_a_check_that_is_never_possible_is_tried_again_only_at_first(
    tmp_path: Path, counted: list[Counter[str]]
) -> None:
    # The loss cannot be computed again from a tensor that was written to.
    record_steps(tmp_path, Repeated(), scale=torch.ones(()))
    wanted = {*range(MOST_TRIES), *(step for step in drawn() if step >= MOST_TRIES)}
    assert {n for n, step in enumerate(counted[:STEPS]) if step["repeats"]} == wanted


def test_a_model_that_cannot_be_called_again_is_left_alone_after_some_tries(
    tmp_path: Path, counted: list[Counter[str]]
) -> None:
    record_steps(tmp_path, Checkpointed().train())
    wanted = {*range(MOST_TRIES), *(step for step in drawn() if step >= MOST_TRIES)}
    assert {n for n, step in enumerate(counted[:STEPS]) if step["repeats"]} == wanted
    said = [segment.unchecked for segment in open_run(uri(tmp_path)).segments]
    found = sum((Counter(each) for each in said), Counter())
    assert found == {f"{UNCHECKED}: {CHECKPOINTED}": STEPS}
