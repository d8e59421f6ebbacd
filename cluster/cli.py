"""The command ``ontogeny``: arguments in, exit code out. What each command does is in commands.py.

Exit codes: 0 done; 2 bad input, nothing changed; 3 the record is not what it must be; 130 stopped
by Ctrl-C (what was committed stays).
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from rich.console import Console

from capture.errors import CaptureError
from cluster import commands

INTERRUPTED = 130

EPILOG = """\
a first quarter of an hour:
  ontogeny demo                              train, record and ask, on text that Python carries
  ontogeny info runs/demo                    what was recorded, and how big it is
  ontogeny capture wikitext2 corpus.path=DIR the study: WikiText-2, three layers, five epochs
  ontogeny attribute runs/wikitext2          which tokens taught which neurons
  ontogeny ablate runs/wikitext2             does silencing those neurons agree?

A run is a folder of Parquet, safetensors and JSON: pandas.read_parquet("runs/demo/outliers").
Exit codes: 0 done, 2 bad input, 3 a damaged record or a failed audit, 130 stopped by Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    width = None if sys.stdout.isatty() else 110
    try:
        return arguments.command(arguments, Console(width=width, highlight=False))
    except CaptureError as error:
        errors.print(f"ontogeny: {error}", markup=False, style="red")
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("\nStopped. Committed segments are safe; " + commands.way_on(arguments))
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left; say no more
        return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="ontogeny",
        description="Watch a language model learn: record what every training datum did to every "
        "weight, and ask the record what taught a neuron.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = metadata.version("ontogeny")
    top.add_argument("--version", action="version", version=f"ontogeny {version}")
    inner = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_demo(inner)
    add_capture(inner)
    add_attribute(inner)
    add_ablate(inner)
    add_info(inner)
    add_verify(inner)
    return top


def add_command(inner, name: str, command, summary: str, text: str = "") -> argparse.ArgumentParser:
    made = inner.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\n{text}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=command)
    return made


def add_demo(inner) -> None:
    text = """\
Trains the study's model on the reference text inside Python's own pydoc, records what each
datum did to each weight, names the tokens that taught some neurons, and silences those neurons
to see whether predictions of these tokens change. No network, no data, no GPU; some minutes.
An earlier demo at the same place is replaced."""
    made = add_command(inner, "demo", commands.demo, "The whole way once, in minutes.", text)
    add_overrides(made)
    add_quiet(made)


def add_capture(inner) -> None:
    text = """\
CONFIG is a YAML file, or the name of a configuration that comes with the product (demo,
wikitext2). Any key can be given anew: ontogeny capture wikitext2 run.seed=1 training.epochs=2"""
    made = add_command(inner, "capture", commands.capture, "Train a model and record it.", text)
    made.add_argument("config", metavar="CONFIG", help="YAML file, or demo, or wikitext2")
    add_overrides(made)
    way = made.add_mutually_exclusive_group()
    way.add_argument("--resume", action="store_true", help="go on after the last committed segment")
    way.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    add_quiet(made)


def add_attribute(inner) -> None:
    text = """\
For each of the parameters with the most outliers: which tokens are more frequent in the datums
behind them than in all datums? Of the tokens seen at least --min-count times, the
--most-frequent ones with the highest relative frequency; of these the --most-counted with the
highest count. A neuron (a column of an MLP weight) takes the tokens of all its parameters.
Tables go to RUN/analysis/attribute/."""
    made = add_command(
        inner, "attribute", commands.attribute, "Which tokens taught which neurons?", text
    )
    add_run(made)
    made.add_argument("--min-count", type=int, default=20, metavar="N", help="default 20")
    made.add_argument("--most-frequent", type=int, default=200, metavar="N", help="default 200")
    made.add_argument("--most-counted", type=int, default=5, metavar="N", help="default 5")
    made.add_argument(
        "--parameters", type=int, default=5000, metavar="N", help="analysed, default 5000"
    )
    made.add_argument("--rows", type=int, default=20, metavar="N", help="shown, default 20")
    add_quiet(made)


def add_ablate(inner) -> None:
    text = """\
Sets a neuron's outgoing weights (its column) to zero and compares the model's next-token
predictions before and after, on datums that moved the neuron. Needs ontogeny attribute first.
Tables go to RUN/analysis/ablate/."""
    made = add_command(inner, "ablate", commands.ablate, "Does silencing a neuron agree?", text)
    add_run(made)
    made.add_argument(
        "--neurons", type=int, default=50, metavar="N", help="strongest neurons, default 50"
    )
    made.add_argument(
        "--datums", type=int, default=2000, metavar="N", help="per neuron, default 2000"
    )
    made.add_argument("--rows", type=int, default=10, metavar="N", help="shown, default 10")
    add_quiet(made)


def add_info(inner) -> None:
    made = add_command(inner, "info", commands.info, "What a run holds: settings, progress, sizes.")
    add_run(made)


def add_verify(inner) -> None:
    text = """\
Recomputes every checksum and row count; names each damaged, missing or unlisted file.
Exit code 3 if any is damaged or missing."""
    made = add_command(inner, "verify", commands.verify, "Is every file of a run intact?", text)
    add_run(made)
    add_quiet(made)


def add_run(made: argparse.ArgumentParser) -> None:
    made.add_argument("run", metavar="RUN", help="folder or prefix of a run, as in runs/demo")


def add_overrides(made: argparse.ArgumentParser) -> None:
    made.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")


def add_quiet(made: argparse.ArgumentParser) -> None:
    made.add_argument("--quiet", action="store_true", help="print errors only")
