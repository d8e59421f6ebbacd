"""Induction heads: when they form, in which order, and what they do.

Page docs/studies/induction.md. The bundled configuration ``induction`` (two layers of attention
alone, random tokens repeated after a random length) is captured for each seed.
Source: Olsson et al. 2022, "In-context learning and induction heads".
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import ontogeny
from analysis.trajectory.tables import Trajectory
from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.study import Blocks, Results, Study, table
from benchmarks.studies.transitions import half_cell, known, verdicts

SEEDS = (0, 1, 2)
METRICS = ("loss", "copying", "previous_token", "induction", "k_composition", "head_ablation")
LAYER_OF = {"previous_token": 0, "induction": 1}
"""Pattern → the layer in which the circuit of Olsson et al. has it."""
PATTERNS = tuple(LAYER_OF)
LAYERS, HEADS = 2, 4
EPOCHS, EVERY = 5, 40
TOKENS_PER_STEP = 32 * 63
"""Datums in a batch · tokens in a window, of the bundled configuration."""
SETTINGS = (
    *("capture.record=checkpoints", f"capture.segment_steps={EVERY}"),
    f"training.epochs={EPOCHS}",
)


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    return {"seeds": [measured(folder, seed) for seed in seeds]}


def measured(folder: Path, seed: int) -> Results:
    """Train with one seed, and measure heads and losses at all checkpoints."""
    uri = str(folder / f"induction-{seed}")
    run = ontogeny.capture(
        "induction", f"run.uri={uri}", f"run.seed={seed}", *SETTINGS, resume=True
    )
    config = ontogeny.TrajectoryConfig(metrics=METRICS, steps="all", datums=64)
    found = ontogeny.trajectory(run, config, save=True, replace=True)
    heads = {pattern: strongest(found, pattern, layer) for pattern, layer in LAYER_OF.items()}
    pair = composed(found, heads["induction"])
    asked = ontogeny.TransitionsConfig(
        metrics=("copying", *PATTERNS, "k_composition"), target="copying", states=0, record=False
    )
    changes = ontogeny.transitions(run, asked)
    copying, composition = found.series("copying"), found.series("k_composition", pair)
    before = ("previous_token", heads["previous_token"])
    induction = ("induction", heads["induction"])
    curves = {pattern: found.series(pattern, head) for pattern, head in heads.items()}
    ends = {head: found.series("head_ablation", head).iloc[-1] for head in names()}
    return {
        "seed": seed,
        "steps": copying["step"].tolist(),
        "copying": copying["value"].tolist(),
        "copying_error": copying["standard_error"].tolist(),
        "n": int(copying["n"].iloc[0]),
        "heads": heads,
        "curves": {pattern: rows["value"].tolist() for pattern, rows in curves.items()},
        "null": float(curves["induction"]["null"].iloc[0]),
        "pair": pair,
        "composition": composition["value"].tolist(),
        "composition_null": float(composition["null"].iloc[0]),
        "ablation": {head: float(row["value"]) for head, row in ends.items()},
        "ablation_error": {head: float(row["standard_error"]) for head, row in ends.items()},
        "ablation_n": int(ends[heads["induction"]]["n"]),
        "transitions": verdicts(changes.curves),
        "order": order(changes.order, before, induction),
        "composed": order(changes.order, ("k_composition", pair), induction),
    }


def names(layers: Sequence[int] = range(LAYERS)) -> list[str]:
    return [f"L{layer}H{head}" for layer in layers for head in range(HEADS)]


def strongest(found: Trajectory, pattern: str, layer: int) -> str:
    """Return the head of a layer that has most of a pattern at any checkpoint."""
    return max(names([layer]), key=lambda head: found.series(pattern, head)["value"].max())


def composed(found: Trajectory, head: str) -> str:
    """Return the pair of a head of the first layer and this head that compose most at the end."""
    pairs = [f"{first} > {head}" for first in names([0])]
    return max(pairs, key=lambda pair: found.series("k_composition", pair)["value"].iloc[-1])


def order(pairs: pd.DataFrame, one: tuple[str, str], other: tuple[str, str]) -> Results:
    """Return half step of the other curve divided by that of the one; a curve is metric, part."""
    for row in pairs.to_dict("records"):
        first = (row["metric"], row["component"])
        second = (row["other_metric"], row["other_component"])
        if (first, second) == (one, other):
            return {name: known(row[name]) for name in ("factor", "low", "high", "relation")}
        if (first, second) == (other, one):
            turned = {"before": "after", "after": "before"}.get(row["relation"], row["relation"])
            low, high = 1 / row["high"], 1 / row["low"]
            return {"factor": 1 / row["factor"], "low": low, "high": high, "relation": turned}
    return {}


# --- the page -------------------------------------------------------------------------------------


def claims(results: Results) -> dict[str, bool]:
    every = results["seeds"]
    return {
        "in every seed a head of the second layer becomes an induction head": all(
            own["curves"]["induction"][-1] > 5 * own["null"] for own in every
        ),
        "in every seed repeated tokens become easier than new ones": all(
            own["copying"][-1] + 4 * own["copying_error"][-1] < -1 for own in every
        ),
        "in no seed does a head of the first layer become a previous-token head": all(
            max(own["curves"]["previous_token"]) < 5 * own["null"] for own in every
        ),
        "in every seed the strongest K-composition is above the null, and changes first": all(
            own["composition"][-1] > 1.3 * own["composition_null"]
            and own["composed"]["relation"] == "before"
            for own in every
        ),
        "most other pairs of heads change before the induction head, too": all(
            count > total / 2 for count, total in map(others_before, every)
        ),
        "in every seed the loss without each head is higher, by an interval above 0": all(
            ablation_interval(own, head)[0] > 0 for own in every for head in names()
        ),
        "in one seed a head of the first layer costs more than the induction head": any(
            ablation_interval(own, head)[0] > ablation_interval(own, own["heads"]["induction"])[1]
            for own in every
            for head in names([0])
        ),
    }


def ablation_interval(own: Results, head: str) -> tuple[float, float]:
    """Return the 95 % interval of the loss increase without a head."""
    value, half = own["ablation"][head], 1.96 * own["ablation_error"][head]
    return value - half, value + half


def blocks(results: Results) -> Blocks:
    every = results["seeds"]
    return {
        "beside": beside_table(every),
        "heads": heads_table(every),
        "transitions": transitions_table(every),
        "order": order_table(every),
        "others": [others_sentence(every)],
        "ablation": ablation_table(every),
    }


def beside_table(every: list[Results]) -> list[str]:
    """Return what was published beside what is found here, one value for each seed."""
    half = [own["transitions"][f"induction {own['heads']['induction']}"] for own in every]
    tokens = [f"{one['half_step'] * TOKENS_PER_STEP / 1e6:.2f}" for one in half]
    largest = [f"{max(own['curves']['previous_token']):.2f}" for own in every]
    composed = [order_cells(own["composed"])[1].split()[0] for own in every]
    levels, changes = zip(*map(alike, every), strict=True)
    return table(
        ["published", f"here (n = {len(every)})"],
        [
            [
                "induction heads form suddenly, after about 2 billion tokens",
                f"{', '.join(one['verdict'] for one in half)}; half after {', '.join(tokens)} "
                "million tokens",
            ],
            [
                "previous-token heads form first, after about 1.5 billion tokens",
                f"none forms: attention of at most {', '.join(largest)}, null "
                f"{every[0]['null']:.2f}",
            ],
            [
                "Q-K composition connects them last, after about 2.2 billion tokens",
                f"K-composition of the strongest pair changes {', '.join(composed)} the induction "
                "head; so does that of most other pairs",
            ],
            [
                '"ICL ability correlates perfectly with induction head formation"',
                f"over checkpoints r = {', '.join(levels)}; of the changes between checkpoints "
                f"{', '.join(changes)}",
            ],
        ],
    )


def alike(own: Results) -> tuple[str, str]:
    """Return the correlation of the induction head's score with the gain on repeated tokens, over
    checkpoints and over the changes between them."""
    score_K, gain_K = np.array(own["curves"]["induction"]), -np.array(own["copying"])
    level = np.corrcoef(score_K, gain_K)[0, 1]
    change = np.corrcoef(np.diff(score_K), np.diff(gain_K))[0, 1]
    return f"{level:.2f}", f"{change:.2f}"


def heads_table(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        for pattern in PATTERNS:
            values = own["curves"][pattern]
            cells = [f"{x:.2f}" for x in (values[0], max(values), values[-1], own["null"])]
            name = f"{pattern.replace('_', ' ')}, {own['heads'][pattern]}"
            rows.append([str(own["seed"]), name, *cells])
        score = own["composition"]
        cells = [f"{x:.2f}" for x in (score[0], max(score), score[-1], own["composition_null"])]
        rows.append([str(own["seed"]), f"K-composition, {own['pair']}", *cells])
        end = f"{own['copying'][-1]:.2f} ± {1.96 * own['copying_error'][-1]:.2f}"
        values = (f"{own['copying'][0]:.2f}", f"{max(own['copying']):.2f}", end, "0")
        rows.append([str(own["seed"]), f"repeated less new tokens (n = {own['n']})", *values])
    head = ["seed", "measure", "untrained", "largest", "at the end", "null"]
    return table(head, rows)


def transitions_table(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        cells = [
            half_cell(own["transitions"].get(f"{pattern} {own['heads'][pattern]}"))
            for pattern in PATTERNS
        ]
        cells.append(half_cell(own["transitions"].get(f"k_composition {own['pair']}")))
        rows.append([str(own["seed"]), *cells, half_cell(own["transitions"].get("copying"))])
    head = ["seed", "attention to the token before", "induction head", "K-composition"]
    head.append("repeated less new")
    return table(head, rows)


def order_table(every: list[Results]) -> list[str]:
    rows = [
        [str(own["seed"]), *order_cells(own["order"]), *order_cells(own["composed"])]
        for own in every
    ]
    head = ["seed"]
    for name in ("attention to the token before", "K-composition"):
        head += [f"half step of the induction head / of {name}", f"{name} changes"]
    return table(head, rows)


def others_before(own: Results) -> tuple[int, int]:
    """Return how many other pairs of heads have half of their K-composition before the induction
    head has half of its score, and the number of these pairs."""
    at = {name: one["half_step"] for name, one in own["transitions"].items()}
    limit, pair = at[f"induction {own['heads']['induction']}"], f"k_composition {own['pair']}"
    others = [
        half for name, half in at.items() if name.startswith("k_composition") and name != pair
    ]
    return sum(half is not None and half < limit for half in others), len(others)


def others_sentence(every: list[Results]) -> str:
    """Return for each seed how many other pairs of heads change as early."""
    counts = ", ".join("{} of {}".format(*others_before(own)) for own in every)
    return f"Other pairs whose K-composition changes before the induction head, too: {counts}."


def order_cells(found: Results) -> list[str]:
    """Return the factor between the half steps of two curves with its interval, and the order."""
    if not found or found["factor"] is None:
        return ["not known", "–"]
    factor = f"{found['factor']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    return [factor, f"{found['relation']} the induction head"]


def ablation_table(every: list[Results]) -> list[str]:
    """Return the increase of the loss without each head, ± its 95 % interval over sequences."""
    rows = []
    for own in every:
        cells = [
            f"{own['ablation'][head]:.2f} ± {1.96 * own['ablation_error'][head]:.2f}"
            for head in names()
        ]
        rows.append([str(own["seed"]), str(own["ablation_n"]), own["heads"]["induction"], *cells])
    return table(
        ["seed", "n", "strongest induction head", *(f"without {n}" for n in names())], rows
    )


def draw(results: Results, path: Path) -> None:
    panels = [[], []]
    for own in results["seeds"]:
        first = own is results["seeds"][0]
        for colour, pattern in enumerate(PATTERNS):
            label = f"{pattern.replace('_', ' ')}, strongest head" if first else ""
            panels[0].append((own["steps"], own["curves"][pattern], colour, label))
        label = "loss on repeated less new tokens" if first else ""
        panels[1].append((own["steps"], own["copying"], 2, label))
    curves_figure(panels, path, logarithmic=False)


STUDY = Study("induction", measure, claims, blocks, draw, SEEDS)
