"""``ontogeny selfcheck``: compare capture with slower methods on your own model and data."""

import argparse
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cluster.options.arguments import add_command, add_config, add_overrides, add_quiet

if TYPE_CHECKING:
    from rich.console import Console

    from capture.maintenance.selfcheck import Check
    from cluster.options.arguments import Commands

DIFFERS = 1
"""Exit code: a comparison failed."""
TEXT = """\
Takes the first batches of CONFIG (a YAML file, or the name of a bundled configuration) and computes
by slower methods what capture would record: a backward pass for every single datum, torch.func, the
same datum in another batch, the optimizer's update, a sort of all shifts. For Hugging Face models
it also compares silenced neurons and heads with weights set to zero. It takes a sample of
the units of a large model. Writes nothing. Exit code 0 if all agree, 1 if not."""


def add(commands: "Commands") -> None:
    summary = "Check capture on your own model and data."
    made = add_command(commands, "selfcheck", run, summary, TEXT)
    add_config(made, "YAML file, or demo, gpt2-tiny, …")
    add_overrides(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.reading import read_config
    from capture.maintenance.selfcheck import self_check
    from cluster.terminal.as_json import print_as_json

    checks = list(self_check(read_config(arguments.config, arguments.overrides)))
    holds = all(check.holds for check in checks)
    if arguments.json:
        print_as_json({"config": arguments.config, "agrees": holds, "checks": rows_of(checks)})
    elif not (arguments.quiet and holds):
        show(console, checks)
        console.print(verdict(arguments.config, checks), markup=False)
    return 0 if holds else DIFFERS


def rows_of(checks: "list[Check]") -> "list[dict[str, Any]]":
    """Return the checks as ``--json`` prints them; ``found`` is null if none was made."""
    return [asdict(check) | {"made": check.made, "holds": check.holds} for check in checks]


def show(console: "Console", checks: "list[Check]") -> None:
    """Print a table of the checks, then what failed and what was not made."""
    from cluster.terminal.tables import data_table

    table = data_table("captured gradients against", "largest difference", "allowed", "")
    for check in checks:
        found = "not made" if math.isnan(check.found) else f"{check.found:.1e}"
        mark = ("✓" if check.holds else "✗") if check.made else "–"
        table.add_row(check.what, found, f"{check.allowed:.1e}", mark)
    console.print(table)
    for check in (check for check in checks if not check.holds):
        where = f" ({check.detail})" if check.detail else ""
        console.print(f"✗ {check.what}{where}: {check.meaning}.", markup=False, style="red")
    for check in (check for check in checks if not check.made):
        console.print(f"– {check.what}: {check.detail}.", markup=False)


def verdict(config: str, checks: "list[Check]") -> str:
    made = sum(check.made for check in checks)
    if failed := sum(not check.holds for check in checks):
        return f"{config}: {failed} of {made} checks failed; do not trust a record of this model"
    return f"{config}: capture agrees with {made} slower methods"
