"""The option ``--lifetime`` of analyses that read recorded shifts."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.run.run import Run
    from cluster.options.analysis import Counting

SAID = (
    "Lifetime shifts are counted: what each gradient still contributes to the last weights,\n"
    "through momentum and later steps."
)


def add_lifetime(made: argparse.ArgumentParser) -> None:
    text = (
        "count lifetime shifts: what each gradient still contributes to the last weights, through "
    )
    text += "momentum and later steps. The run is replayed once, and they are kept in "
    text += "RUN/analysis/lifetime/"
    made.add_argument("--lifetime", action="store_true", help=text)


def say_lifetime(console: "Console", *, counted: bool) -> None:
    """Print which kind of shift the tables above count, if it is not that of one step."""
    if counted:
        console.print(SAID)


def compute_lifetimes(run: "Run", counting: "Counting", *, wanted: bool) -> None:
    """Compute and store the lifetime shifts of a run unless they are there, and show progress."""
    from analysis.lifetime.run import lifetime_run, stored_record

    if wanted and stored_record(run) is None:
        with counting("computing lifetime shifts", "steps") as report:
            lifetime_run(run, report)
