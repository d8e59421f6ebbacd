"""Principal directions of the weights at the checkpoints of a run, and what each one does.

Source of the study: LawrenceC's comment on "Performing an SVD on a time-series matrix of gradient
updates": 400 checkpoints of modular addition, stacked, have five singular values over 10 % of the
largest; the first direction is dense in the Fourier basis, and the model generalizes better without
it. Random directions of the same space are the null, by number and by length.
Shapes: S checkpoint, P entry of the weights, K direction, D draw.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from analysis.spectra.concentration import numbers_of
from analysis.trajectory.metrics.fourier import gini, powers
from benchmarks.studies.study import Results, half_width, percent, step_of, table
from ontogeny import Run

MOST = 6
"""Directions that are looked at one by one."""
DRAWS = 40
"""Random directions for each seed."""
Score = Callable[[Mapping[str, Tensor]], tuple[float, float]]
"""From weights to loss and accuracy on held-out pairs."""


def stacked_weights(run: Run, steps: list[int]) -> tuple[np.ndarray, dict[str, torch.Size]]:
    """Return the weights at these steps, [S, P], and the shape of each parameter, in order."""
    names = [name for name, _ in run.blank_model().named_parameters()]
    rows, shapes = [], {}
    for step in steps:
        stored = run.checkpoint(step)
        shapes = {name: stored[name].shape for name in names}
        rows.append(torch.cat([stored[name].flatten() for name in names]).double().numpy())
    return np.stack(rows), shapes


def split(row_P: np.ndarray, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the parameters of one row."""
    parts = torch.from_numpy(row_P).float().split([shape.numel() for shape in shapes.values()])
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def directions_of(weight_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return singular values, [K], and right singular vectors, [K, P], of more steps than few."""
    value_S, left_SS = np.linalg.eigh(weight_SP @ weight_SP.T)
    value_K = np.sqrt(value_S[::-1].clip(0))
    return value_K, (left_SS[:, ::-1].T @ weight_SP) / value_K[:, None].clip(1e-12)


def kept(row_P: np.ndarray, right_P: np.ndarray) -> np.ndarray:
    """Return the weights without their part in a direction of length 1."""
    return row_P - right_P * (right_P @ row_P)


def snapshot_spectrum(
    run: Run, steps: list[int], p: int, score: Score, judged_at: list[int]
) -> dict[str, object]:
    """Return singular values of the stacked weights, and what removing each direction does.

    ``judged_at``: steps (among ``steps``) whose weights lose a direction, one at a time. The
    concentration of a direction is the Gini coefficient of its embedding's frequencies.
    """
    weight_SP, shapes = stacked_weights(run, steps)
    value_K, right_KP = directions_of(weight_SP)
    centred = np.linalg.svd(weight_SP - weight_SP.mean(0), compute_uv=False)
    found = []
    for number in range(min(MOST, len(steps))):
        right_P = right_KP[number]
        embedding = split(right_P, shapes)["encoder.weight"][:p].double().numpy()
        without = {}
        for step in judged_at:
            row_P = weight_SP[steps.index(step)]
            without[str(step)] = score(split(kept(row_P, right_P), shapes))
        load_S = weight_SP @ right_P
        centre = float((np.array(steps) * load_S**2).sum() / (load_S**2).sum())
        found.append({"gini": gini(powers(embedding)), "centre": centre, "without": without})
    return {
        "snapshots": len(steps),
        "values": (value_K / value_K[0])[:20].tolist(),
        "over_cutoff": int(numbers_of(value_K).over_cutoff),
        "over_cutoff_centred": int(numbers_of(centred).over_cutoff),
        "whole": {str(at): score(split(weight_SP[steps.index(at)], shapes)) for at in judged_at},
        "directions": found,
    }


# --- the null -------------------------------------------------------------------------------------


def random_directions(weight_SP: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return unit vectors, [D, P], uniform on the sphere of the space that the rows span."""
    basis_KP = np.linalg.qr(weight_SP.T)[0].T
    mixed_DK = np.random.default_rng(seed).normal(size=(draws, len(basis_KP)))
    return (mixed_DK / np.linalg.norm(mixed_DK, axis=1, keepdims=True)) @ basis_KP


def moved_as_far(row_P: np.ndarray, right_P: np.ndarray, random_P: np.ndarray) -> np.ndarray:
    """Return the weights moved along another direction, as far as a removal moves them."""
    return row_P - random_P * abs(right_P @ row_P)


def random_removals(
    run: Run, steps: list[int], score: Score, judged_at: list[int]
) -> dict[str, object]:
    """Return the accuracies of weights that lose random directions, [D] for each step.

    ``removed``: one random direction is removed. ``as_far``: for each of the first directions, the
    weights are moved along a random one, as far as the removal of the first moves them; ``share``
    is its share of the squared length of the weights.
    """
    weight_SP, shapes = stacked_weights(run, steps)
    right_KP = directions_of(weight_SP)[1][:MOST]
    random_DP = random_directions(weight_SP, DRAWS, run.config.run.seed)
    rows = {str(step): weight_SP[steps.index(step)] for step in judged_at}

    def accuracies(moved: list[np.ndarray]) -> list[float]:
        return [score(split(row_P, shapes))[1] for row_P in moved]

    return {
        "seed": run.config.run.seed,
        "removed": {
            at: accuracies([kept(row_P, one_P) for one_P in random_DP])
            for at, row_P in rows.items()
        },
        "as_far": {
            at: [
                accuracies([moved_as_far(row_P, right_P, one_P) for one_P in random_DP])
                for right_P in right_KP
            ]
            for at, row_P in rows.items()
        },
        "share": {
            at: ((right_KP @ row_P) ** 2 / (row_P @ row_P)).tolist() for at, row_P in rows.items()
        },
    }


# --- the page -------------------------------------------------------------------------------------


def removals_of(own: Results) -> list[tuple[int, float, float]]:
    """Return direction (from 1), and accuracy with and without it, for each step that is judged."""
    found = own["snapshots"]
    return [
        (number, whole, one["without"][step][1])
        for number, one in enumerate(found["directions"], 1)
        for step, (_, whole) in found["whole"].items()
    ]


def removal_claims(every: list[Results]) -> dict[str, bool]:
    """Return what the page says of the directions → whether all seeds have it."""
    removals = [removal for own in every for removal in removals_of(own)]
    return {
        "removing a direction raises the accuracy in no seed and at no step": all(
            without <= whole for _, whole, without in removals
        ),
        "removing the first direction lowers it, by more than both intervals, in every seed": all(
            without + half_width(without, own["held_out"])
            < whole - half_width(whole, own["held_out"])
            for own in every
            for number, whole, without in removals_of(own)
            if number == 1
        ),
        "the first direction is more concentrated than the others in every seed": all(
            own["snapshots"]["directions"][0]["gini"] > one["gini"]
            for own in every
            for one in own["snapshots"]["directions"][1:]
        ),
    }


def snapshots_table(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        found = own["snapshots"]
        values = ", ".join(f"{value:.2f}" for value in found["values"][1:6])
        rows.append(
            [
                str(own["seed"]),
                str(found["snapshots"]),
                str(found["over_cutoff"]),
                str(found["over_cutoff_centred"]),
                values,
            ]
        )
    head = ["seed", "checkpoints", "values over 10 %", "mean subtracted", "second to sixth value"]
    return table(head, rows)


def removal_table(every: list[Results]) -> list[str]:
    """Return each direction's concentration, and loss and accuracy without it."""
    judged, rows = list(every[0]["snapshots"]["whole"]), []
    for own in every:
        found, seed, n = own["snapshots"], str(own["seed"]), own["held_out"]
        whole = [score_of(found["whole"][step], n) for step in judged]
        rows.append([seed, "none", "–", "–", *whole])
        for number, one in enumerate(found["directions"], 1):
            cells = [score_of(one["without"][step], n) for step in judged]
            rows.append([seed, str(number), f"{one['gini']:.2f}", step_of(one["centre"]), *cells])
    head = ["seed", "direction removed", "Gini of its frequencies", "centre, step"]
    head += [f"held-out loss and accuracy, step {int(step):,}" for step in judged]
    return table(head, rows)


def score_of(pair: list[float], n: int) -> str:
    """Return loss, and accuracy with its 95 % interval over ``n`` held-out pairs."""
    return f"{pair[0]:.2f}, {percent(pair[1])} ± {100 * half_width(pair[1], n):.1f}"
