"""Law "identity of the datum": the id recorded for a row is that of the datum in the model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from torch import Tensor

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.identity import one_of_each
from capture.custom_loop.record import record
from capture.custom_loop.recording import Recording
from capture.errors import ConfigError

ALL = tokens()
Loop = Callable[[Recording], Iterator[tuple[Tensor, list[int]]]]


def shuffled(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    for ids in (order[:4], order[4:8], order[8:]):
        yield loss_of(recorder.model, ALL[ids]), ids


def two_epochs(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
    for _ in range(2):
        for first in (0, 6):
            ids = list(range(first, first + 6))
            yield loss_of(recorder.model, ALL[ids]), ids


def after_an_evaluation(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
    for ids in ([3, 1], [0, 2]):
        loss_of(recorder.model, ALL[6:])  # no backward pass
        yield loss_of(recorder.model, ALL[ids]), ids


def around_evaluations(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
    """As trainers evaluate: batch by batch, without gradients, also of other data."""
    for ids in ([3, 1], [0, 2]):
        with torch.no_grad():
            for batch in (ALL[:5], ALL[5:], ALL.flip(1)):
                loss_of(recorder.model, batch)
        yield loss_of(recorder.model, ALL[ids]), ids


def told_before_evaluations(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
    for ids in ([3, 1], [0, 2]):
        recorder.datums(ids)
        with torch.inference_mode():
            loss_of(recorder.model, ALL[4:7])
        yield loss_of(recorder.model, ALL[ids]), ids


def two_batches_in_one_backward(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
    first, second = [5, 4, 3], [9, 8]
    yield loss_of(recorder.model, ALL[first]) + loss_of(recorder.model, ALL[second]), first + second


def told_rightly(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
    for ids in ([7, 2], [1, 11]):
        recorder.datums(ids)
        yield loss_of(recorder.model, ALL[ids]), ids


def recorded(folder: Path, loop: Loop) -> tuple[Run, list[list[int]], list[dict[str, Tensor]]]:
    """Record a loop; returns the run, the true ids, and the weights before each step."""
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    true, weights = [], []
    options = {"datums": ALL, "outliers": TOP, "factors": FactorConfig(enabled=True)}
    with record(model, optimizer, run=uri(folder), **options) as recorder:
        for loss, ids in loop(recorder):
            weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            true.append(ids)
    return open_run(uri(folder)), true, weights


@pytest.mark.parametrize(
    "loop",
    [
        *(shuffled, two_epochs, after_an_evaluation, around_evaluations),
        *(told_before_evaluations, two_batches_in_one_backward, told_rightly),
    ],
    ids=lambda loop: loop.__name__,
)
def test_ids_and_gradients_are_those_of_the_datums_in_the_model(tmp_path: Path, loop: Loop) -> None:
    run, true, weights = recorded(tmp_path, loop)
    assert [list(ids) for ids in run.steps()["datums"]] == true
    for step, (ids, before) in enumerate(zip(true, weights, strict=True)):
        own = Small()
        own.load_state_dict(before)
        loss_of(own, ALL[ids[:1]]).backward()
        wanted = own.layer.weight.grad
        assert wanted is not None
        found = run.gradient(step, ids[0], "layer.weight")
        # The share of a datum in the mean over its batch is one over the batch's size.
        share = np.linalg.norm(found) / float(wanted.norm())
        assert np.allclose(found, share * wanted.numpy(), atol=1e-6)


def test_ids_that_contradict_the_input_are_refused(tmp_path: Path) -> None:
    def contradicted(recorder: Recording) -> Iterator[tuple[Tensor, list[int]]]:
        recorder.datums([0, 1, 2])
        yield loss_of(recorder.model, ALL[[0, 2, 1]]), [0, 2, 1]

    wanted = (
        "recorder.datums: got datum 1 for row 1 of the input, which holds the tokens of datum 2. "
        "Give ids in the order of the batch, or none: they are found by the tokens."
    )
    with pytest.raises(ConfigError) as caught:
        recorded(tmp_path, contradicted)
    assert str(caught.value) == wanted


def test_rows_that_cannot_be_known_are_counted_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, run=uri(tmp_path), outliers=TOP):
        for _ in range(2):
            loss_of(model, ALL[:5]).backward()
            optimizer.step()
            optimizer.zero_grad()
    (said,) = [entry.getMessage() for entry in caplog.records]
    assert "10 rows were numbered in the order in which they came" in said


def test_rows_with_the_same_tokens_get_different_datums() -> None:
    assert one_of_each([[0, 3], [1], [0, 3], [0, 3]]).tolist() == [0, 1, 3, 0]
