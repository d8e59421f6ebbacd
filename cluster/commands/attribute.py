"""``ontogeny attribute``: which tokens taught which neurons, when, and in which direction?"""

import argparse
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from analysis.attribution.attribute import attribute as analyse
from analysis.attribution.attribute import write_attribution
from analysis.attribution.config import BACKGROUNDS, EVIDENCE, FORMER_EVIDENCE, AttributionConfig
from analysis.attribution.outlier_notions import NOTIONS
from analysis.attribution.outlier_weights import WEIGHTS
from analysis.levels import LEVELS, groups_at
from analysis.measures.selection import METHODS, SelectionConfig
from analysis.run.names import nearest, token_id
from analysis.run.run import Run, open_run
from capture.errors import ConfigError, UnitError, at_least
from cluster.options.arguments import add_command, add_quiet, add_ray, add_run, add_skip_damaged
from cluster.options.machines import HERE, Machines, machines
from cluster.terminal.attribution_tables import Focus, show
from cluster.terminal.progress import counting
from cluster.terminal.tables import print_skipped

TEXT = """\
Adds up the evidence that each neuron (or head, row, unit, parameter) has for each token, and names
the tokens that stand out, with when they were taught. Without options it takes what agreed best
with ablation on the study's text (ontogeny faithfulness): geometric-mean · train · rate for neurons
of runs with tallies, else target · train · rate.

  evidence   target       the token to be predicted where an outlier arises
             input        the token that stands there
             window       all tokens of the outlier's datum
             update-norm  tallies of every position, by target token: norm of the update that the
                          position contributed to the neuron
             ablation-estimate: tallies, first-order estimate of the loss increase if the neuron
                          were ablated
             geometric-mean: √(update norm · |ablation estimate|)
             input-update-norm, input-ablation-estimate: the same tallies by input token
  background unit         the same unit's other neurons (a layer's other heads, …)
             train        the training text
  select     rate         shrunken relative frequency, false discovery rate at most --max-q
             odds         lower bound of the log-odds ratio, the same
             study        of the tokens seen at least --min-count times, the --most-frequent ones
                          with the highest relative frequency; of these the --most-counted with
                          the highest count
             product, mahalanobis, kl: what the study tried besides
  outliers   absolute     as recorded: the largest shifts of each datum
             unit, neuron, parameter: of these the share --keep that is largest for its unit, its
                          neuron, or its parameter's own history

--study is the published study's way: single parameters, whole windows, counted, against all
datums; a neuron takes the tokens of its parameters. Tables go to RUN/analysis/attribute/."""


def add(inner) -> None:
    made = add_command(inner, "attribute", run, "Which tokens taught which neurons?", TEXT)
    add_run(made)
    made.add_argument("--study", action="store_true", help="as the study did; others still apply")
    choices = {
        "level": (LEVELS, "neuron"),
        "evidence": (EVIDENCE, "geometric-mean, or target"),
        "weight": (WEIGHTS, "count"),
        "background": (BACKGROUNDS, "train"),
        "select": (METHODS, "rate"),
        "outliers": (NOTIONS, "absolute"),
    }
    for name, (allowed, default) in choices.items():
        text = f"{', '.join(allowed)}; default {default}"
        kind = evidence_name if name == "evidence" else str
        made.add_argument(f"--{name}", type=kind, choices=allowed, metavar=name.upper(), help=text)
    made.add_argument("--keep", type=float, metavar="SHARE", help="see outliers, default 0.25")
    made.add_argument("--steps", type=steps_range, metavar="A:B", help="only steps A to B - 1")
    made.add_argument("--windows", type=int, metavar="N", help="parts of training, default 5")
    made.add_argument("--parameters", type=int, metavar="N", help="analysed, default 5000")
    made.add_argument("--datums", type=int, metavar="N", help="kept per neuron, default 2000")
    for name, default in SELECTION.items():
        text = f"see select, default {default}" if name != "tokens" else "per neuron, default 10"
        made.add_argument(f"--{name}", type=type(default), metavar="N", help=text)
    made.add_argument("--unit", help="show this unit only, as in layers.2.linear2.weight")
    made.add_argument("--number", type=int, metavar="N", help="show this neuron (row, …) of it")
    made.add_argument("--token", help="show what this token taught")
    made.add_argument("--rows", type=int, default=20, metavar="N", help="shown, default 20")
    add_skip_damaged(made)
    add_ray(made)
    add_quiet(made)


