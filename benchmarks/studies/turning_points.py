"""Turning points of losses and logits while small models grok and learn n-grams.

Page docs/studies/turning-points.md. The runs are those of the studies ``grokking`` and
``ngram-stages`` (first seed only); what is trained there already stays. Source: L. Chan's comment
on "Performing an SVD on a time-series matrix of gradient updates": the first two principal
components of the logits of a grokking network turn at two checkpoints, where its phases change.

Shapes: S step.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import ontogeny
from benchmarks.studies import ngram_stages
from benchmarks.studies.drawing import COLOURS
from benchmarks.studies.study import Blocks, Results, Study, percent, step_of, table
from ontogeny import Run

SEEDS = (0, 1, 2)
P = 53
PATHS = {"logit_components": "logits", "loss_components": "losses"}
CLAIMED = 0.05
JUMP, WINDOW, AFTER, APART = 30.0, 50, 300, 50
"""A jump is where the training loss exceeds 30 times its median in a window of 100 steps, after
step 300; jumps less than 50 steps apart are one."""
NEAR = 200
"""Steps from a jump to a turn that is said to lie at it; checkpoints are 100 apart."""


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    grokking = []
    for seed in seeds:
        own = (f"run.uri={folder / f'grokking-{seed}'}", f"run.seed={seed}")
        run = ontogeny.capture("modular-addition", *own, resume=True)
        found = paths_of(run, "all", P * P)
        grokking.append({"seed": seed, "jumps": jumps(run), **found})
    run = ngram_stages.trained(folder, seeds[0])
    steps = ngram_stages.spaced(run.num_steps)
    words = {"seed": seeds[0], **paths_of(run, steps, ngram_stages.DATUMS)}
    return {"grokking": grokking, "ngram-stages": [words]}


def paths_of(run: Run, steps: str | list[int], datums: int) -> Results:
    """Return the paths of a run's outputs, their turns, and its held-out loss and accuracy."""
    config = ontogeny.TrajectoryConfig(
        metrics=("loss", "accuracy"), steps=steps, datums=datums, components=2
    )
    found = ontogeny.trajectory(run, config)
    series = {name: found.series(name)["value"].tolist() for name in ("loss", "accuracy")}
    meaning = found.metrics.set_index("metric")["meaning"]
    return {
        "steps": found.checkpoints["step"].tolist(),
        **series,
        "turns": found.turns.to_dict("records"),
        "paths": {
            metric: [found.series(metric, f"PC{k}")["value"].tolist() for k in (1, 2)]
            for metric in PATHS
        },
        "meaning": {metric: meaning[metric] for metric in PATHS},
    }


def jumps(run: Run) -> list[int]:
    """Return the steps at which the training loss jumps."""
    loss_S = run.steps()["loss"].to_numpy()
    median_S = np.array(
        [np.median(loss_S[max(0, s - WINDOW) : s + WINDOW]) for s in range(len(loss_S))]
    )
    high = np.flatnonzero(loss_S > JUMP * median_S)
    high = high[high > AFTER]
    first = np.diff(high, prepend=-APART - 1) > APART
    return high[first].tolist()


# --- the page -------------------------------------------------------------------------------------


def turning_points(own: Results, metric: str) -> list[Results]:
    """Return the turns that are claimed, in order of their steps."""
    turns = (t for t in own["turns"] if t["metric"] == metric and t["p"] <= CLAIMED)
    return sorted(turns, key=lambda turn: turn["step"])


def at_a_turn(own: Results, metric: str) -> list[bool]:
    """Return whether each jump lies near a turning point."""
    steps = [turn["step"] for turn in turning_points(own, metric)]
    return [any(abs(step - jump) <= NEAR for step in steps) for jump in own["jumps"]]


def share_near(own: Results, metric: str) -> float:
    """Return the share of all steps after ``AFTER`` that lie as near: what jumps have by chance."""
    turn_K = np.array([turn["step"] for turn in turning_points(own, metric)])
    step_S = np.arange(AFTER, own["steps"][-1])
    if not len(turn_K):
        return 0.0
    return float((np.abs(step_S[:, None] - turn_K).min(1) <= NEAR).mean())


def each(results: Results) -> Iterator[tuple[str, Results]]:
    for task in ("grokking", "ngram-stages"):
        for own in results[task]:
            yield task, own


def turns_table(results: Results) -> list[str]:
    rows = []
    for task, own in each(results):
        for metric, name in PATHS.items():
            claimed = turning_points(own, metric)
            said = ", ".join(f"{step_of(t['step'])} ({t['angle']:.0f}°)" for t in claimed)
            null = [t["null_angle"] for t in own["turns"] if t["metric"] == metric]
            cell = f"{null[0]:.0f}°" if null else "–"
            rows.append([task, str(own["seed"]), name, said or "none", cell])
    head = ["training", "seed", "path of", "turning points, step (angle)"]
    return table([*head, "sharpest turn of the same steps in random order"], rows)


def jumps_table(results: Results) -> list[str]:
    rows = []
    for own in results["grokking"]:
        steps = ", ".join(map(step_of, own["jumps"]))
        row = [str(own["seed"]), steps]
        for metric in PATHS:
            hit = at_a_turn(own, metric)
            row.append(f"{sum(hit)} of {len(hit)} ({percent(share_near(own, metric), 0)})")
        rows.append(row)
    head = ["seed", "the training loss jumps at step"]
    near = [
        f"jumps within {NEAR} steps of a turn of the {name} (of all steps)"
        for name in PATHS.values()
    ]
    return table([*head, *near], rows)


def shares(results: Results) -> list[str]:
    """Return what the first two components hold, as the trajectory says it."""
    rows = []
    for task, own in each(results):
        for metric, name in PATHS.items():
            said = own["meaning"][metric].split("; ")[1]
            rows.append([task, str(own["seed"]), name, said])
    return table(["training", "seed", "path of", "variance over checkpoints"], rows)


def blocks(results: Results) -> Blocks:
    return {
        "turns": turns_table(results),
        "jumps": jumps_table(results),
        "shares": shares(results),
    }


def claims(results: Results) -> dict[str, bool]:
    hits = [hit for own in results["grokking"] for hit in at_a_turn(own, "logit_components")]
    chance = [share_near(own, "logit_components") for own in results["grokking"]]
    return {
        "jumps of the training loss lie near a turning point of the logits more often than steps "
        "at random": bool(np.mean(hits) > max(chance)),
        "a grokking network has more turning points of logits than two, in every seed": all(
            len(turning_points(own, "logit_components")) > 2 for own in results["grokking"]
        ),
    }


def draw(results: Results, path: Path) -> None:
    """Draw the paths of the logits, one panel for each training, turning points marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    for place, (task, own) in enumerate(each(results), 1):
        axes = figure.add_subplot(2, 2, place)
        axes.set_title(f"{task}, seed {own['seed']}", loc="left", fontsize=9)
        axes.set_xlabel("PC1 of logits", fontsize=8)
        axes.set_ylabel("PC2", fontsize=8)
        axes.tick_params(labelsize=7)
        first, second = own["paths"]["logit_components"]
        axes.plot(first, second, ".-", color=COLOURS[0], linewidth=1, markersize=3)
        for turn in turning_points(own, "logit_components"):
            at = own["steps"].index(turn["step"])
            axes.plot(first[at], second[at], "o", color=COLOURS[1], markersize=5)
            axes.annotate(step_of(turn["step"]), (first[at], second[at]), fontsize=7)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=90, metadata={"Software": None})


STUDY = Study(
    "turning-points", measure, claims, blocks, draw, SEEDS, after=("grokking", "ngram-stages")
)
