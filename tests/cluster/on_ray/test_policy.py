"""Decisions of the cluster: every piece is made and handed on once, in order, whatever is lost."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.on_ray.policy import MAX_LOSSES, Decision, PieceQueue, after_failure, pieces_at_once


@pytest.mark.parametrize(
    ("losses", "lost", "decision"),
    [
        (1, True, Decision.RETRY),
        (MAX_LOSSES, True, Decision.RETRY),
        (MAX_LOSSES + 1, True, Decision.RAISE),
        (0, False, Decision.RAISE),
        (1, False, Decision.RAISE),
    ],
)
def test_lost_workers_are_forgiven_some_times_and_errors_never(
    losses: int, lost: bool, decision: Decision
) -> None:
    assert after_failure(losses, lost=lost) is decision


@given(cpus=st.integers(0, 10_000))
def test_every_worker_has_a_piece_and_another_waits(cpus: int) -> None:
    assert pieces_at_once(cpus) == 2 * max(cpus, 1)


@given(
    num_pieces=st.integers(0, 40),
    lead=st.integers(1, 9),
    workers=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_all_pieces_are_handed_on_once_and_in_order(
    num_pieces: int, lead: int, workers: int, seed: int
) -> None:
    rng, board = random.Random(seed), PieceQueue(num_pieces, lead)
    under_way: list[int] = []
    handed_on: list[int] = []
    while len(handed_on) < num_pieces:
        while len(under_way) < workers and (piece := board.take()) is not None:
            assert piece not in under_way
            assert piece not in handed_on
            assert piece < len(handed_on) + lead
            under_way.append(piece)
        assert under_way, "nothing is under way, and something is missing"
        piece = under_way.pop(rng.randrange(len(under_way)))
        if rng.random() < 0.3 and board.losses.get(piece, 0) < MAX_LOSSES:
            assert board.failed(piece, lost=True) is Decision.RETRY
        else:
            handed_on += board.done(piece)
    assert handed_on == list(range(num_pieces))
    assert board.take() is None
    assert not under_way


def test_a_slow_piece_stops_nobody_until_the_lead_is_used_up() -> None:
    board = PieceQueue(num_pieces=100, lead=8)
    slow = board.take()
    made = []
    while (piece := board.take()) is not None:
        assert not [*board.done(piece)]
        made.append(piece)
    assert (slow, made) == (0, [1, 2, 3, 4, 5, 6, 7])
    assert [*board.done(0)] == [0, *made]


def test_a_piece_that_takes_its_worker_with_it_is_given_up() -> None:
    board = PieceQueue(num_pieces=2, lead=2)
    for _ in range(MAX_LOSSES):
        assert board.take() == 0
        assert board.failed(0, lost=True) is Decision.RETRY
    assert board.take() == 0
    assert board.failed(0, lost=True) is Decision.RAISE
    assert board.take() == 1, "what is given up is not given out"


def test_lost_pieces_go_out_first_and_the_earliest_of_them() -> None:
    board = PieceQueue(num_pieces=5, lead=5)
    taken = [board.take() for _ in range(3)]
    for piece in (2, 0):
        board.failed(piece, lost=True)
    assert taken == [0, 1, 2]
    assert [board.take() for _ in range(3)] == [0, 2, 3]
