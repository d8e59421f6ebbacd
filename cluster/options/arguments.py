"""The argument parser, and the arguments that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from capture.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    """What ``add_subparsers`` returns; each command adds its own parser to it."""

BUNDLED = Path(__file__).parents[2] / "configs"
"""The folder of the bundled configurations, as ``capture.config.reading`` has it."""


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one line, like all errors of the command line."""

    def error(self, message: str) -> NoReturn:
        """Raises ``ConfigError``."""
        where, _, problem = " ".join(message.split()).partition(": ")
        if not problem:
            where, problem = self.prog.removeprefix("ontogeny "), where
        raise ConfigError(where.removeprefix("argument "), problem, f"See: {self.prog} --help")


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
    made.set_defaults(command=run)
    return made


def add_run(made: argparse.ArgumentParser) -> None:
    made.add_argument("run", metavar="RUN", help="folder or prefix of a run, as in runs/demo")


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
    made.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")


def add_quiet(made: argparse.ArgumentParser) -> None:
    made.add_argument("--quiet", action="store_true", help="print errors only")


def add_ray(made: argparse.ArgumentParser) -> None:
    text = "work on a Ray cluster: host:port, local, or by default the cluster that is running"
    where = made.add_mutually_exclusive_group()
    where.add_argument("--ray", nargs="?", const="", type=ray_address, metavar="ADDRESS", help=text)
    text = "work on this machine only, even within a Ray job"
    where.add_argument("--no-ray", action="store_true", help=text)


def ray_address(text: str) -> str:
    """Check an address as Ray takes it: host:port, local, or auto (returned as "")."""
    host, sign, port = text.rpartition(":")
    if text in ("", "auto", "local") or (sign and host and port.isdigit() and "/" not in host):
        return "" if text == "auto" else text
    problem = f"{text!r} is not a cluster's address: host:port or local; put RUN before --ray"
    raise argparse.ArgumentTypeError(problem)
