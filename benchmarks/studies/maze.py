"""Corner first, cheese later: can what was learned in each phase be taken out alone?

Page docs/studies/maze.md. The bundled configuration ``maze`` is captured; the cheese is in the top
right corner in the first half of training and anywhere in the second. The directions in which the
weights moved in each half are taken out of the trained model, and the solved mazes are counted.
Source: the wish at the end of "Performing an SVD on a time-series matrix of gradient updates"; the
mazes of Langosco et al. 2022. Shapes: S checkpoint, P entry of the weights, K direction.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

import ontogeny
from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.mazes import stars as maze_stars
from benchmarks.studies.snapshots import split, stacked_weights
from benchmarks.studies.study import Blocks, Results, Study, half_width, percent, step_of, table
from ontogeny import Run

SEEDS = (0, 1, 2, 3)
EVERY = 10
SETTINGS = ("capture.record=checkpoints", f"capture.segment_steps={EVERY}")
COUNTS = (1, 4, 16)
MANY = 4
"""The count of which the first table speaks."""
DRAWS = 5
SPLITS = {"validation": "corner", "test": "anywhere"}


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    stars = maze_stars.measure(folder, [seed for seed in seeds if seed in maze_stars.SEEDS])
    return {"seeds": [measured(folder, seed) for seed in seeds], "stars": stars}


def measured(folder: Path, seed: int) -> Results:
    """Train with one seed, and take directions out of the trained model."""
    uri = f"run.uri={folder / f'maze-{seed}'}"
    run = ontogeny.capture("maze", uri, f"run.seed={seed}", *SETTINGS, resume=True)
    moved = run.config.corpus.maze.corner // run.config.training.batch
    steps = list(range(0, run.num_steps + 1, EVERY))
    weight_SP, shapes = stacked_weights(run, steps)
    mazes = {split: episodes(run, split) for split in SPLITS}

    def solved(row_P: np.ndarray) -> dict[str, float]:
        weights = split(row_P, shapes)
        return {name: share_solved(run, weights, *mazes[name]) for name in SPLITS}

    early_SP, late_SP = phases(weight_SP, steps, moved)
    rng = np.random.default_rng(seed)
    start_P, end_P = weight_SP[0], weight_SP[-1]
    rows = []
    for count in COUNTS:
        taken = {"first half": leading(early_SP, count), "second half": leading(late_SP, count)}
        for name, left_KP in taken.items():
            rows.append((count, name, solved(without(left_KP, start_P, end_P))))
        for _ in range(DRAWS):
            left_KP = random_mixtures(np.concatenate([early_SP, late_SP]), count, rng)
            rows.append((count, "random", solved(without(left_KP, start_P, end_P))))
    evaluated = run.evaluations()
    curves = {
        name: evaluated[evaluated["split"] == name][["step", "datum_accuracy"]].to_dict("list")
        for name in SPLITS
    }
    return {
        "seed": seed,
        "moved_at": moved,
        "n": len(mazes["test"][0]),
        "curves": curves,
        "whole": solved(end_P),
        "removed": [list(row) for row in rows],
    }


def phases(weight_SP: np.ndarray, steps: list[int], moved: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the changes of the weights between checkpoints, before and after the cheese moves."""
    change_SP = np.diff(weight_SP, axis=0)
    before = np.array(steps[1:]) <= moved
    return change_SP[before], change_SP[~before]


def leading(change_SP: np.ndarray, count: int) -> np.ndarray:
    """Return the first directions of the changes, orthonormal rows [K, P]."""
    return np.linalg.svd(change_SP, full_matrices=False)[2][:count]


