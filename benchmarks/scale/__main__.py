"""Scale, measured and predicted: runs the benchmarks of scale, or draws what follows from them.

python -m benchmarks.scale                # measure, an hour; results in benchmarks/results/
python -m benchmarks.scale --quick        # minutes: does everything work? results nowhere
python -m benchmarks.scale --predict      # tables and figures of docs/scale.md from the results
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness.report import machine
from benchmarks.scale.costs import (
    DRIFT,
    GROWTH,
    JOBS,
    REPLAY,
    RESULTS,
    SHORT_JOBS,
    WORKERS,
    measured,
    read,
)
from benchmarks.scale.growth import as_json, measure_growth
from benchmarks.scale.measured import measured_tables
from benchmarks.scale.model import Assumed
from benchmarks.scale.plots import draw
from benchmarks.scale.tables import tables, with_tables

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
FIGURES = PAGE.with_suffix("")
BENCHMARKS = {
    WORKERS: ["benchmarks.scale.capture"],
    JOBS: ["benchmarks.scale.jobs"],
    SHORT_JOBS: ["benchmarks.scale.jobs", "--shards=32"],
    REPLAY: ["benchmarks.scale.replay"],
    DRIFT: ["benchmarks.scale.drift"],
}
"""The name of results → what makes them: a program of its own, which starts processes."""


def main() -> None:
    arguments = parse_arguments()
    if arguments.predict:
        return predicted(arguments.json)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            return measure(Path(folder), quick=True)
    return measure(arguments.json, quick=False)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--quick", action="store_true", help="does everything work?")
    way.add_argument("--predict", action="store_true", help="tables and figures from the results")
    parser.add_argument("--json", type=Path, metavar="FOLDER", default=RESULTS)
    return parser.parse_args()


def measure(folder: Path, *, quick: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in BENCHMARKS.items():
        command = [sys.executable, "-m", *program, "--json", str(folder / name)]
        subprocess.run([*command, *(["--quick"] if quick else [])], check=True)
    found = as_json(measure_growth(1000 if quick else 10_000))
    told = json.dumps(found | {"machine": machine()}, indent=1)
    (folder / GROWTH).write_text(told + "\n")
    print(json.dumps(found["summary"], indent=1))


def predicted(folder: Path) -> None:
    costs, assumed = measured(folder), Assumed()
    draw(FIGURES, costs, assumed, read(folder / GROWTH))
    PAGE.write_text(with_tables(PAGE.read_text(), [*tables(folder), *measured_tables(folder)]))


if __name__ == "__main__":
    main()
