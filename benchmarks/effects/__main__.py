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
  heads and for the N neurons of largest effect; see ``benchmarks.effects.removals``. The
  last weights of each retraining are kept in the run.

``--methods`` adds methods of ``ontogeny influence`` to the LDS. Results are kept in
``--work FOLDER``, so that a benchmark that was stopped goes on.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.influence.baselines.methods import BASELINES, RANDOM, random_scores
from analysis.influence.judge.scores import method_scores
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.run.run import Run, open_run
from benchmarks.effects.evidence import evidence_scores
from benchmarks.effects.judge import CHANGE, CHANGES, Bench, stored
from benchmarks.effects.removals import Removals
from benchmarks.effects.tables import bound_line, correlation_lines, removal_lines
from benchmarks.effects.values import Effects
from benchmarks.harness.report import machine

RECORD = ("bm25", "common-tokens", "tallies", "outliers")
"""Methods of ``ontogeny influence`` that need no replay."""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    run = open_run(arguments.run)
    queries = queries_of(run, arguments.work)[: arguments.most]
    scores = {name: method_scores(run, queries, name).total_QD for name in RECORD}
    scores |= evidence_scores(run, queries) | {RANDOM: random_scores(run, queries)}
    for name in arguments.methods:
        scores[name] = stored(
            arguments.work,
            f"{name}-{len(queries)}",
            lambda own=name: {"total": method_scores(run, queries, own).total_QD},
        )["total"]
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
    if arguments.removed:
        for own in Removals(bench, arguments.removed, arguments.controls).judged():
            found["removal"] = own
            write(arguments.json, found)
    for line in lines(found):
        print(line)


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of what was measured."""
    if found["keep"]:
        yield from correlation_lines(found)
    if found["keep"] and "reproducibility" in found:
        yield bound_line(found)
    if "removal" in found:
        yield from removal_lines(found)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effects", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--most", type=int, default=1000, metavar="N", help="queries")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.9, 0.5], metavar="SHARE")
    parser.add_argument("--subsets", type=int, default=24, metavar="N", help="for each share")
    parser.add_argument("--methods", nargs="*", default=[], choices=sorted(BASELINES))
    parser.add_argument("--removed", type=int, default=1000, metavar="N", help="neurons; 0: none")
    parser.add_argument("--controls", type=int, default=16, metavar="N", help="random removals")
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


if __name__ == "__main__":
    main()
