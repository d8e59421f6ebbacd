"""Run studies of training: ``python -m benchmarks.studies [NAME …]``, or ``make studies``.

Each study trains small models below ``--runs``, measures them, checks what its page in
docs/studies/ says, and prints the figures. ``--seeds 0`` trains one seed only, to see that a study
works; its claims are then those of that seed. With ``--write`` the results go to
benchmarks/results/studies/ and figures and plot to the page. ``--again`` makes the pages from the
stored results and trains nothing. The command ends with 1 if a claim does not hold. Studies run
side by side in two processes with one thread each: other numbers of threads round differently, and
train other networks.
``mnist-spectrum`` needs the folder in ``ONTOGENY_MNIST`` and is left out without it;
``turning-points`` takes the runs of ``grokking`` and ``ngram-stages``, after them. With ``--seeds``
both run only if they are named.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.mnist_spectrum import FOLDER as MNIST
from benchmarks.studies.pages import filled
from benchmarks.studies.side_by_side import each_measured, study_of
from benchmarks.studies.study import Results, Study

NAMES = ("grokking", "maze", "ngram-stages", "induction", "pun", "seeds")
"""Studies that train what they measure, the longest first."""
WITH_DATA = ("mnist-spectrum", "turning-points")
"""Studies that need files, or the runs of other studies."""
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "studies"
PAGES = ROOT / "docs" / "studies"


def stored_results(name: str) -> Results:
    return json.loads((RESULTS / f"{name}.json").read_text())


def write(study: Study, results: Results) -> None:
    """Write the results, and the figures and the plot of the page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, sort_keys=True)
    (RESULTS / f"{study.name}.json").write_text(text + "\n")
    page = PAGES / f"{study.name}.md"
    stored = json.loads(text)  # in the order in which others will read it
    page.write_text(filled(page.read_text(), study.blocks(stored)))
    if study.draw:
        study.draw(results, PAGES / f"{study.name}.png")


def report(study: Study, results: Results) -> bool:
    """Print blocks and claims of a study; return whether all claims hold."""
    for name, lines in study.blocks(results).items():
        print(f"\n[{study.name}: {name}]", *lines, sep="\n")
    claims = study.claims(results)
    print()
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}", flush=True)
    return all(claims.values())


def seeds_problem(study: Study, seeds: Sequence[int]) -> str:
    """Return why a study cannot be measured with these seeds; empty if it can."""
    if not study.seeds:
        return f"{study.name} has no seeds to choose; leave out --seeds"
    if len(set(seeds)) < len(seeds):
        return f"--seeds: got {seeds}, want each seed once"
    if len(seeds) < study.fewest:
        return f"{study.name} compares runs; pass --seeds with {study.fewest} seeds or more"
    return ""


def default_names(*, seeds: bool) -> tuple[str, ...]:
    """Return the studies that are run if none is named; ``seeds``: with seeds that were chosen."""
    if seeds:
        return NAMES
    if MNIST.is_dir():
        return (*NAMES, *WITH_DATA)
    print(f"mnist-spectrum: left out, no folder {MNIST}; set ONTOGENY_MNIST", flush=True)
    return (*NAMES, "turning-points")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all studies")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="where runs go")
    parser.add_argument(
        "--processes", type=int, default=2, help="studies that run side by side, default 2"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of PyTorch in each process, default 1"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="SEED", help="train these only, default: the page's"
    )
    parser.add_argument(
        "--write", action="store_true", help="write results and pages, in place of the stored ones"
    )
    parser.add_argument("--again", action="store_true", help="use the stored results")
    arguments = parser.parse_args(words)
    names = arguments.names or default_names(seeds=bool(arguments.seeds))
    if unknown := set(names) - {*NAMES, *WITH_DATA}:
        known = ", ".join((*NAMES, *WITH_DATA))
        parser.error(f"no study {', '.join(sorted(unknown))}; choose from {known}")
    if min(arguments.processes, arguments.threads) < 1:
        parser.error("--processes and --threads: want 1 or more")
    if arguments.seeds and (arguments.write or arguments.again):
        parser.error("--seeds goes with neither --write nor --again: a page is of all its seeds")
    for study in map(study_of, names) if arguments.seeds else ():
        if problem := seeds_problem(study, arguments.seeds):
            parser.error(problem)
    if arguments.again:
        found = ((name, stored_results(name), "stored results") for name in names)
    else:
        how = (arguments.seeds or (), arguments.threads, arguments.processes)
        found = each_measured(names, arguments.runs, *how)
    good = True
    for name, results, spent in found:
        study = study_of(name)
        good &= report(study, results)
        print(f"{name}: {spent}", flush=True)
        if arguments.write:
            write(study, results)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
