"""How arguments are read, and those that several commands share."""

import argparse
from typing import NoReturn

from capture.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Whose refusals are errors like all others: one line, and where to read on."""

    def error(self, message: str) -> NoReturn:
        """Raises ``ConfigError``."""
        where, _, problem = " ".join(message.split()).partition(": ")
        if not problem:
            where, problem = self.prog.removeprefix("ontogeny "), where
        raise ConfigError(where.removeprefix("argument "), problem, f"See: {self.prog} --help")


def add_command(inner, name: str, command, summary: str, text: str = "") -> argparse.ArgumentParser:
    made = inner.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\n{text}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=command)
    return made


def add_run(made: argparse.ArgumentParser) -> None:
    made.add_argument("run", metavar="RUN", help="folder or prefix of a run, as in runs/demo")


def add_skip_damaged(made: argparse.ArgumentParser) -> None:
    text = "leave out shards that are not what their markers say, and list them"
    made.add_argument("--skip-damaged", action="store_true", help=text)


def add_overrides(made: argparse.ArgumentParser) -> None:
    made.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")


def add_quiet(made: argparse.ArgumentParser) -> None:
    made.add_argument("--quiet", action="store_true", help="print errors only")
