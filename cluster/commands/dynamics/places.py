"""What ``trajectory`` and ``quanta`` share: a place is a run, or holds checkpoints that are no run.

Checkpoints that are no run have a text of their own, and their tables go where ``--to`` says.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from capture.errors import ConfigError
from cluster.options.choices import ABLATION_SPLITS

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.jobs.question import Question
    from analysis.trajectory.observed.files import FileTexts
    from capture.store import Store
    from cluster.options.analysis import Report

Found = TypeVar("Found")
STEPS = (
    "log (default): checkpoints of the run, log-spaced; all; or a list such as 0,10,20:100:5 (from "
    "20 to below 100 by 5). Steps without a checkpoint are replayed"
)


def add_place(made: argparse.ArgumentParser) -> None:
    text = "folder or prefix of a run, as in runs/demo; or a folder of checkpoints"
    made.add_argument("run", metavar="PLACE", help=text)


def add_checkpoints(made: argparse.ArgumentParser, default: int) -> None:
    """Options for which checkpoints to measure, on which text."""
    made.add_argument("--steps", default="log", metavar="STEPS", help=STEPS)
    text = f"checkpoints of --steps log, default {default}"
    made.add_argument("--checkpoints", type=int, default=default, metavar="N", help=text)
    text = "text to predict; default validation, else test, else train"
    made.add_argument("--split", choices=ABLATION_SPLITS, default="", help=text)


def add_texts(made: argparse.ArgumentParser) -> None:
    """Options for checkpoints that are no run."""
    text = "without a run: UTF-8 text to predict; without it, metrics of text are left out"
    made.add_argument("--text", metavar="FILE", help=text)
    text = "without a run: text that the model was trained on"
    made.add_argument("--training-text", metavar="FILE", help=text)
    text = "without a run: tokens of a window; default what the model takes, at most 128"
    made.add_argument("--window", type=int, metavar="N", help=text)


def holds_checkpoints(place: str) -> bool:
    """Whether a place is a folder that is no run, or names revisions on the hub."""
    from capture.format.markers import START
    from capture.store import Store

    folder = Path(place).expanduser()
    if folder.is_dir():
        return not Store(str(folder)).exists(START)
    return "@" in place and "://" not in place


def refuse_texts(arguments: argparse.Namespace) -> None:
    """Raise ``ConfigError`` if a run, which has its text, is given another one."""
    for option in ("text", "training_text", "window"):
        if vars(arguments)[option] is not None:
            problem = f"is given, but {arguments.run} is a run, which has its text"
            raise ConfigError(f"--{option.replace('_', '-')}", problem, "Leave it out")


def answer_checkpoints(
    arguments: argparse.Namespace,
    console: "Console",
    question: "Callable[[FileTexts], Question]",
    compute: "Callable[[FileTexts, Report], Found]",
    write: "Callable[[Store, Found, Question, str, str], None]",
    show: "Callable[[Console, Found], None]",
) -> int:
    """Ask checkpoints that are no run, write the tables and print them; returns the exit code.

    Raises ``ConfigError`` for ``--split`` or ``--model``, or without ``--to``.
    """
    from analysis.jobs.loose_tables import claim_place
    from analysis.jobs.tables import table_set
    from analysis.trajectory.observed.files import FileTexts
    from capture.store import Store
    from cluster.on_ray.job import require_persistent
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.progress import counting

    if arguments.split:
        raise ConfigError("--split", f"is given, but {arguments.run} is no run", "Give --text")
    if arguments.model:
        problem = f"is given, but {arguments.run} is no run; its checkpoints say what they are"
        raise ConfigError("--model", problem, "Leave it out")
    if not arguments.to:
        problem = f"is missing, and {arguments.run} is no run that could hold the tables"
        raise ConfigError("--to", problem, "Say where they go: --to FOLDER")
    require_persistent("--to", arguments.to)
    texts = FileTexts(
        place=arguments.run,
        text=arguments.text,
        training_text=arguments.training_text,
        window=arguments.window,
    )
    store, asked = Store(arguments.to), question(texts)
    claim_place(store, asked, arguments.name, replace=arguments.replace)
    quiet = arguments.quiet or arguments.json
    with counting(console, "measuring", "checkpoints", quiet=quiet) as report:
        found = compute(texts, report)
    write(store, found, asked, arguments.run, arguments.name)
    if arguments.json:
        print_as_json(found)
    if not quiet:
        show(console, found)
        place = f"{store.uri}/analysis/{table_set(asked.command, arguments.name)}/"
        console.print(f"Tables: {place}", markup=False, highlight=False, soft_wrap=True)
    return 0
