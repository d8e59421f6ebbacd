"""The same way twice: ten seeds of initial weights, of data order, and of both.

Page docs/studies/seeds.md. The bundled configuration ``digits`` is captured for each seed.
Source: van der Wal et al. 2025, "PolyPythias: Stability and Outliers across Fifty Language Model
Pre-Training Runs", whose question is asked here of a small network.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import stats

import ontogeny
from analysis.transitions.runs.tables import FINAL, HALF, Comparison
from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.study import Blocks, Results, Study, percent, table
from benchmarks.studies.transitions import known

SEEDS = range(10)
FEWEST = 2
"""A spread over runs needs two."""
VARIED: dict[Literal["seed", "weights", "order"], str] = {
    "seed": "both",
    "weights": "initial weights",
    "order": "order of the data",
}
SETTINGS = ("capture.record=checkpoints", "training.evaluation_steps=40")
METRICS = ("test accuracy", "test loss", "training loss")


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    found = {}
    for vary in VARIED:
        place = f"run.uri={folder / 'digits'}"
        compared = ontogeny.seeds("digits", seeds, place, *SETTINGS, vary=vary)
        found[vary] = summary(compared)
    return found


def summary(found: Comparison) -> Results:
    """Return what the comparison of the runs of one way to vary says, as JSON."""
    stability, outliers, outcomes = found.stability, found.outliers, found.outcomes
    curves = found.curves[found.curves["metric"] == "test accuracy"]
    return {
        "stability": [
            {key: known(value) for key, value in row.items()}
            for row in stability.to_dict("records")
        ],
        "outliers": int(outliers["outlier"].sum()),
        "tested": len(outliers),
        "two_kinds": int(outcomes["two_kinds"].sum()),
        "outcomes": len(outcomes),
        "orders": orders(found),
        "parting": [
            [bool(row["same_weights"]), int(row["order_step"]), int(row["loss_step"])]
            for row in found.parting.to_dict("records")
        ],
        "accuracy": [
            [own["step"].tolist(), own["value"].tolist()] for _, own in curves.groupby("run")
        ],
    }


def orders(found: Comparison) -> dict[str, int]:
    """Return how many runs have each order of milestones."""
    counted: dict[str, int] = {}
    for _, own in found.milestones.groupby("run"):
        placed = own[own["place"] > 0].sort_values("place")
        name = ", ".join(f"{row.metric} {row.component}".strip() for row in placed.itertuples())
        counted[name] = counted.get(name, 0) + 1
    return counted


# --- the page -------------------------------------------------------------------------------------


def final(own: Results, metric: str, quantity: str) -> Results:
    (row,) = (
        row
        for row in own["stability"]
        if (row["metric"], row["quantity"], row["component"]) == (metric, quantity, "")
    )
    return row


def claims(results: Results) -> dict[str, bool]:
    return {
        "with another order alone the initial weights are equal": all(
            same for same, _, _ in results["order"]["parting"]
        ),
        "with other weights alone the order is equal": all(
            step == -1 for _, step, _ in results["weights"]["parting"]
        ),
    }


def blocks(results: Results) -> Blocks:
    return {
        "beside": beside_table(results),
        "stability": stability_table(results),
        "ratio": [ratio_sentence(results)],
        "outliers": outliers_table(results),
        "orders": orders_table(results),
    }


def beside_table(results: Results) -> list[str]:
    """Return what was published of language models beside what is found here."""
    runs = final(results["seed"], "test loss", FINAL)["runs"]
    accuracy = final(results["seed"], "test accuracy", FINAL)
    outliers, tested, kinds, outcomes = (
        sum(results[vary][what] for vary in VARIED)
        for what in ("outliers", "tested", "two_kinds", "outcomes")
    )
    common = [
        f"{max(results[vary]['orders'].values())} of {runs} ({VARIED[vary]})" for vary in VARIED
    ]
    rows = [
        [
            "45 new runs, 9 seeds for each of 5 sizes, and 5 older ones; about 7,000 checkpoints "
            "(PolyPythias)",
            f"{len(VARIED) * runs} runs, {runs} seeds for each of {len(VARIED)} ways to vary",
        ],
        [
            '"highly consistent training dynamics" (PolyPythias)',
            f"accuracy at the end {percent(accuracy['mean'])}, standard deviation "
            f"{percent(accuracy['deviation'])} with both varied",
        ],
        ["outlier runs exist (PolyPythias)", f"{outliers} of {tested} values of runs"],
        [
            "outcomes are of two kinds at some scales (Distributional Scaling Laws)",
            f"{kinds} of {outcomes} quantities",
        ],
        [
            "milestones may come in the same order in all models (a comment)",
            f"the commonest order in {', '.join(common)}",
        ],
    ]
    return table(["published", "here"], rows)


def stability_table(results: Results) -> list[str]:
    rows = []
    for vary, label in VARIED.items():
        for metric in METRICS:
            end, half = (final(results[vary], metric, what) for what in (FINAL, HALF))
            interval = f"{end['mean']:.4f} ({end['low']:.4f} to {end['high']:.4f})"
            steps = f"{np.expm1(half['mean']):.0f} (factor {np.exp(half['deviation']):.2f})"
            rows.append(
                [label, metric, str(end["runs"]), interval, f"{end['deviation']:.4f}", steps]
            )
    head = ["varied", "curve", "n", "end, mean and 95 % interval", "standard deviation over runs"]
    return table([*head, "step of half the change (standard deviation)"], rows)


def ratio_sentence(results: Results) -> str:
    """Compare the spreads of the last held-out losses, with the interval of an F test."""
    order, weights = (final(results[vary], "test loss", FINAL) for vary in ("order", "weights"))
    ratio = (order["deviation"] / weights["deviation"]) ** 2
    freedom = (order["runs"] - 1, weights["runs"] - 1)
    low, high = (ratio / stats.f.ppf(share, *freedom) for share in (0.975, 0.025))
    return (
        f"The variance of the last held-out loss over orders is **{ratio:.0f} times** that over "
        f"initial weights (95 % interval of an F test, which takes losses to be Gaussian: "
        f"{low:.0f} to {high:.0f}; n = {order['runs']} and {weights['runs']})."
    )


def outliers_table(results: Results) -> list[str]:
    rows = [
        [
            label,
            f"{results[vary]['outliers']} of {results[vary]['tested']}",
            f"{results[vary]['two_kinds']} of {results[vary]['outcomes']}",
        ]
        for vary, label in VARIED.items()
    ]
    head = ["varied", "outlying values of runs", "quantities with two kinds of outcome"]
    return table(head, rows)


def orders_table(results: Results) -> list[str]:
    rows = [
        [label, order, str(count)]
        for vary, label in VARIED.items()
        for order, count in sorted(results[vary]["orders"].items(), key=lambda pair: -pair[1])
    ]
    return table(["varied", "order of the half steps", "runs"], rows)


def draw(results: Results, path: Path) -> None:
    panels = [
        [
            (steps, values, place, label if number == 0 else "")
            for number, (steps, values) in enumerate(results[vary]["accuracy"])
        ]
        for place, (vary, label) in enumerate(VARIED.items())
    ]
    curves_figure(panels, path, logarithmic=True)


STUDY = Study("seeds", measure, claims, blocks, draw, SEEDS, fewest=FEWEST)
