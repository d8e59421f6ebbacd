"""The argument parser, and the arguments that several commands share."""

import argparse
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from capture.errors import ConfigError, at_least

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """What ``add_subparsers`` returns; each command adds its own parser to it."""

BUNDLED = Path(__file__).parents[2] / "configs"
"""The folder of the bundled configurations, as ``capture.config.reading`` has it."""


CHOICE = re.compile(r"invalid choice: '?(?P<given>.*?)'? \(choose from (?P<allowed>.*)\)")
"""How argparse says that a word is none of those allowed."""
UNKNOWN = re.compile(r"unrecognized arguments: (?P<given>\S+)")


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one line, like all errors of the command line."""

    def error(self, message: str) -> NoReturn:
        """Raises ``ConfigError``; a word that is almost right is answered with the right one."""
        text = " ".join(message.split())
        where, _, problem = text.partition(": ")
        if not problem or UNKNOWN.match(text):
            where, problem = self.prog.removeprefix("ontogeny "), text
        remedy = self.suggestion(problem) + f"See: {self.prog} --help"
        raise ConfigError(where.removeprefix("argument "), problem, remedy)

    def suggestion(self, problem: str) -> str:
        """``Did you mean …? ``, or an empty string."""
        if found := CHOICE.search(problem):
            return did_you_mean(found["given"], re.findall(r"[^\s,']+", found["allowed"]))
        if found := UNKNOWN.search(problem):
            return did_you_mean(found["given"].partition("=")[0], self._option_string_actions)
        return ""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``Did you mean …? `` with the known words that are most like the given one, or nothing."""
    close = get_close_matches(given, list(known), n=2, cutoff=0.7)
    return f"Did you mean {' or '.join(close)}? " if close else ""


def add_command(
    commands: "Commands", name: str, run, summary: str, text: str = ""
) -> argparse.ArgumentParser:
    """Add the parser of a command; ``run`` is called with the arguments and a console."""
    made = commands.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\n{text}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=run, parser=made)
    return made


def add_run(made: argparse.ArgumentParser) -> None:
    made.add_argument("run", metavar="RUN", help="folder or prefix of a run, as in runs/demo")


def neuron_name(text: str) -> tuple[str, int]:
    """``layers.2.linear2.weight:17`` → its unit and number; raises ``ArgumentTypeError``."""
    unit, colon, number = text.rpartition(":")
    if not (colon and unit and number.isascii() and number.isdigit()):
        problem = f"got {text!r}, must be UNIT:N, as in layers.2.linear2.weight:17"
        raise argparse.ArgumentTypeError(problem)
    return unit, int(number)


def add_config(made: argparse.ArgumentParser, help: str, nargs: str | None = None) -> None:
    added = made.add_argument("config", metavar="CONFIG", nargs=nargs, help=help)
    added.completer = complete_config  # pyright: ignore[reportAttributeAccessIssue]


def complete_config(prefix: str, **request: object) -> list[str]:
    """Bundled configurations and YAML files that begin so; ``argcomplete`` calls this."""
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter(("yaml", "yml"))(prefix)
    return [*(path.stem for path in BUNDLED.glob("*.yaml")), *files]


def add_skip_damaged(made: argparse.ArgumentParser) -> None:
    text = "leave out shards that do not match their markers, and list them"
    made.add_argument("--skip-damaged", action="store_true", help=text)


def add_overrides(made: argparse.ArgumentParser) -> None:
    add_any_number(made, "overrides", metavar="key=value", help="settings to change")


def add_any_number(made: argparse.ArgumentParser, name: str, *, metavar: str, help: str) -> None:
    """Add any number of words, also none; only with a default does argparse not require them."""
    made.add_argument(name, nargs="*", default=[], metavar=metavar, help=help)


def add_quiet(made: argparse.ArgumentParser, *, json: bool = False) -> None:
    """Add ``--quiet``, and ``--json`` for commands that have an answer."""
    how = made.add_mutually_exclusive_group() if json else made
    how.add_argument("--quiet", action="store_true", help="print errors only")
    if json:
        text = "print the whole answer as JSON instead, and nothing else"
        how.add_argument("--json", action="store_true", help=text)


def add_ray(made: argparse.ArgumentParser) -> None:
    text = "work on a Ray cluster: host:port, local, or by default the cluster that is running"
    where = made.add_mutually_exclusive_group()
    where.add_argument("--ray", nargs="?", const="", type=ray_address, metavar="ADDRESS", help=text)
    text = "work on this machine only, even within a Ray job"
    where.add_argument("--no-ray", action="store_true", help=text)


def add_workers(made: argparse.ArgumentParser) -> None:
    """Option of commands that train again."""
    text = "retrainings at once on this machine, default 1"
    made.add_argument("--workers", type=num_workers, default=1, metavar="N", help=text)


def num_workers(text: str) -> int:
    """Parse ``--workers``; raises ``ConfigError`` below 1."""
    at_least("--workers", int(text), 1)
    return int(text)


def ray_address(text: str) -> str:
    """Check an address as Ray takes it: host:port, local, or auto (returned as "")."""
    host, sign, port = text.rpartition(":")
    if text in ("", "auto", "local") or (sign and host and port.isdigit() and "/" not in host):
        return "" if text == "auto" else text
    problem = f"{text!r} is not a cluster's address: host:port or local; put RUN before --ray"
    raise argparse.ArgumentTypeError(problem)