SELECTION = {"tokens": 10, "max-q": 0.05, "min-count": 20, "most-frequent": 200, "most-counted": 5}
"""Options of ``SelectionConfig`` and their defaults."""


def run(arguments: argparse.Namespace, console: Console) -> int:
    at_least("--rows", arguments.rows, 1)
    found = open_run(arguments.run, skip_damaged=arguments.skip_damaged)
    config = config_of(arguments, tallies=bool(found.shards("tallies")))
    focus = Focus(
        rows=arguments.rows,
        unit=arguments.unit,
        number=arguments.number,
        token=arguments.token,
    )
    with machines(arguments) as on:
        attribute(found, config, console, quiet=arguments.quiet, focus=focus, on=on)
    print_skipped(console, found.skipped)
    return 0


def evidence_name(text: str) -> str:
    """Refuse the names of earlier versions with a line that says the new one."""
    if text in FORMER_EVIDENCE:
        raise argparse.ArgumentTypeError(f"{text!r} is now called {FORMER_EVIDENCE[text]}")
    return text


def steps_range(text: str) -> tuple[int, int | None]:
    """``100:200``, ``100:``, ``:200`` → first step and end."""
    first, _, end = text.partition(":")
    try:
        return int(first or 0), int(end) if end else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range as in 100:200") from None


def config_of(arguments: argparse.Namespace, *, tallies: bool) -> AttributionConfig:
    """The settings; what was not given is as trusted most (with --study, as in the study)."""
    asked = vars(arguments)
    selection = {"most": "tokens"} | {
        name.replace("-", "_"): name.replace("-", "_") for name in SELECTION if name != "tokens"
    }
    names = {
        **{name: name for name in ("level", "evidence", "weight", "background", "select")},
        **{name: name for name in ("outliers", "keep", "windows")},
        "max_parameters": "parameters",
        "max_datums": "datums",
    }
    values: dict[str, Any] = {ours: asked[theirs] for ours, theirs in names.items()}
    values["first_step"], values["end_step"] = asked["steps"] or (None, None)
    values["selection"] = SelectionConfig(
        **{o: asked[t] for o, t in selection.items() if asked[t] is not None}
    )
    given = {name: value for name, value in values.items() if value is not None}
    if asked["study"]:
        return AttributionConfig.study(**given)
    return AttributionConfig.trusted(tallies=tallies, **given)


def attribute(
    run: Run,
    config: AttributionConfig,
    console: Console,
    *,
    quiet: bool,
    rows: int = 20,
    focus: Focus | None = None,
    on: Machines = HERE,
) -> None:
    """Attribute, write the tables, show the first rows of them."""
    focus = focus or Focus(rows=rows)
    check_focus(run, config, focus)
    with counting(console, "reading outliers", "rows", quiet=quiet) as report:
        found = analyse(run, partial(on.run_job, report=report), config)
    write_attribution(run, found)
    if not quiet:
        show(console, found, focus)


def check_focus(run: Run, config: AttributionConfig, focus: Focus) -> None:
    """Raises ``UnitError`` or ``ConfigError`` for a unit, number or token that there is not."""
    if focus.token is not None:
        token_id(run.tokens, focus.token)
    if focus.unit is None:
        if focus.number is not None:
            problem = f"got {focus.number} without a unit"
            raise ConfigError("--number", problem, "Say which unit it is of with --unit")
        return
    level = "neuron" if config.level == "parameter" else config.level
    groups = groups_at(level, run.layout, heads=run.config.model.heads)
    known = list(dict.fromkeys(groups.units))
    if focus.unit not in known:
        raise UnitError(focus.unit, f"has no {level}s here", nearest(focus.unit, known))
    numbers = groups.number_G[np.array(groups.units) == focus.unit]
    if focus.number is not None and level == "unit":
        problem = f"got {focus.number}, but whole units are asked about"
        raise ConfigError("--number", problem, "Leave it out or choose another --level")
    if focus.number is not None and focus.number not in numbers:
        problem = f"does not exist: they are {numbers.min()} to {numbers.max()}"
        raise UnitError(f"{focus.unit} {level} {focus.number}", problem)
