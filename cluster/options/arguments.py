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


def add_ray(made: argparse.ArgumentParser) -> None:
    text = "work on a Ray cluster: host:port, local, or by default the one that is there"
    where = made.add_mutually_exclusive_group()
    where.add_argument("--ray", nargs="?", const="", type=ray_address, metavar="ADDRESS", help=text)
    text = "work on this machine alone, even within a Ray job"
    where.add_argument("--no-ray", action="store_true", help=text)


def ray_address(text: str) -> str:
    """An address as Ray knows it: host:port, auto or local."""
    host, sign, port = text.rpartition(":")
    if text in ("", "auto", "local") or (sign and host and port.isdigit() and "/" not in host):
        return "" if text == "auto" else text
    problem = f"{text!r} is not a cluster's address: host:port or local; put RUN before --ray"
    raise argparse.ArgumentTypeError(problem)
