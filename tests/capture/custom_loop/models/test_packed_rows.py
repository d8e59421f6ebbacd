"""Documents in packed rows are datums: their gradients are those of passes of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_loops import uri
from loop_session import Session
from packed_models import DOCUMENTS, LENGTHS, Flat, Packed, packed, summed_loss
from tiny import read_outliers
from torch import Tensor

from analysis.run.run import open_run
from capture.custom_loop.packing.finding import find_documents
from capture.custom_loop.record import record
from capture.errors import ConfigError, SplitError, UnitError

ROWS = [[[0, 2], [1, 3]], [[5, 0, 1]], [[4], [2]]]
"""Documents in the rows of each step: two packed rows with padding, one row, and nothing packed."""


def alone(model: Packed, document: int, count: int) -> Tensor:
    tokens, places, labels = packed([[document]])
    return summed_loss(model(tokens, places), labels, count)


def train(session: Session, model: Packed, tell: Callable[[Any, list[int], Any], None]) -> None:
    """Take the steps of ``ROWS``; ``tell`` says which datums a batch holds, or nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    with session.record(model, optimizer, datums=DOCUMENTS) as recorder:
        for rows in ROWS:
            ids = [i for row in rows for i in row]
            tokens, places, labels = packed(rows)
            tell(recorder, ids, places)
            count = sum(LENGTHS[i] for i in ids)
            summed_loss(model(tokens, places), labels, count).backward()
            session.expect({i: lambda i=i, n=count: alone(model, i, n) for i in ids})
            optimizer.step()
            optimizer.zero_grad()


def by_number(recorder: Any, ids: list[int], places: Tensor) -> None:
    numbers = (places.diff(dim=1, prepend=places[:, :1] - 1) != 1).cumsum(1)
    padding = places.flip(1).cumsum(1).flip(1) == 0
    numbers[padding] = -1
    recorder.datums(ids, documents=numbers)


TELL: dict[str, Callable[[Any, list[int], Any], None]] = {
    "ids": lambda recorder, ids, places: recorder.datums(ids),
    "ids and the number of each position's document": by_number,
    "nothing: found by their tokens": lambda recorder, ids, places: None,
}


@pytest.mark.parametrize("tell", TELL)
def test_each_document_has_the_gradient_of_a_pass_of_its_own(tmp_path: Path, tell: str) -> None:
    session = Session(tmp_path)
    train(session, Packed(), TELL[tell])
    assert session.largest_error() < 1e-5
    assert not open_run(uri(tmp_path)).segments[0].unchecked


def test_dropout_is_checked_without_it(tmp_path: Path) -> None:
    model = Packed()
    model.drop.p = 0.3
    train(Session(tmp_path), model, TELL["ids"])
    assert not open_run(uri(tmp_path)).segments[0].unchecked


def test_positions_count_within_the_document(tmp_path: Path) -> None:
    train(Session(tmp_path), Packed(), TELL["ids"])
    rows = read_outliers(uri(tmp_path))
    longest = dict(enumerate(LENGTHS))
    found = list(zip(rows["datum"].to_pylist(), rows["position"].to_pylist(), strict=True))
    assert all(position < longest[datum] for datum, position in found)
    assert {datum for datum, _ in found} == {*longest}


def test_documents_of_one_axis_are_found_by_their_boundaries(tmp_path: Path) -> None:
    session, model = Session(tmp_path), Flat()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(ids: list[int], count: int) -> Tensor:
        tokens = torch.cat([torch.tensor(DOCUMENTS[i][:-1]) for i in ids])
        labels = torch.cat([torch.tensor(DOCUMENTS[i][1:]) for i in ids])
        ends = torch.tensor([0, *(LENGTHS[i] for i in ids)]).cumsum(0)
        return summed_loss(model(tokens, ends), labels, count)

    with session.record(model, optimizer, datums=DOCUMENTS) as recorder:
        for ids in ([0, 2, 1], [4, 3]):
            recorder.datums(ids)
            loss(ids, 7).backward()
            session.expect({i: lambda i=i: loss([i], 7) for i in ids})
            optimizer.step()
            optimizer.zero_grad()
    assert session.largest_error() < 1e-5


