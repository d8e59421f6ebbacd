"""The variant of the maze with a star: the legs of an episode."""

import numpy as np
import torch

from benchmarks.studies.mazes.stars import before_star, interval, lost, lost_more
from capture.corpus.tasks.maze import CELLS, CHEESE, FLOOR, STAR, WALL


def test_the_move_that_reaches_the_star_ends_the_first_leg():
    cells = [FLOOR, STAR, CHEESE, FLOOR, WALL, WALL, FLOOR, FLOOR, FLOOR]
    path = [6, 3, 0, 1, 2, 2]
    token_NT = torch.tensor([[*cells, *(len(CELLS) + at for at in path[:-1])]])
    target_NE = torch.tensor([[len(CELLS) + at for at in path[1:]]])
    wanted = [True, True, True, False, False]
    assert before_star(token_NT, target_NE, 3)[0].tolist() == wanted


def test_a_path_that_starts_beside_the_star_has_a_leg_of_one_move():
    cells = [WALL, WALL, CHEESE, STAR, FLOOR, FLOOR, FLOOR, WALL, WALL]
    path = [6, 3, 4, 5, 2]
    token_NT = torch.tensor([[*cells, *(len(CELLS) + at for at in path[:-1])]])
    target_NE = torch.tensor([[len(CELLS) + at for at in path[1:]]])
    assert before_star(token_NT, target_NE, 3)[0].tolist() == [True, False, False, False]


def test_what_a_head_takes_is_told_by_leg_and_beside_the_median_head():
    def seed(star: float, cheese: float) -> dict:
        one = {"aim": "star", "walked": [star, cheese], "median": [0.6, 0.3]}
        return {"whole": [0.8, 0.4], "silenced": [one, {"aim": "cheese"}]}

    every = [seed(0.5, 0.4), seed(0.3, 0.2)]
    np.testing.assert_allclose(lost(every, "star"), [[30, 50], [0, 20]], atol=1e-12)
    np.testing.assert_allclose(lost_more(every, "star"), [10, 30])
    low, high = interval([30, 50])
    np.testing.assert_allclose([low, high], [40 - 127.062, 40 + 127.062], rtol=1e-4)
    assert interval([3.0]) == (3.0, 3.0)
