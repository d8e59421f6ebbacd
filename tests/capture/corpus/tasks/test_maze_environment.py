"""The mazes as an environment: their paths solve them, are shortest, and chance does not."""

import networkx
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from capture.corpus.tasks.maze import CHEESE, STAR, WALL, MazeConfig, mazes
from capture.corpus.tasks.maze_environment import MazeEnvironment, actions_of

SMALL = {"corner": 15, "anywhere": 15, "held_out": 0}


def played(environment: MazeEnvironment, datum: np.ndarray, actions) -> tuple[float, bool]:
    """Return the sum of rewards, and whether the cheese was reached."""
    environment.reset(options={"datum": datum})
    total = 0.0
    for action in actions:
        _, reward, reached, truncated, _ = environment.step(action)
        total += reward
        if reached or truncated:
            return total, reached
    return total, False


@pytest.mark.filterwarnings("ignore:.*environment not having a spec")
def test_it_is_an_environment_of_the_library() -> None:
    check_env(MazeEnvironment(render_mode="ansi"), skip_render_check=False)


@pytest.mark.parametrize("stars", [0, 2])
def test_the_path_of_each_datum_solves_its_maze(stars: int) -> None:
    config = MazeConfig(**SMALL, stars=stars, moves=40)
    environment = MazeEnvironment(config)
    for datum in mazes(config).token_NM["train"]:
        assert played(environment, datum, actions_of(datum, config)) == (stars + 1, True)


def test_the_path_of_each_datum_is_a_shortest_one() -> None:
    config = MazeConfig(**SMALL)
    for datum in mazes(config).token_NM["train"]:
        cells = datum[: config.size**2].reshape(config.size, config.size)
        graph = networkx.grid_2d_graph(config.size, config.size)
        graph.remove_nodes_from([tuple(at) for at in np.argwhere(cells == WALL)])
        (goal,) = (tuple(at) for at in np.argwhere(cells == CHEESE))
        wanted = networkx.shortest_path_length(graph, (config.size - 1, 0), goal)
        assert len(actions_of(datum, config)) == wanted


def test_random_moves_seldom_solve_a_maze() -> None:
    config = MazeConfig(**SMALL)
    environment, rng = MazeEnvironment(config), np.random.default_rng(0)
    moves = [rng.integers(4, size=config.moves) for _ in range(30)]
    datums = mazes(config).token_NM["train"]
    solved = [played(environment, *each)[1] for each in zip(datums, moves, strict=True)]
    assert sum(solved) < 10


def test_walls_and_edges_stop_the_mouse_and_an_episode_ends_after_its_moves() -> None:
    config = MazeConfig(size=3, moves=4, **SMALL)
    environment = MazeEnvironment(config)
    environment.reset(options={"datum": mazes(config).token_NM["train"][0]})
    for number in range(1, 5):
        seen, reward, reached, truncated, _ = environment.step(np.int64(2))  # out of the maze
        assert (int(seen[-1]), reward, reached, truncated) == (6, 0.0, False, number == 4)


def test_the_same_seed_begins_in_the_same_maze() -> None:
    environment = MazeEnvironment(MazeConfig(stars=1), render_mode="ansi")
    first, _ = environment.reset(seed=3)
    text = environment.render()
    assert text is not None
    assert {"M", "*", "C"} <= set(text)
    assert np.array_equal(environment.reset(seed=3)[0], first)
    assert STAR in first
