"""The command ``ontogeny``: arguments in, exit code out. Each command is a module of commands/.

Exit codes: 0 done; 1 a self-check found a difference; 2 bad input, nothing changed; 3 the record is
not what it must be; 130 stopped by Ctrl-C, 143 by SIGTERM (what was committed stays).
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata

from rich.console import Console

from capture.errors import CaptureError
from cluster.commands import (
    ablate,
    activations,
    attribute,
    behaviour,
    bigrams,
    capture,
    demo,
    faithfulness,
    garbage,
    info,
    neurons,
    plan,
    replay,
    report,
    selfcheck,
    verify,
)
from cluster.local.signals import exit_code, stoppable
from cluster.options.arguments import Parser
from cluster.terminal.tables import program

COMMANDS = (
    demo,
    capture,
    replay,
    *(attribute, ablate, activations, neurons, behaviour, bigrams, faithfulness, report),
    *(plan, info, verify, selfcheck, garbage),
)
"""In the order of the help."""

EPILOG = """\
a first quarter of an hour:
  ontogeny demo                              train, record and ask, on text that Python carries
  ontogeny info runs/demo                    what was recorded, and how big it is
  ontogeny capture wikitext2 corpus.path=DIR the study: WikiText-2, three layers, five epochs
  ontogeny attribute runs/wikitext2          which tokens taught which neurons
  ontogeny ablate runs/wikitext2             does silencing those neurons agree?
  ontogeny report runs/wikitext2             a folder of pages to look at, one a neuron
and further:
  ontogeny plan wikitext2 corpus.path=DIR    what that will take, before it is paid for
  ontogeny neurons runs/wikitext2            which neurons belong together
  ontogeny behaviour runs/demo --target ")"  which heads and neurons such data moved
  ontogeny bigrams runs/demo --token python  which word after which, and the data that taught it
  ontogeny replay runs/wikitext2             records that it lacks, from its checkpoints
  ontogeny activations runs/wikitext2        what activations alone would tell
  ontogeny faithfulness runs/wikitext2       which attribution to trust, and where

A run is a folder of Parquet, safetensors and JSON: pandas.read_parquet("runs/demo/outliers").
Exit codes: 0 done, 1 a failed self-check, 2 bad input, 3 a damaged record or a failed audit,
130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        return carried_out(parsed(argv), errors)
    except CaptureError as error:
        errors.print(f"ontogeny: {error}", markup=False, style="red")
        return error.exit_code


def carried_out(arguments: argparse.Namespace, errors: Console) -> int:
    """The exit code of a command that does what it should or is stopped."""
    width = None if sys.stdout.isatty() else 110
    try:
        with stoppable():
            return arguments.command(arguments, Console(width=width, highlight=False))
    except KeyboardInterrupt as stop:
        errors.print("\nStopped. Committed segments are safe; " + way_on(arguments))
        return exit_code(stop)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left; say no more
        return 0


def parser() -> Parser:
    top = Parser(
        prog="ontogeny",
        description="Watch a language model learn: record what every training datum did to every "
        "weight, and ask the record what taught a neuron.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = metadata.version("ontogeny")
    top.add_argument("--version", action="version", version=f"ontogeny {version}")
    inner = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(inner)
    return top


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments in any order: settings (``key=value``) may stand behind options too."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if "overrides" in arguments and all("=" in word and word[0] != "-" for word in rest):
        arguments.overrides = [*arguments.overrides, *rest]
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def way_on(arguments: argparse.Namespace) -> str:
    """How to go on after Ctrl-C."""
    if arguments.command is not capture.run:
        return "run the command again."
    again = ["capture", arguments.config, *arguments.overrides, "--resume"]
    return f"go on with: {program()} {shlex.join(again)}"
