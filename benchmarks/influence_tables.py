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
EFFECTS = "influence-effects-2-core-epyc.json"
ADAMW = "adamw 3e-3, clip 1, warm-up 16, cosine"
SGD = ("sgd 0.1, constant", "sgd 0.5, constant")
KEPT = ("keep 0.5", "keep 0.9")
BOUND = "last weights known, query linear"
"""A row of ``benchmarks.effects`` that is no method: it uses the retrained weights."""
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
"""Columns of a table; each is a mapping from method to the value of each query."""


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def lds_columns(run: str) -> Columns:
    """Return the LDS of each query by method, for both shares kept."""
    found = read(LDS)["runs"][run]["lds"]
    return [{name: own["values"] for name, own in found[kept].items()} for kept in KEPT]


def rows(columns: Columns, methods: Sequence[str]) -> Iterator[str]:
    """Yield a line of a Markdown table for each method that a column has."""
    known = [name for name in methods if any(name in column for column in columns)]
    best = [max(known, key=lambda name: mean_of(column.get(name))) for column in columns]
    for name in known:
        cells = [cell(column.get(name)) for column in columns]
        own = [bold(text) if name == best[n] else text for n, text in enumerate(cells)]
        yield f"| {NAMES.get(name, name)} | {' | '.join(own)} |"


def mean_of(values: Sequence[float] | None) -> float:
    """Return the mean over queries with a value; −∞ where nothing was measured."""
    mean = -np.inf if values is None else mean_over_queries(np.array(values, np.float64))[0]
    return mean if np.isfinite(mean) else -np.inf


def by_mean(column: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the methods of a column, best first; random last."""
    best = sorted(column, key=lambda name: -mean_of(column[name]))
    return [*(name for name in best if name != "random"), "random"]


def cell(values: Sequence[float] | None) -> str:
    """Return mean and interval, or a dash where nothing was measured."""
    if values is None or not np.isfinite(np.array(values, np.float64)).any():
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


def effect_columns() -> Columns:
    """Return the LDS of the effects of neurons, and of heads, for each share kept."""
    found = read(EFFECTS)
    levels = np.array([query["level"] for query in found["queries"]])
    return [
        {name: np.array(own, float)[levels == level].tolist() for name, own in kept["lds"].items()}
        for level in ("neuron", "head")
        for kept in found["keep"].values()
    ]


def without_bound(column: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    return {name: own for name, own in column.items() if name != BOUND}


def bound_row(columns: Columns) -> str:
    """Return the row of the query's gradient times the true change of the weights."""
    return f"| *{BOUND}* | {' | '.join(cell(column[BOUND]) for column in columns)} |"


def tables() -> dict[str, list[str]]:
    """Return the lines of each table."""
    both = [column for run in SGD for column in lds_columns(run)]
    effects = [without_bound(column) for column in effect_columns()]
    short = ("unrolled", "ekfac", "bm25", "gradient", "random")
    return {
        "AdamW": list(rows(lds_columns(ADAMW), list(NAMES))),
        "SGD": list(rows(both, short)),
        "one step": list(rows(tsloo_columns(), list(NAMES))),
        "neurons and heads": [*rows(effects, by_mean(effects[0])), bound_row(effect_columns())],
    }


def main() -> None:
    for name, lines in tables().items():
        print(f"{name}\n\n" + "\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
