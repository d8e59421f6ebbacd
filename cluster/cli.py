# PYTHON_ARGCOMPLETE_OK
"""The command ``ontogeny``: arguments in, exit code out. Each command is a module of ``commands``.

Exit codes: 0 done; 1 a self-check found a difference; 2 bad input, nothing changed; 3 a damaged
record or a failed audit; 130 stopped by Ctrl-C, 143 by SIGTERM (committed segments stay).

Help, usage errors and tab completion must answer at once. Modules that are imported here, and at
the top of each command, therefore import no heavy library; a command imports those when it runs.
"""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from capture import __version__
from capture.errors import BAD_INPUT, CaptureError, IncompleteRunWarning
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
    selfcheck,
    verify,
)
from cluster.commands.dynamics import compare, quanta, seeds, spectrum, trajectory, transitions
from cluster.commands.influence import (
    directions,
    drift,
    influence,
    lds,
    retrain,
    silence,
    smoothness,
    suspects,
)
from cluster.commands.listings import config, runs
from cluster.commands.pages import report, serve
from cluster.local.signals import exit_code, stoppable
from cluster.on_ray.job import JOB_CONFIG_VARIABLE
from cluster.options.arguments import Parser
from cluster.terminal.plain import print_error, printable, program
from cluster.terminal.streams import READER_GONE, checked_output

COMMANDS = (
    demo,
    capture,
    replay,
    *(attribute, ablate, activations, neurons, behaviour, bigrams, faithfulness),
    *(report, serve),
    *(influence, suspects, silence, lds, smoothness, retrain, drift, directions),
    *(spectrum, trajectory, transitions, quanta, seeds, compare),
    *(plan, config, runs, info, verify, selfcheck, garbage),
)
"""All commands, in the order of the help."""

EPILOG = """\
a first quarter of an hour:
  ontogeny demo                              train, record and analyse a small model
  ontogeny info runs/demo                    what was recorded, and its size
  ontogeny capture wikitext2 corpus.path=DIR the study: WikiText-2, three layers, five epochs
  ontogeny attribute runs/wikitext2          which tokens moved which neurons
  ontogeny ablate runs/wikitext2             does ablating those neurons agree?
  ontogeny report runs/wikitext2             web pages, one for each neuron and token
and further:
  ontogeny config wikitext2                  all settings, with their documentation
  ontogeny plan wikitext2 corpus.path=DIR    what a run will cost, before you start it
  ontogeny runs                              the runs under runs/, with steps, state and size
  ontogeny neurons runs/wikitext2            clusters of neurons that the same data moved
  ontogeny behaviour runs/demo --target ")"  which heads and neurons such data moved
  ontogeny bigrams runs/demo --token python  which bigrams shifted, and which data shifted them
  ontogeny influence runs/demo loss          which data made the model do this
  ontogeny spectrum runs/demo                in how many directions training went, and when
  ontogeny replay runs/wikitext2             add missing records from checkpoints
  ontogeny activations runs/wikitext2        the baseline: what activations alone show
  ontogeny faithfulness runs/wikitext2       which attribution method to trust, and where
  ontogeny trajectory runs/demo              metrics at the checkpoints of training
  ontogeny transitions runs/demo             when each metric changed, and whether suddenly
  ontogeny seeds demo --seeds 0:10           train with ten seeds; how stable is what comes out?

A run is a folder of Parquet, safetensors and JSON: pandas.read_parquet("runs/demo/outliers").
Tab completion in bash or zsh: eval "$(register-python-argcomplete ontogeny)"
Exit codes: 0 done, 1 a failed self-check, 2 bad input, 3 a damaged record or a failed audit,
130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        with checked_output():
            arguments = parse_arguments(argv)
            return run_command(arguments) if arguments else BAD_INPUT
    except BrokenPipeError:
        return READER_GONE  # the reader of our output has gone: print nothing more
    except CaptureError as error:
        print_error(f"ontogeny: {error}")
        return error.exit_code


def run_command(arguments: argparse.Namespace) -> int:
    """Run the command that was parsed; a signal stops it in order. Returns the exit code."""
    from cluster.terminal.console import make_console

    try:
        with stoppable(), warnings.catch_warnings():
            warnings.simplefilter("always", IncompleteRunWarning)
            warnings.showwarning = show_warning
            return arguments.command(arguments, make_console())
    except KeyboardInterrupt as stop:
        print(f"\nStopped. {how_to_continue(arguments)}", file=sys.stderr)
        return exit_code(stop)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print our own warnings as one line, and others as Python does."""
    if issubclass(category, IncompleteRunWarning):
        print_error(f"ontogeny: {message}")
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(printable(text), end="", file=file or sys.stderr)


def parser() -> Parser:
    top = Parser(
        prog="ontogeny",
        description="Record the per-sample gradients of every training step, and ask the record "
        "which data moved a neuron, a head or a prediction.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ontogeny {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace | None:
    """Parse a command line; settings (``key=value``) may also stand behind options.

    Prints the help and returns None for a line without words. Answers a shell that asks for tab
    completion, and ends the process then.
    """
    top = parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(top)
    if not (sys.argv[1:] if argv is None else argv):
        top.print_help()
        return None
    arguments, rest = top.parse_known_args(argv)
    if "overrides" in arguments and all("=" in word and word[0] != "-" for word in rest):
        arguments.overrides = [*arguments.overrides, *rest]
    elif rest:
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def how_to_continue(arguments: argparse.Namespace) -> str:
    """What to type after Ctrl-C, and what is safe if the command stores segments."""
    if arguments.command not in {command.run for command in (capture, demo, replay, seeds)}:
        return "Run the command again."
    safe = "Committed segments are safe"
    if arguments.command is not capture.run:
        return f"{safe}; run the command again."
    words = ["capture", arguments.config, *arguments.overrides, "--resume"]
    again = "continue with another job" if JOB_CONFIG_VARIABLE in os.environ else "continue with"
    return f"{safe}; {again}: {program()} {shlex.join(words)}"
