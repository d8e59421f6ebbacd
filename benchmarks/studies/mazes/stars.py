"""The variant of the maze with a star to collect first: can stars be taken out, and cheese stay?

Two legs of an episode are told apart: the moves to the star, and those from there to the cheese. A
leg counts as walked if every move of it is the optimal one, given the moves before. Each head of
the trained model is silenced in turn. The head that takes most of the stars and least of the cheese
is chosen on one half of the held-out mazes and judged on the other, beside all heads. Part of the
page docs/studies/maze.md.

Shapes: N datum, T position, E scored move, H head.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.func import functional_call

import ontogeny
from benchmarks.studies.study import Results, half_width, mean_and_interval, percent, table
from capture.corpus.tasks.maze import CELLS, STAR
from ontogeny import Run

SEEDS = (0, 1, 2, 3)
LEGS = ("star", "cheese")
SETTINGS = (
    *("corpus.maze.stars=1", "corpus.maze.moves=24", "corpus.window=73"),
    *("corpus.maze.corner=20000", "corpus.maze.anywhere=20000"),
    *("capture.record=checkpoints", "capture.segment_steps=10"),
)


def measure(folder: Path, seeds: Sequence[int]) -> list[Results]:
    return [measured(folder, seed) for seed in seeds]


def measured(folder: Path, seed: int) -> Results:
    """Train with one seed, silence heads, and count the legs that are still walked."""
    uri = f"run.uri={folder / f'maze-stars-{seed}'}"
    run = ontogeny.capture("maze", uri, f"run.seed={seed}", *SETTINGS, resume=True)
    token_NT, target_NE = episodes(run)
    before_NE = before_star(token_NT, target_NE, run.config.corpus.maze.size)
    config = run.config.model
    heads = [(layer, head) for layer in range(config.layers) for head in range(config.heads)]

    def legs(silent: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return which legs are walked, bool [N, 2]."""
        right_NE = predictions(run, silenced(run, silent), token_NT, target_NE) == target_NE
        star_N = (right_NE | ~before_NE).all(1)
        cheese_N = (right_NE | before_NE).all(1)
        return torch.stack([star_N, cheese_N], 1).numpy()

    whole_N2 = legs(())
    walked_HN2 = np.stack([legs([own]) for own in heads])
    choose_H2, judge_H2 = walked_HN2[:, ::2].mean(1), walked_HN2[:, 1::2].mean(1)
    best = {
        "star": int((choose_H2[:, 1] - choose_H2[:, 0]).argmax()),
        "cheese": int((choose_H2[:, 0] - choose_H2[:, 1]).argmax()),
    }
    rows = [
        {
            "heads": ["L{}H{}".format(*heads[place])],
            "aim": aim,
            "walked": judge_H2[place].tolist(),
            "median": np.median(judge_H2, 0).tolist(),
            "sets": len(heads),
        }
        for aim, place in best.items()
    ]
    return {
        "seed": seed,
        "n": len(whole_N2[1::2]),
        "whole": whole_N2[1::2].mean(0).tolist(),
        "silenced": rows,
    }


def episodes(run: Run) -> tuple[Tensor, Tensor]:
    """Return tokens and scored targets of the held-out mazes with the cheese anywhere."""
    rows = run.datums("test")
    token_NT = torch.tensor(np.stack(rows["tokens"].to_list())).long()
    last_N1 = torch.tensor(rows["last_target"].to_numpy()).long()[:, None]
    moves = run.config.corpus.maze.moves
    return token_NT, torch.cat([token_NT[:, 1:], last_N1], 1)[:, -moves:]


def before_star(token_NT: Tensor, target_NE: Tensor, size: int) -> Tensor:
    """Return which moves lead to the star, the one that reaches it included, bool [N, E]."""
    cells_NM = token_NT[:, : size * size]
    star_N1 = (cells_NM == STAR).int().argmax(1, keepdim=True) + len(CELLS)
    reached_NE = (target_NE == star_N1).int().cumsum(1) > 0
    return ~torch.cat([torch.zeros_like(reached_NE[:, :1]), reached_NE[:, :-1]], 1)


