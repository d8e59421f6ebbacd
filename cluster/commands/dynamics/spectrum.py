"""``ontogeny spectrum``: in how many directions did a run train, when, and which neurons?"""

import argparse
from typing import TYPE_CHECKING

from capture.errors import ConfigError, at_least
from cluster.options.analysis import Analysis, Counting, add_tables, run_analysis
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, num_workers
from cluster.options.choices import SPECTRUM_OF
from cluster.options.lifetime import explain_lifetime
from cluster.options.ranges import parse_steps

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.run.run import Run
    from analysis.spectra.tables import Spectrum
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Takes the gradients (or updates, or weights) of all steps as the columns of a matrix, and decomposes
it: singular values, their number over 10 % of the largest, stable rank and participation ratio,
beside random matrices of the same shape and of the same lengths; how each direction runs over the
steps; which neurons and datums it consists of; and when each neuron was moved. The spectrum is
exact over all steps; the sampled form (random steps, ten times) stands beside it. Gradients come
from stored factors where the run has them, all else is replayed, in pieces of parameters that fit
in memory. Tables and a page with plots go to RUN/analysis/spectrum/.

  ontogeny spectrum runs/demo
  ontogeny spectrum runs/demo --of updates --subtract-mean --name updates
  ontogeny spectrum runs/demo --datums 0 --low-rank 1,4,16 --name low-rank"""


def add(commands: "Commands") -> None:
    summary = "In how many directions did a run train, and when?"
    made = add_command(commands, "spectrum", run, summary, TEXT)
    add_run(made)
    text = "gradients of the batch's loss (default), updates of the weights, or weights"
    made.add_argument("--of", choices=SPECTRUM_OF, default="gradients", help=text)
    text = "captured parameters that match, default all; may be repeated"
    made.add_argument("--units", action="append", default=[], metavar="PATTERN", help=text)
    text = "steps A to B - 1, default all"
    made.add_argument("--steps", default=":", metavar="A:B", help=text)
    text = "take every N-th of these steps, default 1"
    made.add_argument("--every", type=int, default=1, metavar="N", help=text)
    add_treatment(made)
    add_what_is_said(made)
    text = "pieces of parameters at once on this machine, default 1"
    made.add_argument("--workers", type=num_workers, default=1, metavar="N", help=text)
    explain_lifetime(made)
    add_tables(made)
    add_ray(made)
    add_quiet(made, json=True)


def add_treatment(made: argparse.ArgumentParser) -> None:
    """Options for what is done to the steps before they are decomposed."""
    text = "leave out the first N of these steps"
    made.add_argument("--skip", type=int, default=0, metavar="N", help=text)
    text = "subtract each parameter's mean over the steps"
    made.add_argument("--subtract-mean", action="store_true", help=text)
    text = "scale every step to length 1"
    made.add_argument("--unit-length", action="store_true", help=text)


def add_what_is_said(made: argparse.ArgumentParser) -> None:
    """Options for what is computed from the decomposition."""
    for name, default, what in (
        ("--directions", 5, "directions that are described"),
        ("--datums", 10, "strongest datums of each direction; 0 saves a pass over the run"),
        ("--sample", 400, "steps of a sample; at most half of all are taken"),
        ("--repeats", 10, "samples"),
        ("--draws", 5, "draws of each random matrix, and of the directions of --low-rank"),
        ("--seed", 0, "seed of samples and random matrices"),
    ):
        text = f"{what}, default {default}"
        made.add_argument(name, type=int, default=default, metavar="N", help=text)
    text = "count singular values above this share of the largest, default 0.1"
    made.add_argument("--cutoff", type=float, default=0.1, metavar="SHARE", help=text)
    text = "train again with updates projected on the first K directions, and on K random ones"
    made.add_argument("--low-rank", default="", metavar="K[,K…]", help=text)
    made.add_argument("--rows", type=int, default=3, metavar="N", help="rows shown, default 3")


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from analysis.spectra.config import SpectrumConfig
    from analysis.spectra.reading import chosen_layout, chosen_steps
    from analysis.spectra.spectrum import measure_spectrum, spectrum_question, write_spectrum
    from cluster.options.machines import retraining_sweep
    from cluster.terminal.dynamics.spectrum import show_spectrum

    at_least("--rows", arguments.rows, 1)
    config = SpectrumConfig(
        what=arguments.of,
        units=tuple(arguments.units),
        steps=parse_steps(arguments.steps),
        every=arguments.every,
        skip=arguments.skip,
        subtract_mean=arguments.subtract_mean,
        unit_length=arguments.unit_length,
        cutoff=arguments.cutoff,
        directions=arguments.directions,
        datums=arguments.datums,
        sample=arguments.sample,
        repeats=arguments.repeats,
        draws=arguments.draws,
        low_rank=numbers_of_directions(arguments.low_rank),
        seed=arguments.seed,
    )

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Spectrum":
        sweep = retraining_sweep(arguments, on, run.uri)
        with counting(f"reading {config.what}", "steps") as report:
            where = {"name": arguments.name, "resumable": True}
            return measure_spectrum(run, config, report, sweep=sweep, **where)

    def show(console: "Console", run: "Run", found: "Spectrum") -> None:
        show_spectrum(console, run, found, config, rows=arguments.rows)

    question = spectrum_question(config)

    def check(run: "Run") -> None:
        chosen_layout(run, config.units)
        chosen_steps(run, config)

    answer = Analysis(lambda run: question, compute, write_spectrum, show, check)
    return run_analysis(arguments, console, answer)


def numbers_of_directions(text: str) -> tuple[int, ...]:
    """Parse the list of ``--low-rank``; raise ``ConfigError`` for anything but whole numbers."""
    try:
        return tuple(int(word) for word in text.split(",") if text)
    except ValueError as error:
        problem = f"got {text!r}, must be whole numbers with commas between them"
        raise ConfigError("--low-rank", problem, "For example 1,4,16") from error