def random_mixtures(change_SP: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return random directions of the space of all changes, orthonormal rows [K, P]."""
    mixed_KP = rng.normal(size=(count, len(change_SP))) @ change_SP
    return np.linalg.qr(mixed_KP.T)[0].T


def without(left_KP: np.ndarray, start_P: np.ndarray, end_P: np.ndarray) -> np.ndarray:
    """Return the trained weights, back at their start in these directions."""
    return end_P - (end_P - start_P) @ left_KP.T @ left_KP


def episodes(run: Run, split: str) -> tuple[Tensor, Tensor]:
    """Return tokens and targets of a split's episodes."""
    rows = run.datums("test" if split == "test" else "validation")
    token_NT = torch.tensor(np.stack(rows["tokens"].to_list())).long()
    last_N1 = torch.tensor(rows["last_target"].to_numpy()).long()[:, None]
    return token_NT, torch.cat([token_NT[:, 1:], last_N1], dim=1)


@torch.no_grad()
def share_solved(
    run: Run, weights: dict[str, Tensor], token_NT: Tensor, target_NT: Tensor
) -> float:
    """Return the share of the episodes of which every move is the optimal one."""
    model = run.model()
    found = []
    for token, target in zip(token_NT.split(100), target_NT.split(100), strict=True):
        logit_NTV = functional_call(model, weights, (token,))
        right_NT = logit_NTV.argmax(2) == target[:, -logit_NTV.shape[1] :]
        found.append(right_NT.all(1))
    return float(torch.cat(found).double().mean())


# --- the page -------------------------------------------------------------------------------------


def claims(results: Results) -> dict[str, bool]:
    every = results["seeds"]
    return {
        "before the cheese moves, mazes with the cheese elsewhere are not solved": all(
            at(own, "test", own["moved_at"]) < 0.1 < at(own, "validation", own["moved_at"])
            for own in every
        ),
        "at the end both kinds are": all(min(own["whole"].values()) > 0.25 for own in every),
        "without directions of the second half the corner remains, the rest does not": all(
            removed(own, count, "second half")[0]["validation"] > 0.1
            and removed(own, count, "second half")[0]["test"] < 0.05
            for own in every
            for count in COUNTS[1:]
        ),
        "without directions of the first half neither kind is solved": all(
            max(one.values()) <= 0.05
            for own in every
            for count in COUNTS
            for one in removed(own, count, "first half")
        ),
        "without one direction of the second half at most 5 % of either kind are": all(
            max(one.values()) <= 0.05 for own in every for one in removed(own, 1, "second half")
        ),
        **maze_stars.claims(results["stars"]),
        "random directions take both": all(
            max(one.values()) < 0.05
            for own in every
            for count in COUNTS[1:]
            for one in removed(own, count, "random")
        ),
    }


def removed(own: Results, count: int, basis: str) -> list[dict[str, float]]:
    """Return the shares solved without so many directions, one for each draw."""
    return [one for k, name, one in own["removed"] if (k, name) == (count, basis)]


def at(own: Results, name: str, step: int) -> float:
    """Return the share solved at the evaluation nearest to a step."""
    curve = own["curves"][name]
    place = int(np.argmin(np.abs(np.array(curve["step"]) - step)))
    return curve["datum_accuracy"][place]


def blocks(results: Results) -> Blocks:
    return {
        "beside": beside_table(results),
        "course": course(results["seeds"]),
        "removal": removal_table(results["seeds"]),
        "stars": maze_stars.stars_table(results["stars"]),
        "stars-lost": maze_stars.lost_table(results["stars"]),
    }


def beside_table(results: Results) -> list[str]:
    """Return what the source wishes beside what is found here."""
    every, stars = results["seeds"], results["stars"]
    late, early = (
        {name: whole_and_left(every, basis, name) for name in SPLITS}
        for basis in ("second half", "first half")
    )
    ends = spread([at(own, "test", own["moved_at"]) for own in every])
    return table(
        ["the wish", "here"],
        [
            [
                "an agent that walks to a cheese in the top right corner, by reinforcement",
                f"a transformer that clones shortest paths, without reinforcement; {len(every)} "
                "seeds",
            ],
            [
                "the corner is learned first, the cheese later",
                f"when the cheese moves, {ends} of the mazes with the cheese elsewhere are solved",
            ],
            [
                "ablate the way to the cheese, keep the corner",
                f"yes, in part: without {MANY} directions of the second half, anywhere "
                f"{late['test']}; in the corner {late['validation']}",
            ],
            [
                "ablate the way to the corner, keep the cheese",
                f"not reproduced: without {MANY} directions of the first half, in the corner "
                f"{early['validation']}; anywhere {early['test']}",
            ],
            [
                "ablate the way to the stars, keep the cheese",
                f"not reproduced: {maze_stars.beside(stars, 'star')}",
            ],
            [
                "ablate the way to the cheese, keep the stars",
                f"yes, in part: {maze_stars.beside(stars, 'cheese')}",
            ],
        ],
    )


def whole_and_left(every: list[Results], basis: str, name: str) -> str:
    """Return shares solved by the whole models, and without directions of a half."""
    left = [removed(own, MANY, basis)[0][name] for own in every]
    return f"{spread([own['whole'][name] for own in every])} → {spread(left)}"


def spread(shares: list[float]) -> str:
    """Return the mean over seeds, and the range."""
    low, high = percent(min(shares)), percent(max(shares))
    return f"{percent(float(np.mean(shares)))} ({low} to {high})"


def course(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        for step in (*own["curves"]["test"]["step"],):
            moved = ", the cheese moves" if step == own["moved_at"] else ""
            cells = [interval(at(own, name, step), own["n"]) for name in SPLITS]
            rows.append([str(own["seed"]), f"{step_of(step)}{moved}", *cells])
    return table(["seed", "step", "solved, cheese in the corner", "solved, anywhere"], rows)


def interval(share: float, n: int) -> str:
    """Return a share, and half of its 95 % interval (Wilson)."""
    return f"{percent(share)} ± {100 * half_width(share, n):.1f}"


def removal_table(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        cells = [interval(own["whole"][name], own["n"]) for name in SPLITS]
        rows.append([str(own["seed"]), "0", "–", *cells])
        for count in COUNTS:
            for basis in ("first half", "second half", "random"):
                found = cells_of(removed(own, count, basis), own["n"])
                rows.append([str(own["seed"]), str(count), basis, *found])
    head = ["seed", "directions taken out", "of", "solved, cheese in the corner"]
    return table([*head, "solved, anywhere"], rows)


def cells_of(found: list[dict[str, float]], n: int) -> list[str]:
    """Return a share with its interval; of several draws, their mean and range."""
    if len(found) == 1:
        return [interval(found[0][name], n) for name in SPLITS]
    cells = []
    for name in SPLITS:
        values = [one[name] for one in found]
        spread = f"{percent(min(values))} to {percent(max(values))}"
        cells.append(f"{percent(float(np.mean(values)))} ({spread}, {len(values)} draws)")
    return cells


def draw(results: Results, path: Path) -> None:
    panels = [
        [
            (curve["step"], curve["datum_accuracy"], place, f"seed {own['seed']}: {SPLITS[name]}")
            for place, (name, curve) in enumerate(own["curves"].items())
        ]
        for own in results["seeds"]
    ]
    curves_figure(panels, path, logarithmic=False)


STUDY = Study("maze", measure, claims, blocks, draw, SEEDS)
