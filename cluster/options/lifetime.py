"""The option ``--lifetime`` of analyses that read recorded shifts, and why others have none."""

import argparse
from typing import TYPE_CHECKING, NoReturn

from capture.errors import ConfigError

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


NOT_OFFERED = {
    "ablate": (
        "it measures the last model, which no kind of shift changes",
        "Ablate by the tokens of lifetime shifts: ontogeny attribute RUN --lifetime --name "
        "lifetime, then ontogeny ablate RUN --attribution lifetime",
    ),
    "activations": ("it measures a model, which no kind of shift changes", ""),
    "bigrams": (
        "a bigram's logit is a product of two weights, and the change of a product is no sum over "
        "datums; its column carry holds what momentum adds",
        "For single datums: ontogeny influence RUN QUERY --method path",
    ),
    "faithfulness": (
        "it judges the evidence of the run's own records",
        "Test tokens of lifetime shifts by ablation: ontogeny attribute RUN --lifetime --confirm",
    ),
    "influence": (
        "--method path credits each gradient with all that momentum makes of it, and the other "
        "methods count no shifts",
        "Leave it out",
    ),
    "spectrum": ("it decomposes gradients and updates of single steps", ""),
    "transitions": ("it dates changes, and asks which shifts were made in those steps", ""),
}
"""Command → why it has no ``--lifetime``, and what to do instead."""


class NotOffered(argparse.Action):
    """Raises ``ConfigError`` with the reason why a command has no ``--lifetime``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        reason, instead = NOT_OFFERED[parser.prog.split()[-1]]
        raise ConfigError("--lifetime", f"is not offered: {reason}", instead)


def explain_lifetime(made: argparse.ArgumentParser) -> None:
    """Let a command of ``NOT_OFFERED`` answer ``--lifetime`` with the reason; help hides it."""
    made.add_argument("--lifetime", action=NotOffered, nargs=0, help=argparse.SUPPRESS)


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
