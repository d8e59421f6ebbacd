"""Nulls and intervals of turns: paths that take the same steps in another order, other datums.

Principal components of a random walk are cosines, whose path turns although nothing happened
(Antognini and Sohl-Dickstein 2018, "PCA of high dimensional random walks with comparison to neural
network training"). The null keeps the length of each step between checkpoints in its place and
deals the directions anew: a walk of independent steps, with or without drift, is as likely one way
as the other.

Shapes: C checkpoint, S step between two, N datum, K component, D draw.
"""

import numpy as np

from analysis.trajectory.components.paths import Path, path_of
from analysis.trajectory.components.turns import Turn, angles, at_its_tip, sharpest

PLANE = 2
"""Components in which turns are sought."""
DRAWS = 199


def reordered_gram(gram_CC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the Gram matrix of a path with the same step lengths and dealt directions, [C, C]."""
    step_SS = np.diff(np.diff(gram_CC, axis=0), axis=1)
    length_S = np.sqrt(np.diag(step_SS).clip(0))
    length_SS = np.outer(length_S, length_S)
    cosine_SS = np.divide(step_SS, length_SS, out=np.zeros_like(step_SS), where=length_SS > 0)
    order_S = rng.permutation(len(length_S))
    sums_CS = np.tri(len(gram_CC), len(length_S), -1)
    return sums_CS @ (cosine_SS[np.ix_(order_S, order_S)] * length_SS) @ sums_CS.T


def null_paths(gram_CC: np.ndarray, seed: int) -> list[Path]:
    """Return paths of the null, in the plane of their own first two components."""
    rng = np.random.default_rng(seed)
    return [path_of(reordered_gram(gram_CC, rng), PLANE) for _ in range(DRAWS)]


def null_angles(paths: list[Path]) -> np.ndarray:
    """Return the largest angle of each path, degrees [D]."""
    return np.array([sharpest(path.place_CK) for path in paths])


def p_value(angle: float, null_D: np.ndarray) -> float:
    """Return how often the largest angle of the null is as large, the path itself counted."""
    return float((1 + (null_D >= angle - 1e-9).sum()) / (1 + len(null_D)))


def other_datums(gram_NCC: np.ndarray, turns: list[Turn], seed: int) -> list[tuple[float, float]]:
    """Return the 95 % interval of each turn's checkpoint over datums, by bootstrap.

    In each draw a turn is the largest angle between the ends of its ways. NaN for a single datum.
    """
    count, rng = len(gram_NCC), np.random.default_rng(seed)
    found: list[list[int]] = [[] for _ in turns]
    for _ in range(DRAWS if count > 1 else 0):
        weight_N = rng.multinomial(count, np.full(count, 1 / count)) / count
        path = path_of(np.tensordot(weight_N, gram_NCC, 1), PLANE)
        drawn = angles(path.place_CK)
        for own, turn in zip(found, turns, strict=True):
            near = [each for each in drawn if turn.before < each.at < turn.after]
            if near:
                sharp = max(near, key=lambda each: each.angle)
                own.append(at_its_tip(sharp, path.place_CK).at)
    nothing = (float("nan"), float("nan"))
    return [interval(own) if own else nothing for own in found]


def interval(places: list[int]) -> tuple[float, float]:
    """Return the checkpoints between which 95 % of the draws lie."""
    low, high = np.quantile(places, (0.025, 0.975), method="closest_observation")
    return float(low), float(high)
