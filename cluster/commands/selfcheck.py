"""``ontogeny selfcheck``: does capture say the truth of this model and this text?"""

import argparse
import math

from rich.console import Console
from rich.table import Table

from capture.config.reading import read_config
from capture.maintenance.selfcheck import Check, self_check
from cluster.options.arguments import add_command, add_overrides
from cluster.terminal.tables import data_table

DIFFERS = 1
"""Exit code: a comparison failed."""


def add(inner) -> None:
    text = """\
Takes the first batches of CONFIG (a YAML file, or the name of one that comes with the product) and
computes by slower ways what capture would record of them: a backward pass for every datum alone,
torch.func, the same datum among others, the optimizer's update, a sort of everything. Of a big
model it takes a sample of the units. Writes nothing. Exit code 0 if all agree, 1 if not."""
    made = add_command(inner, "selfcheck", run, "Check capture on your own model and data.", text)
    made.add_argument("config", metavar="CONFIG", help="YAML file, or demo, gpt2-tiny, …")
    add_overrides(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    checks = list(self_check(read_config(arguments.config, arguments.overrides)))
    console.print(as_table(checks))
    failed = [check for check in checks if not check.holds]
    for check in failed:
        where = f" ({check.detail})" if check.detail else ""
        console.print(f"✗ {check.what}{where}: {check.meaning}.", markup=False, style="red")
    for check in checks:
        if not check.made:
            console.print(f"– {check.what}: {check.detail}.", markup=False)
    console.print(verdict(arguments.config, checks), markup=False)
    return DIFFERS if failed else 0


def as_table(checks: list[Check]) -> Table:
    table = data_table("captured gradients against", "largest difference", "allowed", "")
    for check in checks:
        found = "not made" if math.isnan(check.found) else f"{check.found:.1e}"
        mark = ("✓" if check.holds else "✗") if check.made else "–"
        table.add_row(check.what, found, f"{check.allowed:.1e}", mark)
    return table


def verdict(config: str, checks: list[Check]) -> str:
    made = sum(check.made for check in checks)
    if failed := sum(not check.holds for check in checks):
        return f"{config}: {failed} of {made} checks failed; do not trust a record of this model"
    return f"{config}: capture agrees with {made} slower ways to the same numbers"
