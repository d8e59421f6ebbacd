"""Mazes with a cheese: episodes of an optimal policy, for behaviour cloning.

A datum is an episode. Its first tokens are the cells of the maze, row by row (wall, floor, star or
cheese); the others are the cells that the mouse visits, from the bottom left corner on. The model
is trained to foretell each next cell, so its prediction is a policy, and the text of the datum is a
rollout of the optimal one: the shortest path, found by breadth-first search, to each star, the
nearest first, and then to the cheese, where the mouse stays.

The cheese lies in the top right corner in the first part of training and anywhere in the second.
The held-out mazes have it in the corner (validation) and anywhere (test).

Source: the mazes of Langosco et al. 2022, "Goal misgeneralization in deep reinforcement learning",
here without reinforcement. The mazes are random spanning trees, so any two cells have one path.
No held-out maze is also a training maze.
Shapes: N datum, M token of a datum and its last target (size² + moves + 1).
"""

from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from capture.corpus.tasks.task import TaskDatums
from capture.corpus.wikitext import Split
from capture.errors import ConfigError, CorpusError, at_least, at_most

WALL, FLOOR, STAR, CHEESE = range(4)
CELLS = ("wall", "floor", "star", "cheese")
"""Names of the tokens of the maze; those of the visited cells follow."""
MOST_TRIES = 1000
"""Mazes to draw at most for one datum."""


@dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """Mazes; used if corpus.kind is maze."""

    size: int = 7
    """Cells in a row and in a column; odd, because every second cell can be a wall."""
    moves: int = 16
    """Moves of an episode; mazes whose path is longer are left out."""
    corner: int = 4000
    """Number of training episodes with the cheese in the top right corner, which come first."""
    anywhere: int = 4000
    """Number of training episodes with the cheese anywhere, which come afterwards."""
    held_out: int = 500
    """Number of held-out episodes of either kind."""
    stars: int = 0
    """Stars in each maze, which the mouse collects before the cheese."""
    seed: int = 0
    """Seed of the mazes."""

    def __post_init__(self) -> None:
        if self.size % 2 == 0:
            raise ConfigError("corpus.maze.size", f"got {self.size}, must be odd")
        for name, least, most in (
            *(("size", 3, 25), ("moves", 1, 1000), ("seed", 0, 2**63), ("stars", 0, 3)),
            *((name, 0, 10**6) for name in ("corner", "anywhere", "held_out")),
        ):
            at_least(f"corpus.maze.{name}", getattr(self, name), least)
            at_most(f"corpus.maze.{name}", getattr(self, name), most)


def mazes(config: MazeConfig) -> TaskDatums:
    """Return the episodes: first those with the cheese in the corner, then those without.

    Raises ``CorpusError`` if almost no maze has a path that is short enough, or all are held out.
    """
    held_out = (config.held_out, frozenset[bytes]())
    validation_NM = episodes(config, *held_out, corner=True, stream=2)
    test_NM = episodes(config, *held_out, corner=False, stream=3)
    seen = frozenset(maze_of(row_M, config) for row_M in [*validation_NM, *test_NM])
    first_NM = episodes(config, config.corner, seen, corner=True, stream=0)
    second_NM = episodes(config, config.anywhere, seen, corner=False, stream=1)
    splits: dict[Split, np.ndarray] = {"train": np.concatenate([first_NM, second_NM])}
    if config.held_out:
        splits |= {"validation": validation_NM, "test": test_NM}
    places = [f"r{row}c{column}" for row in range(config.size) for column in range(config.size)]
    names = [*CELLS, *places]
    texts: dict[Split, list[str]] = {
        split: [path_text(token_M, names, config.size) for token_M in token_NM]
        for split, token_NM in splits.items()
    }
    return TaskDatums(names, splits, texts)


def path_text(token_M: np.ndarray, names: list[str], size: int) -> str:
    """Return the visited cells, without the stay at the end."""
    path = [names[token] for token in token_M[size * size :]]
    while len(path) > 1 and path[-1] == path[-2]:
        path.pop()
    return " ".join(path)


def maze_of(token_M: Sequence[int] | np.ndarray, config: MazeConfig) -> bytes:
    """Return the cells of an episode's maze, for comparison."""
    return np.asarray(token_M[: config.size**2], np.int32).tobytes()


