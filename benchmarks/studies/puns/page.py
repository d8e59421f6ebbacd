"""Claims, tables and plot of the page on puns, from the stored results.

Shapes: K checkpoint.
"""

from pathlib import Path

import numpy as np

from analysis.measures.shares import wilson
from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.puns.text import IDIOMS
from benchmarks.studies.study import Blocks, Results, percent, step_of, table
from benchmarks.studies.transitions import half_cell

COMPLETION = ("completion_accuracy", "completion_top5", "completion_loss")
CURVES = {
    "held": "puns that were never written",
    "shots": "the same, behind two other puns",
    "written": "puns that it read",
}
PROBES = {"trades": "which half of the trades, before the punchline", "puns": "pun or no pun"}
STATES = ("the embedding", "layer 0", "layer 1")
"""States that the lens reads, in the order of ``punchline_lens``."""
CROSSINGS = (0.7, 0.9)
BY_TRADE = 1 / len(IDIOMS)
"""Share of puns that a random word of the trade completes."""


def last(own: Results, name: str, metric: str = COMPLETION[0]) -> float:
    return own["curves"][name][metric][-1]


def crossing(own: Results, probe: str, share: float) -> int | None:
    """Return the first step from which on the best layer's probe stays at such an accuracy."""
    best_K = np.max([one["value"] for one in own["probe"][probe].values()], axis=0)
    stays = np.flip(np.minimum.accumulate(np.flip(best_K))) >= share
    return own["steps"][int(np.argmax(stays))] if stays.any() else None


def interval(own: Results) -> tuple[float, float]:
    """Return the 95 % interval of the share of held-out puns completed at the end."""
    n = own["n"]["held"]
    low, high = wilson(last(own, "held") * n, n)
    return float(low), float(high)


def helped(own: Results) -> np.ndarray:
    """Return by how much two examples raise the share of held-out puns completed, [K]."""
    held, shots = (np.array(own["curves"][name][COMPLETION[0]]) for name in ("held", "shots"))
    return shots - held


