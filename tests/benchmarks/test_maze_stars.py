"""The variant of the maze with a star: the legs of an episode."""

import torch

from benchmarks.studies.maze_stars import before_star
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