def episodes(
    config: MazeConfig, number: int, avoided: Set[bytes], *, corner: bool, stream: int
) -> np.ndarray:
    """Return the tokens of so many episodes, int32 [N, M], none in one of the avoided mazes."""
    draw = Draws(config.seed, stream)
    rows = [episode(config, draw, avoided, corner=corner) for _ in range(number)]
    width = config.size**2 + config.moves + 1
    return np.array(rows, np.int32).reshape(number, width)


def episode(config: MazeConfig, draw: "Draws", avoided: Set[bytes], *, corner: bool) -> list[int]:
    """Return the tokens of one episode, of the first maze drawn that is allowed."""
    size = config.size
    start, top_right = (size - 1) * size, size - 1
    for _ in range(MOST_TRIES):
        cells = spanning_tree(size, draw)
        free = [at for at, cell in enumerate(cells) if cell == FLOOR and at != start]
        goals = [free.pop(draw.below(len(free))) for _ in range(config.stars + 1)]
        if corner and top_right not in goals[:-1]:
            goals[-1] = top_right
        path = optimal_path(cells, size, start, goals)
        if len(path) <= config.moves + 1 and (goals[-1] == top_right or not corner):
            for at in goals[:-1]:
                cells[at] = STAR
            cells[goals[-1]] = CHEESE
            if maze_of(cells, config) in avoided:
                continue
            path += [path[-1]] * (config.moves + 1 - len(path))
            return [*cells, *(len(CELLS) + at for at in path)]
    problem = f"of {MOST_TRIES:,} mazes of {size} × {size} cells, none has a path of at most "
    problem += f"{config.moves} moves and is not held out"
    raise CorpusError("maze", problem, "Raise corpus.maze.moves or corpus.maze.size")


def spanning_tree(size: int, draw: "Draws") -> list[int]:
    """Return a maze, wall or floor by cell: a random tree over every second cell (Kruskal)."""
    cells = [WALL] * (size * size)
    rooms = [r * size + c for r in range(0, size, 2) for c in range(0, size, 2)]
    tree = {room: room for room in rooms}
    doors = [(at, at + step) for at in rooms for step in (2, 2 * size) if at + step in tree]
    doors = [(one, other) for one, other in doors if other - one != 2 or other % size]
    for room in rooms:
        cells[room] = FLOOR
    while doors:
        place = draw.below(len(doors))
        doors[place], doors[-1] = doors[-1], doors[place]
        one, other = doors.pop()
        old, new = root_of(tree, one), root_of(tree, other)
        if old != new:
            cells[(one + other) // 2] = FLOOR
            tree[old] = new
    return cells


def root_of(tree: dict[int, int], at: int) -> int:
    while tree[at] != at:
        at = tree[at]
    return at


def optimal_path(cells: list[int], size: int, start: int, goals: list[int]) -> list[int]:
    """Return the cells from the start to each goal: the nearest star first, the cheese last."""
    path, stars = [start], goals[:-1]
    while stars:
        legs = [shortest_path(cells, size, path[-1], star) for star in stars]
        leg = min(legs, key=len)
        stars = [star for star in stars if star not in leg]
        path += leg[1:]
    return path + shortest_path(cells, size, path[-1], goals[-1])[1:]


def shortest_path(cells: list[int], size: int, start: int, goal: int) -> list[int]:
    """Return the cells of a shortest path, both ends included, by breadth-first search."""
    came_from = {start: start}
    waiting = deque([start])
    while waiting and goal not in came_from:
        at = waiting.popleft()
        for near in neighbours(at, size):
            if cells[near] != WALL and near not in came_from:
                came_from[near] = at
                waiting.append(near)
    path = [goal]
    while path[-1] != start:
        path.append(came_from[path[-1]])
    return path[::-1]


def neighbours(at: int, size: int) -> Iterator[int]:
    """Yield the cells above, below, left and right of a cell."""
    row, column = divmod(at, size)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        if 0 <= row + down < size and 0 <= column + right < size:
            yield (row + down) * size + column + right


class Draws:
    """Random numbers one by one, from raw bits, which NumPy promises to keep."""

    def __init__(self, seed: int, stream: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,)))
        self.ahead: list[int] = []

    def below(self, limit: int) -> int:
        """Return a number from 0 to limit - 1."""
        if not self.ahead:
            self.ahead = self.bits.random_raw(4096).tolist()
        return self.ahead.pop() % limit
