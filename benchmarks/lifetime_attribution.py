"""Measure how much attribution by lifetime shifts differs from attribution by shifts of one step.

``python -m benchmarks.lifetime_attribution`` trains the study's model for one epoch of the language
reference that comes with Python, under plain SGD (where nothing may differ), momentum and AdamW.
It prints the share of recorded outliers that are also outliers by lifetime shift, the mean overlap
(Jaccard) of the five highest-scored tokens of each neuron, by outliers and by tallies, what the law
Lifetime misses, and seconds of capture and of the pass for lifetime shifts.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig, Evidence
from analysis.lifetime.record import record_lifetimes
from analysis.lifetime.run import law_of_units, lifetime_run
from analysis.measures.selection import SelectionConfig
from analysis.run.run import Run
from benchmarks.harness.report import machine
from benchmarks.lifetime import OPTIMIZERS, train
from cluster.local.threads import run_job

CHOSEN = tuple(name for name in OPTIMIZERS if name.startswith(("SGD", "momentum", "AdamW")))
FIVE = SelectionConfig(most=5, max_q=1)
ROW = ["step", "slot", "unit", "index"]


@dataclass(frozen=True)
class Line:
    """Results under one optimizer."""

    optimizer: str
    steps: int
    same_outliers: float
    """Share of the recorded outliers that are outliers by lifetime shift."""
    same_tokens_by_outliers: float
    """Mean over neurons: tokens named by both / tokens named by either."""
    same_tokens_by_tallies: float
    neurons: int
    """Neurons with tokens by outliers, of both kinds."""
    missed: float
    """‖Σ lifetime shifts + decay − change‖ / ‖change‖, all units."""
    capture_seconds: float
    lifetime_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    lines = []
    for name in CHOSEN:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(name, folder, arguments.epochs))
        print(lines[-1], flush=True)
    if arguments.json:
        found = {"lines": [asdict(line) for line in lines], "machine": machine()}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(name: str, folder: str, epochs: int) -> Line:
    start = time.perf_counter()
    run = train(folder, name, epochs, capture={})
    middle = time.perf_counter()
    record_lifetimes(run)
    end = time.perf_counter()
    by_rows, neurons = same_tokens(run, "target")
    units = law_of_units(run)
    missed = np.linalg.norm(units["missed"] * units["change"]) / np.linalg.norm(units["change"])
    return Line(
        optimizer=name,
        steps=run.steps_done,
        same_outliers=same_outliers(run),
        same_tokens_by_outliers=by_rows,
        same_tokens_by_tallies=same_tokens(run, "update-norm")[0],
        neurons=neurons,
        missed=float(missed),
        capture_seconds=middle - start,
        lifetime_seconds=end - middle,
    )


def same_outliers(run: Run) -> float:
    """Return the share of outliers in both records, segment by segment."""
    same = total = 0
    pairs = zip(run.shards("outliers"), lifetime_run(run).shards("outliers"), strict=True)
    for one, other in pairs:
        keys = [shard.table(ROW).to_pandas().astype({"unit": str}) for shard in (one, other)]
        same += len(pd.merge(*keys, on=ROW))
        total += len(keys[0])
    return same / total


def same_tokens(run: Run, evidence: Evidence) -> tuple[float, int]:
    """Return the mean overlap of the tokens of neurons, and the number of neurons."""
    sets = []
    for lifetime in (False, True):
        config = AttributionConfig.recommended(
            tallies=False, evidence=evidence, lifetime=lifetime, selection=FIVE
        )
        tokens = attribute(run, run_job, config).tokens
        sets.append(tokens.groupby(["unit", "group"])["token_id"].agg(set))
    one, other = sets
    known = one.index.intersection(other.index)
    overlaps = [len(one[at] & other[at]) / len(one[at] | other[at]) for at in known]
    return float(np.mean(overlaps)), len(known)


if __name__ == "__main__":
    main()