def silenced(run: Run, silent: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """Return the trained weights with the outputs of these heads at 0."""
    weights = {name: own.clone() for name, own in run.weights().items()}
    size = run.config.model.width // run.config.model.heads
    for layer, head in silent:
        out = weights[f"layers.{layer}.self_attn.out_proj.weight"]
        out[:, head * size : (head + 1) * size] = 0
    return weights


@torch.no_grad()
def predictions(
    run: Run, weights: dict[str, Tensor], token_NT: Tensor, target_NE: Tensor
) -> Tensor:
    """Return the likeliest move at every scored position, [N, E]."""
    model = run.model()
    found = [functional_call(model, weights, (part,)).argmax(2) for part in token_NT.split(125)]
    return torch.cat(found)[:, -target_NE.shape[1] :]


# --- the page -------------------------------------------------------------------------------------


def claims(every: list[Results]) -> dict[str, bool]:
    """Return what the page says of heads → whether the seeds have it."""
    star_low, cheese_low = (interval(values)[0] for values in lost(every, "star"))
    beyond = {aim: interval(lost_more(every, aim))[0] > 0 for aim in LEGS}
    return {
        "in every seed one head takes of the way to the cheese, beyond both intervals": all(
            one["walked"][1] + half_width(one["walked"][1], own["n"])
            < own["whole"][1] - half_width(own["whole"][1], own["n"])
            for own, one in chosen(every, "cheese")
        ),
        "and leaves nine tenths of that to the star": all(
            one["walked"][0] > 0.9 * own["whole"][0] for own, one in chosen(every, "cheese")
        ),
        "on average it takes more of its own way than the median head": beyond["cheese"],
        "the head chosen to take the way to the star takes some of that to the cheese": (
            cheese_low > 0
        ),
        "but no more of that than the median head": all(
            one["walked"][1] > one["median"][1] - half_width(one["median"][1], own["n"])
            for own, one in chosen(every, "star")
        ),
        "what it takes of the way to the star is not certain over seeds": len(every) < 2
        or not (star_low > 0 or beyond["star"]),
    }


def lost(every: list[Results], aim: str) -> tuple[list[float], list[float]]:
    """Return what the heads chosen to take one leg take of each, in points, by seed."""
    pairs = chosen(every, aim)
    star, cheese = (
        [100 * (own["whole"][leg] - one["walked"][leg]) for own, one in pairs] for leg in (0, 1)
    )
    return star, cheese


def lost_more(every: list[Results], aim: str) -> list[float]:
    """Return by how much they take more of their own leg than the median head, in points."""
    leg = LEGS.index(aim)
    return [100 * (one["median"][leg] - one["walked"][leg]) for _, one in chosen(every, aim)]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over seeds (Student's t); of one seed its value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean
    error = float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def chosen(every: list[Results], aim: str) -> list[tuple[Results, Results]]:
    """Return each seed's results beside each set of heads that was chosen to take one leg."""
    return [(own, one) for own in every for one in own["silenced"] if one["aim"] == aim]


def beside(every: list[Results], aim: str) -> str:
    """Return what the heads take that were chosen to take one leg, as means over seeds."""
    star, cheese = (mean_and_interval(values, 1) for values in lost(every, aim))
    return f"silencing the head chosen for it takes {star} points of the stars, {cheese} of cheese"


def lost_table(every: list[Results]) -> list[str]:
    """Return what the chosen heads take, mean over seeds and 95 % interval, in points."""
    rows = [
        [
            aim,
            str(len(every)),
            *(mean_and_interval(values, 1) for values in lost(every, aim)),
            mean_and_interval(lost_more(every, aim), 1),
        ]
        for aim in LEGS
    ]
    head = ["head chosen to take", "seeds", "takes of the way to the star", "of that to the cheese"]
    return table([*head, "of its own way, more than the median head"], rows)


def stars_table(every: list[Results]) -> list[str]:
    """Return the legs walked by the whole model, and with the chosen heads silenced."""
    rows = []
    for own in every:
        cells = [share(value, own["n"]) for value in own["whole"]]
        rows.append([str(own["seed"]), "none", "–", *cells, "–"])
        for one in own["silenced"]:
            cells = [share(value, own["n"]) for value in one["walked"]]
            median = ", ".join(percent(value) for value in one["median"])
            beside = f"{median} ({one['sets']} sets)"
            rows.append([str(own["seed"]), ", ".join(one["heads"]), one["aim"], *cells, beside])
    head = ["seed", "heads silenced", "chosen to take", "walked to the star", "on to the cheese"]
    return table([*head, "median over all sets: star, cheese"], rows)


def share(value: float, n: int) -> str:
    return f"{percent(value)} ± {100 * half_width(value, n):.1f}"
