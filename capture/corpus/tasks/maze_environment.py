"""The mazes as an environment of gymnasium, for policies that act instead of foretelling a path.

Only this module imports gymnasium (extra ``tasks``).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from capture.corpus.tasks.maze import CELLS, CHEESE, FLOOR, STAR, WALL, Draws, MazeConfig, episode

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Rows down and columns right of each action: up, down, left, right."""
SIGNS = "#.*C"
"""A cell of each kind in text; the mouse is M."""


class MazeEnvironment(gymnasium.Env[np.ndarray, np.int64]):
    """A mouse in a maze, as in the datums of ``corpus.kind=maze``.

    An observation has the kind of each cell, row by row (wall, floor, star, cheese), and then the
    number of the mouse's cell. A move into a wall or out of the maze leaves the mouse where it is.
    A star, which becomes floor, gives a reward of 1, and so does the cheese once all stars are
    collected; that ends the episode. After ``config.moves`` moves an episode is truncated.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        config: MazeConfig | None = None,
        *,
        corner: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """``corner``: the cheese lies in the top right corner of every maze."""
        self.config = config or MazeConfig()
        self.corner = corner
        self.render_mode = render_mode
        num_cells = self.config.size**2
        self.observation_space = spaces.MultiDiscrete([len(CELLS)] * num_cells + [num_cells])
        self.action_space = spaces.Discrete(len(MOVES))
        self.cells = np.full(num_cells, WALL)
        self.mouse = self.moves = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin in a new maze, or in that of ``options["datum"]``, the tokens of an episode."""
        super().reset(seed=seed)
        datum = (options or {}).get("datum")
        if datum is None:
            draw = Draws(int(self.np_random.integers(2**31)), stream=0)
            datum = episode(self.config, draw, frozenset(), corner=self.corner)
        num_cells = self.config.size**2
        self.cells = np.array(datum[:num_cells])
        self.mouse, self.moves = int(datum[num_cells]) - len(CELLS), 0
        return self.observation, {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move; return observation, reward, whether the cheese is reached, and truncated."""
        size = self.config.size
        row, column = divmod(self.mouse, size)
        down, right = MOVES[int(action)]
        inside = 0 <= row + down < size and 0 <= column + right < size
        target = self.mouse + down * size + right
        if inside and self.cells[target] != WALL:
            self.mouse = target
        self.moves += 1
        here = self.cells[self.mouse]
        reached = here == CHEESE and STAR not in self.cells
        if here == STAR:
            self.cells[self.mouse] = FLOOR
        truncated = not reached and self.moves >= self.config.moves
        return self.observation, float(reached or here == STAR), bool(reached), truncated, {}

    def render(self) -> str | None:
        """Return the maze as text, a line for each row; None without ``render_mode="ansi"``."""
        if self.render_mode is None:
            return None
        size = self.config.size
        signs = [SIGNS[cell] for cell in self.cells]
        signs[self.mouse] = "M"
        return "\n".join("".join(signs[start : start + size]) for start in range(0, size**2, size))

    @property
    def observation(self) -> np.ndarray:
        return np.append(self.cells, self.mouse)


def actions_of(datum: Sequence[int] | np.ndarray, config: MazeConfig) -> list[int]:
    """Return the moves of a datum's path, without the stay at its end."""
    place_M = np.asarray(datum[config.size**2 :]) - len(CELLS)
    row_M, column_M = np.divmod(place_M, config.size)
    steps = zip(np.diff(row_M).tolist(), np.diff(column_M).tolist(), strict=True)
    return [MOVES.index(step) for step in steps if step != (0, 0)]
