"""Recording a compiled model compiles nothing, breaks no graph and leaves graphs as they are."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from custom_loops import Small, loss_of, tokens, uri
from torch import nn

from capture.custom_loop.record import record
from capture.custom_loop.units import UNCOMPILED


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Count from 0, and leave no graphs behind."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def counts() -> tuple[int, int, int]:
    """Return how many graphs, graph breaks and compiled frames there were so far."""
    counters = torch._dynamo.utils.counters
    frames = sum(counters["frames"].values())
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), frames


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),  # pyright: ignore
    "Module.compile": in_place,
}


@pytest.mark.parametrize("kind", KINDS)
def test_recording_compiles_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = KINDS[kind](Small())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(num_datums: int) -> None:
        loss_of(model, tokens()[:num_datums]).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(4)
    before = counts()
    assert before[0] > 0
    with (
        caplog.at_level(logging.WARNING, "capture.custom_loop.units"),
        record(model, optimizer, run=uri(tmp_path)),
    ):
        for num_datums in (4, 4, 3):
            step(num_datums)
        assert counts() == before
    step(4)  # with the graph of before
    assert counts() == before
    assert [message for message in caplog.messages if message == UNCOMPILED] == [UNCOMPILED]


def test_a_model_that_is_not_compiled_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, optimizer, run=uri(tmp_path)):
        loss_of(model, tokens()).backward()
        optimizer.step()
    assert UNCOMPILED not in caplog.messages
