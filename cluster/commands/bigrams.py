"""``ontogeny bigrams``: which bigrams did training teach, and which datums did it?"""

import argparse
import re

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis.bigrams.bigrams import BigramConfig, Shifted, find_bigrams, write_bigrams
from analysis.run.run import Run, open_run
from capture.errors import ConfigError
from cluster.options.arguments import add_command, add_quiet, add_run
from cluster.terminal.progress import counting
from cluster.terminal.tables import data_table, print_table

AROUND = 4
"""Tokens shown before and after the place in a datum that suits a bigram best."""


def add(inner) -> None:
    text = """\
The logit that the unembedding alone gives to token v after the embedding of token w, and by how
much it shifted: over a range of steps, or in every single one. Finds the largest of all V × V
shifts exactly and says how much of each was whose doing. Steps are taken again from checkpoints, so
any run will do; over a range, --datums 0 needs only its two ends. Tables go to
RUN/analysis/bigrams/.

  ontogeny bigrams runs/demo --token python
  ontogeny bigrams runs/demo --steps 200:300 --each-step --top 5"""
    made = add_command(inner, "bigrams", run, "Which bigrams were taught, and by what?", text)
    add_run(made)
    made.add_argument(
        "--steps", metavar="A:B", default=":", help="A to B - 1, or one step; default all"
    )
    made.add_argument("--token", metavar="TOKEN", help="only bigrams with it on either side")
    made.add_argument(
        "--each-step", action="store_true", help="the largest shifts of every single step"
    )
    made.add_argument(
        "--top", type=int, default=20, metavar="N", help="bigrams (of each step), default 20"
    )
    made.add_argument(
        "--datums", type=int, default=5, metavar="N", help="of each bigram, default 5, 0 for none"
    )
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    first_step, end_step = parse_steps(arguments.steps)
    config = BigramConfig(
        first_step=first_step,
        end_step=end_step,
        each_step=arguments.each_step,
        token=arguments.token,
        top=arguments.top,
        datums=arguments.datums,
    )
    opened = open_run(arguments.run)
    with counting(console, "taking steps again", "steps", quiet=arguments.quiet) as report:
        found = find_bigrams(opened, config, report)
    write_bigrams(opened, found)
    if not arguments.quiet:
        show(console, opened, found, rows=config.top)
    return 0


def parse_steps(text: str) -> tuple[int, int | None]:
    """First step and the one after the last, None for the run's; raises ``ConfigError``."""
    found = re.fullmatch(r"(\d{1,9})?(:(\d{1,9})?)?", text, re.ASCII)
    if not found or not text:
        raise ConfigError("--steps", f"got {text!r}, must be like 0:100, 100: or 7")
    first = int(found[1] or 0)
    if not found[2]:
        return first, first + 1
    return first, int(found[3]) if found[3] else None


def show(console: Console, run: Run, found: Shifted, *, rows: int) -> None:
    """The largest shifts, each with its datums."""
    order = found.bigrams["shift"].abs().sort_values(ascending=False, kind="stable").index
    behind = dict(list(found.datums.groupby(["first_step", "rank"])))
    table = data_table("steps", "token", "next", "shift", "share")
    table.add_column("of datum, at the place that suits the bigram best")
    for bigram in found.bigrams.loc[order[:rows]].to_dict("records"):
        key = bigram["first_step"], bigram["rank"]
        add_bigram(table, run, bigram, behind.get(key, pd.DataFrame()))
    print_table(console, "Largest shifts of bigram logits", table)
    if len(found.bigrams) > rows:
        console.print(f"The {rows} largest of {len(found.bigrams):,} are shown.")
    if len(found.datums):
        console.print(
            "share: of the shift; the shares of all datums "
            + ("and the carry " if found.bigrams["carry"].any() else "")
            + f"add up to 100 % (to within {found.bigrams['missed'].abs().max():.0e} of a logit)."
        )


def add_bigram(table, run: Run, bigram: dict, behind: pd.DataFrame) -> None:
    """Its line, and one more for every datum but the first."""
    first, end = bigram["first_step"], bigram["end_step"]
    steps = str(first) if end == first + 1 else f"{first}–{end - 1}"
    left = [steps, escape(bigram["token"]), escape(bigram["next"]), f"{bigram['shift']:+.3f}"]
    for cause in behind.to_dict("records"):
        place = excerpt(run, cause["datum"], bigram["token_id"], bigram["next_id"])
        table.add_row(*left, f"{cause['share']:+.0%}", escape(f"{cause['datum']}: {place}"))
        left = [""] * 4
    if behind.empty:
        table.add_row(*left, "", "")
    if bigram["carry"] and not behind.empty:
        share = bigram["carry"] / bigram["shift"]
        table.add_row(
            *left, f"{share:+.0%}", "carry: momentum and weight decay, no datum of the step"
        )


def excerpt(run: Run, datum: int, token: int, following: int) -> str:
    """The datum's words around the bigram, else around either of its tokens, else its first."""
    token_T, target_T = run.token_NT[datum], run.target_NT[datum]
    suits_T = 2 * (target_T == following) + (token_T == token)
    place = int(np.argmax(suits_T))
    word_T = [*token_T.tolist(), int(target_T[-1])]
    some = range(max(0, place - AROUND), min(len(word_T), place + 2 + AROUND))
    words = " ".join(run.tokens[word_T[t]] for t in some)
    return f"{'… ' if some.start else ''}{words}{' …' if some.stop < len(word_T) else ''}"
