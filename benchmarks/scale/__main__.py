"""Run the benchmarks of scale, or write the tables and figures of docs/scale.md from their results.

python -m benchmarks.scale                # an hour; writes benchmarks/results/
python -m benchmarks.scale --quick        # minutes; tests the scripts and discards the results
python -m benchmarks.scale --predict      # writes docs/scale.md and its figures
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
    UPLOADS,
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
    UPLOADS: ["benchmarks.scale.uploads"],
}
"""File of results → module and options of the program that writes it.

Each runs in a process of its own, because each starts processes.
"""


def main() -> None:
    arguments = parse_arguments()
    if arguments.predict:
        return update_page(arguments.json)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            return measure(Path(folder), quick=True)
    return measure(arguments.json, quick=False)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="small sizes, to test the scripts")
    mode.add_argument(
        "--predict",
        action="store_true",
        help="write docs/scale.md and its figures from the results",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FOLDER", default=RESULTS, help="folder of the results"
    )
    return parser.parse_args()


def measure(folder: Path, *, quick: bool) -> None:
    """Run all benchmarks of scale and write their results to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in BENCHMARKS.items():
        command = [sys.executable, "-m", *program, "--json", str(folder / name)]
        subprocess.run([*command, *(["--quick"] if quick else [])], check=True)
    found = as_json(measure_growth(1000 if quick else 10_000))
    (folder / GROWTH).write_text(json.dumps(found | {"machine": machine()}, indent=1) + "\n")
    print(json.dumps(found["summary"], indent=1))


def update_page(folder: Path) -> None:
    """Write the figures and tables of docs/scale.md from the results in the folder."""
    costs, assumed = measured(folder), Assumed()
    draw(FIGURES, costs, assumed, read(folder / GROWTH))
    PAGE.write_text(with_tables(PAGE.read_text(), [*tables(folder), *measured_tables(folder)]))


if __name__ == "__main__":
    main()
