"""Tables and figure of docs/studies/mnist-spectrum.md from the results of this package.

``python -m benchmarks.mnist_spectrum.tables RESULTS [--figure FILE]`` prints Markdown.
Intervals are standard deviations over seeds; each line of the results is one training.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.spectra.nulls import random_edge
from benchmarks.mnist_spectrum.conditions import ADAM, ENTRIES, OPTIMIZERS, SGD, Condition
from benchmarks.mnist_spectrum.drawing import draw

Line = dict[str, Any]
STEPS = 2000
AXES = {
    "noise": ("uniform noise in every pixel", "share of noise"),
    "moved_pixels": ("pixels permuted within each image", "share of pixels"),
    "moved_rows": ("rows permuted within each image", "share of rows"),
    "moved_columns": ("columns permuted within each image", "share of columns"),
    "exchanged_rows": ("rows permuted among images", "share of rows"),
    "exchanged_columns": ("columns permuted among images", "share of columns"),
    "shuffled_labels": ("labels permuted among images", "share of labels"),
    "classes": ("classes", "digits used"),
    "pixels": ("image averaged down", "pixels a side"),
    "initial_scale": ("initial weights", "factor"),
    "rate_scale": ("learning rate", "factor"),
    "dimensions": ("projected model", "dimensions"),
}
"""Field of ``Condition`` → what fades, and the unit of its axis."""


def read(path: Path) -> list[tuple[Condition, Line]]:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [(Condition(**line["condition"]), line) for line in lines]


def mean(values: Iterable[float], digits: int = 0) -> str:
    """Return mean ± standard deviation."""
    found = np.array(list(values))
    deviation = f" ± {found.std(ddof=1):.1f}" if len(found) > 1 else ""
    return f"{found.mean():.{digits}f}{deviation}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def numbers(lines: list[Line], get: Callable[[Line], dict]) -> tuple[str, str, str]:
    found = [get(line) for line in lines]
    over = mean(one["over_cutoff"] for one in found)
    ranks = (
        mean((one[name] for one in found), 1) for name in ("stable_rank", "participation_ratio")
    )
    return (over, *ranks)  # pyright: ignore[reportReturnType]


# --- the tables -----------------------------------------------------------------------------------


def optimizers_table(results: list[tuple[Condition, Line]]) -> list[str]:
    """Numbers by optimizer: exact, sampled, at other cutoffs; and how well the network learned."""
    head = ("optimizer", "n", "over 10 %", "sampled, 400 steps", "over 15 %", "over 5 %")
    lines = [row(*head, "random edge", "residual", "its share", "accuracy")]
    lines.append("|---" * (len(head) + 4) + "|")
    for optimizer in OPTIMIZERS:
        own = chosen(results, lambda c, name=optimizer: c == Condition(name, c.seed))
        grads = [line["gradients"] for line in own]
        samples = [one["samples"] for one in grads]
        lines.append(
            row(
                optimizer,
                str(len(own)),
                mean(one["as recorded"]["over_cutoff"] for one in grads),
                f"{mean((v for s in samples for v in s['over_cutoff']), 1)}",
                mean(one["cutoffs"]["0.15"] for one in grads),
                mean(one["cutoffs"]["0.05"] for one in grads),
                f"{np.mean([edge_share(one['as recorded']) for one in grads]):.1%}",
                f"{np.mean([s['residual_norm'] for s in samples]):.2f}",
                f"{np.mean([s['residual'] for s in samples]):.0%}",
                f"{np.mean([line['accuracy'] for line in own]):.1%}",
            )
        )
    return lines


def edge_share(found: dict) -> float:
    """Return the random edge (Marchenko and Pastur 1967) as a share of the largest value."""
    return random_edge(found["stable_rank"], ENTRIES, STEPS)


def treatments_table(results: list[tuple[Condition, Line]]) -> list[str]:
    """Numbers of each treatment, matrix and null."""
    lines = [row("matrix", "optimizer", "n", "over 10 %", "stable rank", "participation ratio")]
    lines.append("|---" * 6 + "|")
    keys = ("as recorded", "mean subtracted", "first 200 steps left out", "unit length")
    for optimizer in OPTIMIZERS:
        own = chosen(results, lambda c, name=optimizer: c == Condition(name, c.seed))
        for key in keys:
            cells = numbers(own, lambda line, key=key: line["gradients"][key])
            lines.append(row(f"gradients, {key}", optimizer, str(len(own)), *cells))
        for key in ("updates", "weights"):
            cells = numbers(own, lambda line, key=key: line[key])
            lines.append(row(key, optimizer, str(len(own)), *cells))
    for optimizer in (SGD, ADAM):
        same = chosen(results, lambda c, o=optimizer: c == Condition(o, c.seed, shuffled_labels=1))
        cells = numbers(same, lambda line: line["gradients"]["as recorded"])
        lines.append(row("null: labels permuted", optimizer, str(len(same)), *cells))
    for null in ("norms kept", "gaussian"):
        own = chosen(results, lambda c: c == Condition(SGD, c.seed))
        cells = numbers(own, lambda line, null=null: line["gradients"][null][0])
        lines.append(row(f"null: {null}", SGD, str(len(own)), *cells))
    return lines


def fading(results: list[tuple[Condition, Line]]) -> dict[str, dict[float, list[Line]]]:
    """Return the trainings by what fades and by its level; the untouched one is part of each."""
    found: dict[str, dict[float, list[Line]]] = {axis: defaultdict(list) for axis in AXES}
    for condition, line in results:
        plain = Condition(condition.optimizer, condition.seed)
        for axis in AXES:
            level = getattr(condition, axis)
            if condition.optimizer == SGD and condition == plain_with(plain, axis, level):
                found[axis][level].append(line)
    return found


def plain_with(plain: Condition, axis: str, level: Any) -> Condition:
    return replace(plain, **{axis: level})


def fading_table(results: list[tuple[Condition, Line]]) -> list[str]:
    head = ("what fades", "level", "n", "over 10 %", "at unit length", "stable rank", "accuracy")
    lines = [row(*head), "|---" * len(head) + "|"]
    for axis, levels in fading(results).items():
        for level, own in sorted(levels.items()):
            grads = [line["gradients"] for line in own]
            lines.append(
                row(
                    AXES[axis][0],
                    f"{level:g}",
                    str(len(own)),
                    mean(one["as recorded"]["over_cutoff"] for one in grads),
                    mean(one["unit length"]["over_cutoff"] for one in grads),
                    mean((one["as recorded"]["stable_rank"] for one in grads), 1),
                    f"{np.mean([line['accuracy'] for line in own]):.0%}",
                )
            )
    return lines


def chosen(
    results: list[tuple[Condition, Line]], wanted: Callable[[Condition], bool]
) -> list[Line]:
    return [line for condition, line in results if wanted(condition)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="file of results, a line each")
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    arguments = parser.parse_args()
    results = read(arguments.results)
    for table in (optimizers_table, treatments_table, fading_table):
        print("\n".join(table(results)), end="\n\n")
    if arguments.figure:
        panels = {AXES[axis]: levels for axis, levels in fading(results).items()}
        draw(panels, arguments.figure)


if __name__ == "__main__":
    main()
