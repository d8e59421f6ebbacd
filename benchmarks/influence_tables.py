"""Tables of docs/results.md on influence, from ``benchmarks/results/``.

``python -m benchmarks.influence_tables`` prints them as Markdown; a test compares each line with
the page. Values are per query; the table has their mean and 95 % bootstrap interval over queries.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.effects.tables import correlation_lines, removal_lines
from benchmarks.harness.markdown import NAMES, Column, rows

RESULTS = Path(__file__).parent / "results"
LDS, TSLOO = "influence-lds-2-core-epyc.json", "influence-tsloo-2-core-epyc.json"
EFFECTS = "influence-effects-2-core-epyc.json"
ADAMW = "adamw 3e-3, clip 1, warm-up 16, cosine"
SGD = ("sgd 0.1, constant", "sgd 0.5, constant")
KEPT = ("keep 0.5", "keep 0.9")


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def lds_columns(run: str) -> Sequence[Column]:
    """Return the LDS of each query by method, for both shares kept."""
    found = read(LDS)["runs"][run]["lds"]
    return [{name: own["values"] for name, own in found[kept].items()} for kept in KEPT]


def tsloo_columns() -> Sequence[Column]:
    return [{own["method"]: own["values"] for own in read(TSLOO)["tsloo"]}]


def tables() -> dict[str, list[str]]:
    """Return the lines of each table."""
    both = [column for run in SGD for column in lds_columns(run)]
    short = ("unrolled", "ekfac", "bm25", "gradient", "random")
    return {
        "AdamW": list(rows(lds_columns(ADAMW), list(NAMES))),
        "SGD": list(rows(both, short)),
        "one step": list(rows(tsloo_columns(), list(NAMES))),
        "neurons and heads": list(correlation_lines(read(EFFECTS))),
        "removal": list(removal_lines(read(EFFECTS))),
    }


def main() -> None:
    for name, lines in tables().items():
        print(f"{name}\n\n" + "\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
