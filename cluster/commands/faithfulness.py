"""``ontogeny faithfulness``: which attribution can be trusted, and where?"""

import argparse

import pandas as pd
from rich.console import Console

from analysis.faithfulness.faithfulness import (
    SPLIT_HALF,
    Faithfulness,
    faithfulness,
    write_faithfulness,
)
from analysis.faithfulness.ground_truth import FaithfulnessConfig
from analysis.run.run import open_run
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.machines import machines
from cluster.terminal.progress import counting
from cluster.terminal.tables import data_table, print_skipped, print_table


def add(inner) -> None:
    text = """\
Silences some neurons of every unit and sees which tokens' log-probability changes most, on
held-out text. Then ranks the same tokens by everything that claims to know them: outlier rows by
window, input and target token, tallies, and (without any record) activations, token frequency,
chance. AUC: how often a truly affected token outranks another one; 0.5 is chance. Half of the
text is judged by the other half, too: how noisy the truth itself is. Tables go to
RUN/analysis/faithfulness/."""
    made = add_command(inner, "faithfulness", run, "Which attribution is true, and where?", text)
    add_run(made)
    made.add_argument("--neurons", type=int, default=16, metavar="N", help="a unit, default 16")
    made.add_argument("--text", default="held-out", metavar="TEXT", help="held-out or train")
    made.add_argument(
        "--datums", type=int, default=2000, metavar="N", help="of the text, default 2000"
    )
    made.add_argument(
        "--min-count", type=int, default=10, metavar="N", help="positions of a token, default 10"
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    add_skip_damaged(made)
    add_ray(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    config = FaithfulnessConfig(
        neurons=arguments.neurons,
        text=arguments.text,
        max_datums=arguments.datums,
        min_count=arguments.min_count,
        seed=arguments.seed,
    )
    opened = open_run(arguments.run, skip_damaged=arguments.skip_damaged)
    with (
        machines(arguments) as on,
        counting(console, "silencing neurons", "datums", quiet=arguments.quiet) as report,
    ):
        found = faithfulness(opened, on.run_job, config, report, on.sweep)
    write_faithfulness(opened, found)
    if not arguments.quiet:
        show(console, found, config)
    print_skipped(console, opened.skipped)
    return 0


def show(console: Console, found: Faithfulness, config: FaithfulnessConfig) -> None:
    """AUC by evidence and unit, best first; then which background and statistic it takes."""
    units = list(dict.fromkeys(found.scores["unit"]))
    table = data_table("evidence", *map(short, units), "mean", "first", "by")
    for _, rows in in_order(found.scores):
        auc = rows.set_index("unit")["auc"]
        by = "·".join(filter(None, [rows["background"].iloc[0], rows["select"].iloc[0]]))
        table.add_row(
            rows["evidence"].iloc[0] + (" *" if rows["baseline"].iloc[0] else ""),
            *(f"{auc[unit]:.2f}" for unit in units),
            f"{auc.mean():.2f}",
            f"{rows['precision'].mean():.2f}",
            by,
        )
    print_table(console, "How well each ranks the tokens that silencing affects (AUC)", table)
    console.print(
        f"{config.neurons} neurons a unit, {found.tokens:,} tokens with {config.min_count} or more "
        f"of {found.positions:,} positions of {config.text} text; affected: the "
        f"{config.affected:.0%} whose mean log-probability changes most for certain.\n"
        f"first: share of affected tokens among the first {config.first}. *: needs no record. "
        "by: background·statistic, as in attribute. 2.1: layers.2.linear1.weight."
    )


def in_order(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each evidence: half of the text, then by mean AUC, best first."""
    groups = [(str(evidence), rows) for evidence, rows in scores.groupby("evidence", sort=False)]
    return sorted(groups, key=lambda group: (group[0] != SPLIT_HALF, -group[1]["auc"].mean()))


def short(unit: str) -> str:
    """layers.2.linear1.weight → 2.1, as the study has it but for counting layers from 0."""
    return unit.removeprefix("layers.").removesuffix(".weight").replace("linear", "")
