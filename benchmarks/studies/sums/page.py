"""Claims, tables and plot of the page on grokking, from the stored results."""

from itertools import pairwise
from pathlib import Path

from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.snapshots import (
    removal_claims,
    removal_table,
    snapshots_table,
)
from benchmarks.studies.study import Blocks, Results, percent, step_of, table
from benchmarks.studies.sums.phases import states_sentence, states_table
from benchmarks.studies.sums.random_directions import random_claims, random_counts, random_table
from benchmarks.studies.transitions import half_cell, lead_cell

CURVES = {
    "accuracy": "accuracy on held-out pairs",
    "loss": "loss on held-out pairs",
    "sum_waves": "logits at the five strongest frequencies, share",
    "restricted_loss": "loss with these five alone",
    "excluded_loss": "training loss without these five",
    "embedding_gini": "inequality of the embedding's frequencies",
}
MATRICES = {
    "encoder.weight": "embedding",
    "layers.0.linear1.weight": "into the neurons",
    "layers.0.linear2.weight": "out of them",
    "decoder.weight": "output",
}
"""Matrices whose ranks are shown."""
P = 53
GROKKED, SOLVED = 0.9, 0.99
STRETCH = 50
"""Steps of a stretch of ``taught``."""


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
        "all seeds pass the same hidden states in the same order, and none returns": in_order(
            results["states"]["paths"]
        ),
        "the further a seed generalizes, the lower the ranks at its end": ranks_fall(every),
        "no state is a detour": not results["states"]["detours"],
        **removal_claims(every),
        **random_claims(every, results["random"]),
    }


def ranks_fall(every: list[Results]) -> bool:
    """Return whether seeds that are more accurate at the end have lower ranks, of each matrix."""
    by_accuracy = sorted(every, key=lambda own: own["curves"]["accuracy"][-1])
    ranks = [[own["network"]["ranks"][name][0] for name in MATRICES] for own in by_accuracy]
    return all(b < a for one, other in pairwise(ranks) for a, b in zip(one, other, strict=True))


def in_order(paths: list[list[list[float]]]) -> bool:
    """Return whether each path through states visits those of the longest, from the first on."""
    visits = [[state for state, _ in path] for path in paths]
    longest = max(visits, key=len)
    once = len(set(longest)) == len(longest)
    return once and all(own == longest[: len(own)] for own in visits)


def blocks(results: Results) -> Blocks:
    every = results["seeds"]
    return {
        "beside": beside_table(every),
        "course": course(every),
        "transitions": transitions_table(every),
        "leads": leads_table(every),
        "snapshots": snapshots_table(every),
        "removal": removal_table(every),
        "random": [
            *random_table(every, results["random"]),
            "",
            *random_counts(every, results["random"]),
        ],
        "taught": taught_table(results["taught"]),
        "states": [
            states_sentence(results["states"]),
            "",
            *states_table(results["states"], [own["seed"] for own in every]),
        ],
    }


def beside_table(every: list[Results]) -> list[str]:
    """Return what was published beside what is found here, one cell for all seeds."""
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
    then = [percent(own["accuracy_then"]) for own in every]
    networks = [own["network"] for own in every]
    counts = {
        name: ", ".join(str(one["gradients"][name]) for one in networks)
        for name in ("as_they_are", "unit_length")
    }
    rows = [
        ["memorized first, generalized later (Power et al.)", f"{', '.join(ends)} at the end"],
        [
            "in between, held-out pairs stay at chance (a course on training dynamics)",
            f"{', '.join(then)} when memorized; a guess {percent(1 / P)}, mirrored pairs "
            f"{percent(every[0]['mirrored'])}",
        ],
        [
            "400 checkpoints of 226,825 weights have five singular values over 10 % of the largest "
            "(LawrenceC)",
            f"{', '.join(values)} of {networks[0]['weights']:,} weights",
        ],
        [
            "parts have low-rank approximations that hold over 99 % of the variance (LawrenceC)",
            "; ".join(
                f"{label} {', '.join(str(one['ranks'][name][0]) for one in networks)} of "
                f"{networks[0]['ranks'][name][1]}"
                for name, label in MATRICES.items()
            ),
        ],
        [
            "the gradients of a simpler network for an algorithmic task have 10 (G. Baker)",
            f"of {networks[0]['gradients']['steps']} full-batch gradients "
            f"{counts['as_they_are']}; at unit length {counts['unit_length']}",
        ],
        [
            "measures foretell generalization by about 2,000 steps (Nanda et al., p = 113)",
            f"excluded loss by {', '.join(leads)}; embedding by {', '.join(gini)}",
        ],
        [
            "the first direction is dense in frequencies, and its removal helps (LawrenceC)",
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
