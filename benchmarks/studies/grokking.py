"""Grokking: a + b mod 53 is memorized first and understood later; page docs/studies/grokking.md.

The bundled configuration ``modular-addition`` is captured for each seed, and measured at every
checkpoint. Sources: Power et al. 2022; Nanda et al. 2023, whose claims stand beside ours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

import ontogeny
from benchmarks.studies.snapshots import random_removals, snapshot_spectrum
from benchmarks.studies.study import Results, Study
from benchmarks.studies.sums.page import STRETCH, P, blocks, claims, draw
from benchmarks.studies.sums.phases import hidden_states
from benchmarks.studies.sums.ranks import gradient_values, low_ranks
from benchmarks.studies.transitions import lead_rows, verdicts
from ontogeny import Run

SEEDS = (0, 1, 2)
NULL_SEEDS = SEEDS
"""Seeds whose weights lose random directions, too."""
METRICS = (
    *("accuracy", "loss", "sum_waves", "restricted_loss", "excluded_loss", "embedding_gini"),
)
STRETCHES = (500, 2500, 4000, 6500)
"""First steps of the stretches whose change of the held-out loss is shared among training pairs and
decay."""


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    every = [measured(folder, seed) for seed in seeds]
    first = ontogeny.open_run(folder / f"grokking-{seeds[0]}")
    nulls = [at_random(folder, own) for own in every if own["seed"] in NULL_SEEDS]
    shared = [taught(first, start) for start in STRETCHES]
    runs = [ontogeny.open_run(folder / f"grokking-{seed}") for seed in seeds]
    states = hidden_states(runs, METRICS, "accuracy")
    return {"seeds": every, "random": nulls, "taught": shared, "states": states}


def measured(folder: Path, seed: int) -> Results:
    """Train with one seed, or take the run that is there, and measure it at all checkpoints."""
    uri = str(folder / f"grokking-{seed}")
    run = ontogeny.capture("modular-addition", f"run.uri={uri}", f"run.seed={seed}", resume=True)
    config = ontogeny.TrajectoryConfig(metrics=METRICS, steps="all", datums=P * P)
    found = ontogeny.trajectory(run, config, save=True, replace=True)
    asked = ontogeny.TransitionsConfig(metrics=METRICS, states=0, record=False)
    changes = ontogeny.transitions(run, asked)
    series = {name: found.series(name) for name in METRICS}
    steps = series["accuracy"]["step"].tolist()
    loss_S = run.steps()["loss"].to_numpy()
    memorized = int(np.argmax(loss_S < 1e-4))
    accuracy = series["accuracy"]["value"].to_numpy()
    judged = [steps[-1], min(steps, key=lambda step: abs(step - 2000))]
    return {
        "seed": seed,
        "steps": steps,
        "training_loss": [float(loss_S[min(step, len(loss_S) - 1)]) for step in steps],
        "curves": {name: rows["value"].tolist() for name, rows in series.items()},
        "nulls": {name: rows["null"].tolist() for name, rows in series.items()},
        "held_out": int(series["accuracy"]["n"].iloc[0]),
        "mirrored": mirrored_share(run),
        "memorized_step": memorized,
        "accuracy_then": float(np.interp(memorized, steps, accuracy)),
        "transitions": own_curves(verdicts(changes.curves)),
        "leads": own_curves(lead_rows(changes.warnings)),
        "network": network(run, steps),
        "snapshots": snapshot_spectrum(run, steps[1:], P, scorer(run), judged),
    }


def network(run: Run, steps: Sequence[int]) -> Results:
    """Return the number of weights, ranks at the end, and directions of the gradients."""
    weights = run.weights()
    return {
        "weights": sum(own.numel() for own in weights.values()),
        "ranks": low_ranks(weights),
        "gradients": gradient_values(run, steps[:-1]),
    }


def at_random(folder: Path, own: Results) -> Results:
    """Take random directions out of the weights of a run that is measured."""
    run = ontogeny.open_run(folder / f"grokking-{own['seed']}")
    judged = [int(step) for step in own["snapshots"]["whole"]]
    return random_removals(run, own["steps"][1:], scorer(run), judged)


def taught(run: Run, start: int) -> Results:
    """Share the change of the held-out loss in a stretch among training pairs and decay."""
    config = ontogeny.InfluenceConfig(
        method="path", first_step=start, end_step=start + STRETCH, windows=1, positions_of=0
    )
    found = ontogeny.influence(run, "loss", config)
    (row,) = found.queries.to_dict("records")
    names = ("before", "after", "datums", "decay", "inherited", "incompleteness")
    influence_N = found.datums["influence"].to_numpy()
    lowered = float((influence_N < 0).mean())
    return {"start": start, "lowered": lowered} | {name: float(row[name]) for name in names}


def mirrored_share(run: Run) -> float:
    """Return the share of held-out pairs (a, b) whose (b, a) is a training pair."""
    trained = {tuple(tokens[:2]) for tokens in run.datums("train")["tokens"]}
    held_out = [tuple(tokens[:2]) for tokens in run.datums("test")["tokens"]]
    return float(np.mean([(b, a) in trained for a, b in held_out]))


def own_curves(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was found of curves of the whole model, without single frequencies."""
    return {name: found[name] for name in METRICS if name in found}


def scorer(run: Run):
    """Return a function from weights to loss and accuracy on the held-out pairs."""
    rows = run.datums("test")
    token_NT = torch.tensor(np.stack(rows["tokens"].to_list())).long()
    target_N = torch.tensor(rows["last_target"].to_numpy()).long()
    model = run.model()

    @torch.no_grad()
    def score(weights: Mapping[str, Tensor]) -> tuple[float, float]:
        logit_NV = functional_call(model, dict(weights), (token_NT,))[:, -1]
        right = (logit_NV.argmax(1) == target_N).double().mean()
        return float(F.cross_entropy(logit_NV, target_N)), float(right)

    return score


STUDY = Study("grokking", measure, claims, blocks, draw, SEEDS)
