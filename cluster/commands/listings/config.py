"""``ontogeny config``: all settings of a configuration, with their documentation."""

import argparse
from typing import TYPE_CHECKING

from cluster.options.arguments import add_command, add_config, add_overrides
from cluster.terminal.plain import printable

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.options.arguments import Commands

TEXT = """\
Prints every setting, also those that CONFIG leaves at their defaults, as YAML with comments. The
output is a configuration itself: ontogeny config demo > mine.yaml"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "config", run, "All settings, with their documentation.", TEXT)
    add_config(made, "YAML file, or demo, wikitext2, gpt2-tiny, …")
    add_overrides(made)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.documented_yaml import config_yaml
    from capture.config.reading import read_config

    config = read_config(arguments.config, arguments.overrides)
    print(printable(config_yaml(config)), end="")
    return 0
