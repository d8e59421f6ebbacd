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
from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.snapshots import (
    random_claims,
    random_removals,
    random_table,
    removal_claims,
    removal_table,
    snapshot_spectrum,
    snapshots_table,
)
from benchmarks.studies.study import Blocks, Results, Study, percent, step_of, table
from benchmarks.studies.transitions import half_cell, lead_cell, lead_rows, verdicts
from ontogeny import Run

SEEDS = (0, 1, 2)
NULL_SEEDS = (0,)
"""Seeds whose weights lose random directions, too."""
P = 53
METRICS = (
    *("accuracy", "loss", "sum_waves", "restricted_loss", "excluded_loss", "embedding_gini"),
)
CURVES = {
    "accuracy": "accuracy on held-out pairs",
    "loss": "loss on held-out pairs",
    "sum_waves": "logits at the five strongest frequencies, share",
    "restricted_loss": "loss with these five alone",
    "excluded_loss": "training loss without these five",
    "embedding_gini": "inequality of the embedding's frequencies",
}
GROKKED, SOLVED = 0.9, 0.99
STRETCHES, STRETCH = (500, 2500, 4000, 6500), 50
"""First steps, and number of steps, of the stretches whose change of the held-out loss is shared
among training pairs and decay."""


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    every = [measured(folder, seed) for seed in seeds]
    first = ontogeny.open_run(folder / f"grokking-{seeds[0]}")
    nulls = [at_random(folder, own) for own in every if own["seed"] in NULL_SEEDS]
    shared = [taught(first, start) for start in STRETCHES]
    return {"seeds": every, "random": nulls, "taught": shared}


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
        "snapshots": snapshot_spectrum(run, steps[1:], P, scorer(run), judged),
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


# --- the page -------------------------------------------------------------------------------------


def reached(own: Results) -> int | None:
    """Return the first checkpoint at which so many held-out pairs are right."""
    pairs = zip(own["steps"], own["curves"]["accuracy"], strict=True)
    return next((step for step, value in pairs if value >= GROKKED), None)


def grokked(own: Results) -> bool:
    return reached(own) is not None


def claims(results: Results) -> dict[str, bool]:
    every = results["seeds"]
    ends = [own["curves"]["accuracy"][-1] for own in every]
    return {
        f"the configured seed reaches {percent(SOLVED, 0)} on held-out pairs": ends[0] >= SOLVED,
        f"two seeds or more reach {percent(GROKKED, 0)}": sum(map(grokked, every))
        >= min(2, len(every)),
        "every seed that does so memorizes long before": all(
            (reached(own) or 0) > 2 * own["memorized_step"] for own in every if grokked(own)
        ),
        "the embedding's frequencies then change before the accuracy": all(
            own["leads"]["embedding_gini"][1] > 0 for own in every if grokked(own)
        ),
        "the part of decay is below 0 in every stretch, and below that of the training pairs": all(
            one["decay"] < min(0, one["datums"]) for one in results["taught"]
        ),
        **removal_claims(every),
        **random_claims(every, results["random"]),
    }


def blocks(results: Results) -> Blocks:
    every = results["seeds"]
    return {
        "beside": beside_table(every),
        "course": course(every),
        "transitions": transitions_table(every),
        "leads": leads_table(every),
        "snapshots": snapshots_table(every),
        "removal": removal_table(every),
        "random": random_table(every, results["random"]),
        "taught": taught_table(results["taught"]),
    }


def beside_table(every: list[Results]) -> list[str]:
    """What was published beside what is found here, one cell for all seeds."""
    leads = [lead_cell(own["leads"].get("excluded_loss")) for own in every]
    gini = [lead_cell(own["leads"].get("embedding_gini")) for own in every]
    values = [
        f"{own['snapshots']['over_cutoff']} of {own['snapshots']['snapshots']} checkpoints"
        for own in every
    ]
    ends = [percent(own["curves"]["accuracy"][-1]) for own in every]
    first = [own["snapshots"]["directions"][0] for own in every]
    ginis = [f"{one['gini']:.2f}" for one in first]
    without = [percent(one["without"][max(one["without"], key=int)][1]) for one in first]
    rows = [
        ["memorized first, generalized later (Power et al.)", f"{', '.join(ends)} at the end"],
        [
            "five singular values over 10 % of the largest among 400 checkpoints (N. Nanda)",
            ", ".join(values),
        ],
        [
            "measures foretell generalization by about 2,000 steps (Nanda et al., p = 113)",
            f"excluded loss by {', '.join(leads)}; embedding by {', '.join(gini)}",
        ],
        [
            "the first direction is dense in frequencies, and its removal helps (N. Nanda)",
            f"Gini {', '.join(ginis)}, more than the others; accuracy at the end without it "
            f"{', '.join(without)}",
        ],
    ]
    return table(["published", f"here (n = {len(every)})"], rows)


def course(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        first = reached(own)
        rows.append(
            [
                str(own["seed"]),
                step_of(own["memorized_step"]),
                percent(own["accuracy_then"]),
                percent(own["mirrored"]),
                step_of(first) if first is not None else "not reached",
                f"{percent(own['curves']['accuracy'][-1])} (n = {own['held_out']:,})",
                f"{own['curves']['sum_waves'][-1]:.3f} ({own['nulls']['sum_waves'][-1]:.3f})",
            ]
        )
    head = ["seed", "training loss below 1e-4 at step", "held-out accuracy then", "mirrored"]
    head += [
        f"{percent(GROKKED, 0)} at step",
        "held-out accuracy at the end",
        "five frequencies (null)",
    ]
    return table(head, rows)


def transitions_table(every: list[Results]) -> list[str]:
    rows = [
        [label, *(half_cell(own["transitions"].get(metric)) for own in every)]
        for metric, label in CURVES.items()
    ]
    return table(["curve", *(f"seed {own['seed']}" for own in every)], rows)


def leads_table(every: list[Results]) -> list[str]:
    rows = [
        [label, *(lead_cell(own["leads"].get(metric)) for own in every)]
        for metric, label in CURVES.items()
        if metric not in ("accuracy", "loss")  # the loss rises first, which warns of nothing
    ]
    return table(["curve leads the accuracy by", *(f"seed {o['seed']}" for o in every)], rows)


def taught_table(stretches: list[Results]) -> list[str]:
    rows = [
        [
            f"{one['start']:,} to {one['start'] + STRETCH - 1:,}",
            f"{one['before']:.3f}",
            f"{one['after'] - one['before']:+.3f}",
            f"{one['datums']:+.3f}",
            f"{one['decay']:+.3f}",
            f"{one['inherited']:+.3f}",
            percent(one["lowered"], 0),
        ]
        for one in stretches
    ]
    head = ["steps", "held-out loss before", "change", "training pairs", "weight decay"]
    return table([*head, "momentum from before", "pairs that lowered it"], rows)


def draw(results: Results, path: Path) -> None:
    panels = []
    for names in (("accuracy",), ("sum_waves", "embedding_gini"), ("restricted_loss", "loss")):
        lines = []
        for own in results["seeds"]:
            for place, name in enumerate(names):
                label = CURVES[name] if own["seed"] == results["seeds"][0]["seed"] else ""
                lines.append((own["steps"], own["curves"][name], place, label))
        panels.append(lines)
    curves_figure(panels, path, logarithmic=False)


STUDY = Study("grokking", measure, claims, blocks, draw, SEEDS)
