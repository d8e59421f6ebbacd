"""How far runs by one worker and by two come apart: ``python -m benchmarks.scale.drift``.

Two workers add the same numbers up in another order. The study's model and training on text that
Python carries, captured by one worker and by two; for every segment the largest difference of a
step's loss, as a share of it, and how many of the outliers are the same (step, slot, unit, index).
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from analysis.run.run import Run, open_run
from benchmarks.harness.report import machine
from benchmarks.scale.capture import captured

BATCH = 20


@dataclass(frozen=True)
class Apart:
    """One segment, taken twice."""

    first_step: int
    loss_difference: float
    """The largest, relative."""
    same_outliers: float
    """The share that both have."""


def main() -> None:
    arguments = parse_arguments()
    segment, segments = (5, 2) if arguments.quick else (50, 8)
    with tempfile.TemporaryDirectory() as folder:
        one, two = (run_by(workers, Path(folder), segment, segments) for workers in (1, 2))
        found = [apart(one, two, number) for number in range(segments)]
    for each in found:
        print(
            f"from step {each.first_step:>4}: losses differ by {each.loss_difference:.1e}, "
            f"{each.same_outliers:.1%} of the outliers are the same"
        )
    if arguments.json:
        told = {"segments": [asdict(each) for each in found], "segment_steps": segment}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(told | {"machine": machine()}, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.drift", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="does everything work?")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    return parser.parse_args()


def run_by(workers: int, folder: Path, segment: int, segments: int) -> Run:
    """In a folder of its own."""
    own = folder / str(workers)
    own.mkdir()
    return open_run(captured(own, workers, BATCH, segment, segments).run.uri)


def apart(one: Run, two: Run, number: int) -> Apart:
    steps = range(one.segments[number].first_step, one.segments[number].end_step)
    ours, theirs = (
        run.steps()["loss"].iloc[steps.start : steps.stop].to_numpy() for run in (one, two)
    )
    keys = [outliers(run, steps) for run in (one, two)]
    same = len(np.intersect1d(*keys, assume_unique=True)) / len(keys[0])
    return Apart(steps.start, float(np.max(np.abs(theirs / ours - 1))), same)


def outliers(run: Run, steps: range) -> np.ndarray:
    """Step, slot and parameter of each, in one number."""
    found = run.shifts(steps=steps)
    offsets = dict(zip(run.layout.names, run.layout.offsets, strict=False))
    place = found["unit"].map(offsets).astype(np.int64) + found["index"]
    visit = found["step"].astype(np.int64) * BATCH + found["datum_ix"]
    return (visit * run.layout.size + place).to_numpy()


if __name__ == "__main__":
    main()