def claims(results: Results) -> dict[str, bool]:
    every = results["seeds"]
    return {
        "puns that it read are completed at the end": all(
            last(own, "written") > 0.9 for own in every
        ),
        "most puns that were never written are, too, far above a guess by trade or idiom": all(
            interval(own)[0] > max(own["guess"], BY_TRADE) + 0.2 for own in every
        ),
        "no probe tells a pun from the same set-up with another word": all(
            crossing(own, "puns", CROSSINGS[0]) is None for own in every
        ),
        "the punchline is read best after the last layer": all(
            own["lens"]["layer 2"]["value"][-1]
            < min(own["lens"][name]["value"][-1] for name in ("layer 0", "layer 1"))
            for own in every
        ),
        "from the middle to the end of training it hardly moves to the first layer": all(
            curve[len(curve) // 2] - curve[-1] < 0.5
            for own in every
            for curve in [own["lens"]["layer 1"]["value"]]
        ),
        "examples in context help at no step by more than 2 of 16 puns": all(
            helped(own).max() * own["n"]["held"] < 2.5 for own in every
        ),
        "examples in context help at fewer steps than they hurt": all(
            (helped(own) > 0).sum() < (helped(own) < 0).sum() for own in every
        ),
        "the trade is known no later than held-out puns are completed": all(
            (crossing(own, "trades", CROSSINGS[1]) or 10**9)
            <= own["transitions"]["completion_accuracy"]["half_step"]
            for own in every
        ),
    }


def blocks(results: Results) -> Blocks:
    every = results["seeds"]
    return {
        "course": course(every),
        "probe": probe_table(every),
        "lens": lens_table(every),
        "transitions": transitions_table(every),
        "beside": beside(every),
    }


def course(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        for at, step in enumerate(own["steps"]):
            cells = [
                f"{percent(own['curves'][name][COMPLETION[0]][at], 0)}, "
                f"{percent(own['curves'][name]['completion_top5'][at], 0)}"
                for name in CURVES
            ]
            rows.append([str(own["seed"]), step_of(step), *cells, f"{own['loss'][at]:.2f}"])
    n = every[0]["n"]
    head = [f"{label} (n = {n[name]})" for name, label in CURVES.items()]
    return table(["seed", "step", *head, "held-out loss"], rows)


def probe_table(every: list[Results]) -> list[str]:
    rows = []
    for name, label in PROBES.items():
        for own in every:
            crossed = [crossing(own, name, share) for share in CROSSINGS]
            steps = ["never" if step is None else step_of(step) for step in crossed]
            ends = [
                f"{percent(one['value'][-1], 0)} ({percent(one['null'][-1], 0)})"
                for one in own["probe"][name].values()
            ]
            about = f"{label} (n = {own['n'][name]})"
            rows.append([about, str(own["seed"]), *steps, ", ".join(ends)])
    heads = [f"{percent(share, 0)} from step" for share in CROSSINGS]
    end = "at the end: embedding, layer 0, layer 1 (labels dealt at random)"
    return table(["probe", "seed", *heads, end], rows)


def lens_table(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        for name, one in zip(STATES, own["lens"].values(), strict=True):
            shown = [one["value"][at] for at in (0, len(one["value"]) // 2, -1)]
            rows.append(
                [str(own["seed"]), name, *(f"{v:.2f}" for v in shown), f"{one['null'][-1]:.2f}"]
            )
    steps = every[0]["steps"]
    middle = [f"step {step_of(steps[at])}" for at in (0, len(steps) // 2, -1)]
    return table(["seed", "read after", *middle, "another pun's word, at the end"], rows)


def transitions_table(every: list[Results]) -> list[str]:
    names = {
        "completion_accuracy": "held-out puns completed",
        "completion_loss": "loss of their punchlines",
        "loss": "held-out loss",
        "copying": "copying of random tokens",
    }
    rows = [
        [label, *(half_cell(own["transitions"].get(name)) for own in every)]
        for name, label in names.items()
    ]
    return table(["curve", *(f"seed {own['seed']}" for own in every)], rows)


def beside(every: list[Results]) -> list[str]:
    """Return the exercise's questions, and what is found here."""
    n = every[0]["n"]["held"]
    halves = [own["transitions"].get("completion_accuracy") or {} for own in every]
    kinds = ", ".join(str(one.get("verdict", "not measured")) for one in halves)
    ends = ", ".join(
        f"{percent(last(own, 'held'), 0)} ({100 * low:.0f} to {100 * high:.0f})"
        for own in every
        for low, high in (interval(own),)
    )
    guess = ", ".join(percent(own["guess"], 0) for own in every)
    crossed = [crossing(own, "trades", CROSSINGS[1]) for own in every]
    steps = ", ".join("never" if step is None else step_of(step) for step in crossed)
    best = ", ".join(percent(helped(own).max(), 0) for own in every)
    rows = [
        [
            "can it complete puns?",
            f"{ends} of {n} puns never written; by the trade alone {percent(BY_TRADE, 0)}, by the "
            f"idiom alone {guess}",
        ],
        [
            "when is the probe above 90 %?",
            f"that of the trade from step {steps}; that of the pun never",
        ],
        ["does the punchline move to earlier layers?", f"hardly: {lenses(every)}"],
        ["sudden or gradual?", kinds],
        ["does it come with other abilities?", together(every)],
        ["do examples in context help?", f"at the step where they help most, by {best}"],
    ]
    return table(["the exercise asks", f"here (n = {len(every)} seeds)"], rows)


def lenses(every: list[Results]) -> str:
    """Return the punchline's loss after the first and the last layer, from the middle to the end
    of training."""
    parts = []
    for name, number in ((STATES[1], 1), (STATES[-1], len(STATES) - 1)):
        curves = [list(own["lens"].values())[number]["value"] for own in every]
        told = [f"{one[len(one) // 2]:.2f} → {one[-1]:.2f}" for one in curves]
        parts.append(f"loss after {name} {', '.join(told)}")
    return "; ".join(parts)


def together(every: list[Results]) -> str:
    """Return the half steps of the puns beside those of the loss and of copying."""
    names = {
        "completion_accuracy": "puns half at step",
        "loss": "held-out loss",
        "copying": "copying of random tokens",
    }
    parts = []
    for name, label in names.items():
        halves = [(own["transitions"].get(name) or {}).get("half_step") for own in every]
        told = ["unchanged" if step is None else step_of(step) for step in halves]
        parts.append(f"{label} {', '.join(told)}")
    return "; ".join(parts)


def draw(results: Results, path: Path) -> None:
    completed, losses = [], []
    for own in results["seeds"]:
        first = own is results["seeds"][0]
        for colour, (name, label) in enumerate(CURVES.items()):
            values = own["curves"][name][COMPLETION[0]]
            completed.append((own["steps"], values, colour, label if first else ""))
        losses.append((own["steps"], own["loss"], 3, "held-out loss" if first else ""))
    curves_figure([completed, losses], path, logarithmic=True)