def test_documents_that_attend_to_each_other_are_refused(tmp_path: Path) -> None:
    message = "documents of a packed row interact: they attend to each other.*Block attention"
    with pytest.raises(SplitError, match=message):
        train(Session(tmp_path), Packed(blocked=False), TELL["ids"])


def test_rows_are_datums_where_the_loop_gives_one_id_for_each(tmp_path: Path) -> None:
    session, model = Session(tmp_path), Packed(blocked=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rows = [[0, 2], [1, 3, 4]]
    tokens, places, labels = packed(rows)
    with session.record(model, optimizer, datums=2) as recorder:
        recorder.datums([1, 0])
        summed_loss(model(tokens, places), labels, 9).backward()
        parts = {1: slice(0, 1), 0: slice(1, 2)}
        session.expect(
            {
                i: lambda at=at: summed_loss(model(tokens[at], places[at]), labels[at], 9)
                for i, at in parts.items()
            }
        )
        optimizer.step()
    assert session.largest_error() < 1e-5


def give(folder: Path, ids: list[int], **more: Any) -> None:
    """Call a model on a packed row of three documents, after ``recorder.datums(ids, …)``."""
    model = Packed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    tokens, places, _ = packed([[0, 2, 1]])
    with record(model, optimizer, run=uri(folder), datums=DOCUMENTS) as recorder:
        recorder.datums(ids, **more)
        model(tokens, places)


def test_ids_that_do_not_fit_the_documents_are_refused(tmp_path: Path) -> None:
    for part, ids, more, error, message in (
        ("a", [0, 1], {}, UnitError, "one row of 10 tokens for 2 datums, as if they were packed"),
        ("b", [0, 1], {"documents": [[0, 0, 1, 1, 2]]}, ConfigError, "2 datums for 3 documents"),
        ("c", [0, 1], {"documents": [[0.5]]}, ConfigError, r"got documents float64 \(1, 1\)"),
        ("d", [0, 3, 1], {}, ConfigError, "got datum 3 for document 1 .* the tokens of datum 2"),
    ):
        with pytest.raises(error, match=message):
            give(tmp_path / part, ids, **more)


def positions(*rows: list[int]) -> dict[str, Tensor]:
    found = torch.tensor(rows)
    return {"input_ids": torch.zeros_like(found), "position_ids": found}


@pytest.mark.parametrize(
    ("rows", "num_datums", "wanted"),
    [
        ([[0, 1, 2, 0, 1]], None, [(0, 0, 3), (0, 3, 5)]),
        ([[2, 3, 2, 3, 4]], None, [(0, 0, 2), (0, 2, 5)]),
        ([[0, 1, 0, 1, 0, 0]], None, [(0, 0, 2), (0, 2, 4)]),
        ([[0, 1, 0, 0, 1, 2]], None, [(0, 0, 2), (0, 2, 3), (0, 3, 6)]),
        ([[0, 1, 0, 1, 0]], 3, [(0, 0, 2), (0, 2, 4), (0, 4, 5)]),
        ([[0, 1, 2, 3], [0, 1, 0, 1]], None, [(0, 0, 4), (1, 0, 2), (1, 2, 4)]),
        ([[0, 1, 2, 3], [0, 1, 0, 1]], 2, None),
        ([[0, 1, 2, 3]], None, None),
        ([[0, 1, 2, 0]], None, None),  # padding on the right
        ([[0, 1, 0, 1]], 3, None),
    ],
)
def test_documents_are_found_by_positions_that_start_again(
    rows: list[list[int]], num_datums: int | None, wanted: list[tuple[int, int, int]] | None
) -> None:
    found = find_documents(positions(*rows), num_datums)
    places = found and list(zip(found.row_N, found.start_N, found.stop_N, strict=True))
    assert places == wanted
