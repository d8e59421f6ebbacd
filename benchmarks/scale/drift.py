"""Measure how runs of one and two workers diverge: ``python -m benchmarks.scale.drift``.

Two workers add the same numbers in another order. This script trains the study's model on Python's
own language reference, once with one worker and once with two. For every segment it reports the
largest relative difference of a step's loss, and the share of outliers with the same step, slot,
unit and index.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from analysis.run.run import Run, open_run
from benchmarks.harness.report import machine
from benchmarks.scale.capture import capture_timed

BATCH = 20


@dataclass(frozen=True)
class Divergence:
    """Differences of two runs in one segment."""

    first_step: int
    loss_difference: float
    """The largest relative difference."""
    same_outliers: float
    """Share of the outliers that both runs have."""


def main() -> None:
    arguments = parse_arguments()
    segment, segments = (5, 2) if arguments.quick else (50, 8)
    with tempfile.TemporaryDirectory() as folder:
        one, two = (run_by(workers, Path(folder), segment, segments) for workers in (1, 2))
        found = [compare(one, two, number) for number in range(segments)]
    for each in found:
        print(
            f"from step {each.first_step:>4}: losses differ by {each.loss_difference:.1e}, "
            f"{each.same_outliers:.1%} of the outliers are the same"
        )
    if arguments.json:
        values = {"segments": [asdict(each) for each in found], "segment_steps": segment}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(values | {"machine": machine()}, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.drift", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few steps, to test the script")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


def run_by(workers: int, folder: Path, segment: int, segments: int) -> Run:
    """Capture a run with this number of workers, in a subfolder, and open it."""
    own = folder / str(workers)
    own.mkdir()
    return open_run(capture_timed(own, workers, BATCH, segment, segments).run.uri)


def compare(one: Run, two: Run, number: int) -> Divergence:
    """Return the differences of two runs in the segment of this number."""
    steps = range(one.segments[number].first_step, one.segments[number].end_step)
    ours, theirs = (
        run.steps()["loss"].iloc[steps.start : steps.stop].to_numpy() for run in (one, two)
    )
    keys = [outliers(run, steps) for run in (one, two)]
    same = len(np.intersect1d(*keys, assume_unique=True)) / len(keys[0])
    return Divergence(steps.start, float(np.max(np.abs(theirs / ours - 1))), same)


def outliers(run: Run, steps: range) -> np.ndarray:
    """Return one integer per outlier, unique for its step, slot and parameter."""
    found = run.shifts(steps=steps)
    offsets = dict(zip(run.layout.names, run.layout.offsets, strict=False))
    parameter = found["unit"].map(offsets).astype(np.int64) + found["index"]
    visit = found["step"].astype(np.int64) * BATCH + found["datum_ix"]
    return (visit * run.layout.size + parameter).to_numpy()


if __name__ == "__main__":
    main()
