"""Tables of docs/results.md on influence, from ``benchmarks/results/``.

``python -m benchmarks.influence_tables`` prints them as Markdown; a test compares each line with
the page. Values are per query; the table has their mean and 95 % bootstrap interval over queries.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.influence.judge.correlations import mean_over_queries

RESULTS = Path(__file__).parent / "results"
LDS, TSLOO = "influence-lds-2-core-epyc.json", "influence-tsloo-2-core-epyc.json"
ADAMW = "adamw 3e-3, clip 1, warm-up 16, cosine"
SGD = ("sgd 0.1, constant", "sgd 0.5, constant")
KEPT = ("keep 0.5", "keep 0.9")
NAMES = {
    "unrolled": "unrolled",
    "adamw-influence": "AdamW-influence",
    "path": "path",
    "ekfac": "EK-FAC",
    "bm25": "BM25",
    "gradient": "final gradient",
    "cosine": "final gradient, cosine",
    "common-tokens": "tokens in common",
    "outliers": "outliers",
    "tallies": "tallies",
    "random": "random (null)",
}
"""Method → its name in tables, in the order of the rows."""
Columns = Sequence[Mapping[str, Sequence[float]]]
"""For each column of a table: method → value of each query."""


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def lds_columns(run: str) -> Columns:
    """Return the LDS of each query by method, for both shares kept."""
    found = read(LDS)["runs"][run]["lds"]
    return [{name: own["values"] for name, own in found[kept].items()} for kept in KEPT]


def rows(columns: Columns, methods: Sequence[str]) -> Iterator[str]:
    """Yield a line of a Markdown table for each method that a column has."""
    known = [name for name in methods if any(name in column for column in columns)]
    cells = {name: [cell(column.get(name)) for column in columns] for name in known}
    means = [[float(np.nanmean(column.get(n, [np.nan]))) for n in known] for column in columns]
    for place, name in enumerate(known):
        own = [
            bold(text) if means[number][place] == max(means[number]) else text
            for number, text in enumerate(cells[name])
        ]
        yield f"| {NAMES[name]} | {' | '.join(own)} |"


def cell(values: Sequence[float] | None) -> str:
    """Return mean and interval, or a dash where nothing was measured."""
    if values is None:
        return "–"
    mean, low, high, _ = mean_over_queries(np.array(values, np.float64))
    return f"{number(mean)} ({number(low)} to {number(high)})"


def number(value: float) -> str:
    """Return two digits, with a typographic minus; no minus before 0.00."""
    text = f"{value:.2f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def bold(text: str) -> str:
    """Set the mean in bold."""
    mean, space, rest = text.partition(" ")
    return f"**{mean}**{space}{rest}"


def tsloo_columns() -> Columns:
    return [{own["method"]: own["values"] for own in read(TSLOO)["tsloo"]}]


def tables() -> dict[str, list[str]]:
    """Return the lines of each table."""
    both = [column for run in SGD for column in lds_columns(run)]
    short = ("unrolled", "ekfac", "bm25", "gradient", "random")
    return {
        "AdamW": list(rows(lds_columns(ADAMW), list(NAMES))),
        "SGD": list(rows(both, short)),
        "one step": list(rows(tsloo_columns(), list(NAMES))),
    }


def main() -> None:
    for name, lines in tables().items():
        print(f"{name}\n\n" + "\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
