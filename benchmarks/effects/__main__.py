"""Judge what is said to move neurons and heads by retraining: ``python -m benchmarks.effects RUN``.

Queries are the effects of all attention heads and of all neurons of the MLPs (columns of
``linear2``), these in random order; ``--most N`` takes the first N. RUN is one of AdamW with
outliers, tallies and held-out text. Tests:

- LDS on random subsets for each share kept, with the retrainings of ``ontogeny lds``;
- what limits it. *Last weights known*: the LDS of the query's gradient times the true change of the
  weights. Its distance to 1 is due to the query's curvature, and the rest to training.
  *Reproducibility*: the spread of each effect over trainings from initial weights that differ by
  one millionth. √(1 − its variance / the variance over subsets) bounds the LDS of any method.
- removal (``--removed N``): training without the 5 % of the datums that a method names, for all
  heads and for those N neurons of the first 32 that have the largest effects.

Results are kept in ``--work FOLDER``, so that a benchmark that was stopped goes on.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.influence.baselines.methods import RANDOM, random_scores
from analysis.influence.judge.correlations import mean_over_queries
from analysis.influence.judge.scores import method_scores
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.run.run import Run, open_run
from benchmarks.effects.evidence import evidence_scores
from benchmarks.effects.judge import CHANGE, CHANGES, REMOVED_BY, UNROLLED, Bench
from benchmarks.effects.values import Effects
from benchmarks.harness.report import machine

RECORD = ("bm25", "common-tokens", "tallies", "outliers")
"""Methods of ``ontogeny influence`` that need no replay."""
LEVELS = ("neuron", "head")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    run = open_run(arguments.run)
    queries = queries_of(run, arguments.work)[: arguments.most]
    scores = {name: method_scores(run, queries, name).total_QD for name in RECORD}
    scores |= evidence_scores(run, queries) | {RANDOM: random_scores(run, queries)}
    bench = Bench(Effects(run, queries), scores, arguments.work)
    found: dict[str, Any] = {"machine": machine(), "steps": run.steps_done}
    found |= {"datums": run.num_datums, "queries": bench.described(), "keep": {}}
    for keep in arguments.keep:
        found["keep"][f"{keep:g}"] = bench.judged(keep, arguments.subsets)
        write(arguments.json, found)
    if not arguments.no_changes:
        found["reproducibility"] = {"change": CHANGE, "trainings": CHANGES}
        found["reproducibility"]["spread"] = bench.reproducibility()
    write(arguments.json, found)
    for line in lds_lines(found):
        print(line, flush=True)
    for rows in bench.removals(arguments.removed) if arguments.removed else ():
        found["removal"] = rows
        write(arguments.json, found)
    for line in removal_lines(found):
        print(line)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effects", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--most", type=int, default=1000, metavar="N", help="queries")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.5], metavar="SHARE")
    parser.add_argument("--subsets", type=int, default=24, metavar="N", help="for each share")
    parser.add_argument("--removed", type=int, default=8, metavar="N", help="neurons; 0: none")
    parser.add_argument("--no-changes", action="store_true", help="leave out reproducibility")
    parser.add_argument("--json", type=Path, metavar="PATH")
    return parser.parse_args()


def write(path: Path | None, found: Mapping[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")


def queries_of(run: Run, work: Path) -> list[Query]:
    """Return the queries: all heads, then all neurons in random order."""
    kept, model = work / "queries.json", run.config.model
    if not kept.exists():
        layers, units = range(model.layers), "layers.{}.linear2.weight"
        heads = [f"head:layers.{n}.self_attn:{h}" for n in layers for h in range(model.heads)]
        neurons = [f"neuron:{units.format(n)}:{i}" for n in layers for i in range(model.hidden)]
        order = np.random.default_rng(0).permutation(len(neurons))
        built = build_queries(run, [*heads, *(neurons[place] for place in order)])
        work.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([dict(query.description) for query in built]))
    return build_queries(run, json.loads(kept.read_text()))


# --- tables ---------------------------------------------------------------------------------------


def lds_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row of the table for each method: mean LDS with its interval, by level and share."""
    level_Q = np.array([own["level"] for own in found["queries"]])
    shares = list(found["keep"].values())

    def line(name: str, values: list[np.ndarray]) -> str:
        cells = [shown(own_Q[level_Q == level]) for level in LEVELS for own_Q in values]
        return f"| {name} | {' | '.join(cells)} |"

    for method in shares[0]["lds"]:
        yield line(method, [np.array(own["lds"][method]) for own in shares])
    if "reproducibility" in found:
        noise_Q = np.array(found["reproducibility"]["spread"])
        spreads = [np.array(own["spread"]) for own in shares]
        kept = [np.sqrt(np.clip(1 - (noise_Q / own) ** 2, 0, 1)) for own in spreads]
        yield line("bound by reproducibility", kept)


def removal_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a row for each method: effect left, over neurons and over heads."""
    levels, rows = [own["level"] for own in found["queries"]], found.get("removal", [])
    for method in (UNROLLED, *REMOVED_BY, RANDOM):
        cells = []
        for level in LEVELS:
            own = [row["left"] for row in rows if levels[row["query"]] == level]
            cells.append(shown(np.array([left.get(method, np.nan) for left in own])))
        yield f"| {method} | {' | '.join(cells)} |"


def shown(value_Q: np.ndarray) -> str:
    mean, low, high, count = mean_over_queries(value_Q)
    return f"{mean:.2f} ({low:.2f} to {high:.2f}), n = {count}" if count else "–"


if __name__ == "__main__":
    main()
