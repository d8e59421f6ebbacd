"""``ontogeny attribute``: which tokens moved which neurons, when, and in which direction."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from capture.errors import ConfigError, UnitError, at_least
from cluster.options.analysis import Analysis, Counting, add_model, add_tables, run_analysis
from cluster.options.arguments import (
    add_command,
    add_quiet,
    add_ray,
    add_run,
    add_skip_damaged,
    neuron_name,
)
from cluster.options.attribution import (
    CHOICES,
    SELECTION,
    asks_one_parameter,
    config_of,
    evidence_name,
    focused_group,
    parameter_config,
    parameter_set,
)
from cluster.options.lifetime import add_lifetime, compute_lifetimes, say_lifetime

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.attribution.config import AttributionConfig
    from analysis.attribution.tables import Attribution
    from analysis.faithfulness.confirm import ConfirmConfig
    from analysis.parameters.config import ParameterConfig
    from analysis.parameters.tables import ParameterTokens
    from analysis.run.run import Run
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines
    from cluster.terminal.attribution_tables import Focus

TEXT = """\
Adds up the evidence that each neuron (or head, row, unit, parameter) has for each token, and names
the tokens that stand out, with when they moved it. What moved a neuron is not what it depends on:
without the datums that tallies name, retraining left its effect unchanged. For that, ask
ontogeny influence RUN neuron:UNIT:N. The defaults are the settings that agreed best
with ablation on the study's text (ontogeny faithfulness): geometric-mean · train · rate for neurons
of runs with tallies, else target · train · rate.

  evidence   target             the token to be predicted at the position of an outlier
             input              the token at that position
             window             all tokens of the outlier's datum
             update-norm        tallies of every position, by target: norm of the update to the
                                neuron
             ablation-estimate  the same: first-order estimate of what ablating the neuron does to
                                the loss
             geometric-mean     √(update norm · |ablation estimate|)
             input-update-norm, input-ablation-estimate: by the token at the position instead
  background unit               the same unit's other neurons (a layer's other heads, …)
             train              the training text
  select     rate               shrunken relative frequency, false discovery rate at most --max-q
             odds               lower bound of the log-odds ratio, the same limit
             study              of the tokens seen at least --min-count times, the --most-frequent
                                ones with the highest relative frequency; of these the
                                --most-counted with the highest count
             product, mahalanobis, kl: other scores that the study tried
  outliers   absolute           as recorded: the largest shifts of each datum
             unit, neuron, parameter: of these the share --keep that is largest for its unit, its
                                neuron, or its parameter's own history

--study is the published study's method: single parameters, whole windows, counted, against all
datums; a neuron takes the tokens of its parameters. Tables go to RUN/analysis/attribute/,
or with --name NAME to a folder in it, where another question does not replace them.

--level parameter --neuron UNIT:INDEX asks about one parameter (INDEX: flat index into the unit):
all tokens of the datums that have it among their outliers, by relative frequency and by count, and
what chance gives. Tables go to RUN/analysis/parameter/."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "attribute", run, "Which tokens moved which neurons.", TEXT)
    add_run(made)
    text = "the study's settings, where no other option is given"
    made.add_argument("--study", action="store_true", help=text)
    for name, (allowed, default) in CHOICES.items():
        text = f"{', '.join(allowed)}; default {default}"
        kind = evidence_name if name == "evidence" else str
        made.add_argument(f"--{name}", type=kind, choices=allowed, metavar=name.upper(), help=text)
    made.add_argument("--keep", type=float, metavar="SHARE", help="see outliers, default 0.25")
    text = "steps A to B - 1, or one step; default all"
    made.add_argument("--steps", metavar="A:B", default=":", help=text)
    text = "parts of training to report separately, default 5"
    made.add_argument("--windows", type=int, metavar="N", help=text)
    text = "parameters analysed (--level parameter), default 5000"
    made.add_argument("--parameters", type=int, metavar="N", help=text)
    text = "datums kept for each neuron, default 2000"
    made.add_argument("--datums", type=int, metavar="N", help=text)
    for name, default in SELECTION.items():
        text = f"see select, default {default}"
        text = text if name != "tokens" else "tokens for each neuron, default 10"
        made.add_argument(f"--{name}", type=type(default), metavar="N", help=text)
    text = "show this neuron (row, head, parameter) only, as in layers.2.linear2.weight:17"
    shown = made.add_mutually_exclusive_group()
    shown.add_argument("--neuron", type=neuron_name, metavar="UNIT:N", help=text)
    shown.add_argument("--unit", help="show this unit only, as in layers.2.linear2.weight")
    made.add_argument("--token", help="show the neurons that have evidence for this token")
    made.add_argument("--rows", type=int, default=20, metavar="N", help="rows shown, default 20")
    add_lifetime(made)
    add_tables(made)
    add_confirm(made)
    add_model(made)
    add_skip_damaged(made)
    add_ray(made)
    add_quiet(made, json=True)


def add_confirm(made: argparse.ArgumentParser) -> None:
    """Options of the test by ablation."""
    text = "test each token by ablating the neuron on held-out text, beside null models"
    made.add_argument("--confirm", action="store_true", help=text)
    text = "held-out datums for --confirm, default 1000"
    made.add_argument("--confirm-datums", type=int, metavar="N", help=text)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from cluster.terminal.attribution_tables import Focus

    at_least("--rows", arguments.rows, 1)
    if asks_one_parameter(arguments):
        asked = parameter_config(arguments)
        arguments.name = arguments.name or parameter_set(asked)
        return run_analysis(arguments, console, one_parameter(asked, arguments.rows))
    config_of(arguments, tallies=False)  # raises for wrong options before the run is opened
    unit, number = focused_group(arguments)
    focus = Focus(
        rows=arguments.rows,
        unit=unit,
        number=number,
        token=arguments.token,
    )

    def choose(run: "Run") -> "AttributionConfig":
        return config_of(arguments, tallies=bool(run.shards("tallies")))

    confirm = confirm_config(arguments.confirm, arguments.confirm_datums)
    return run_analysis(arguments, console, attribution(choose, focus, confirm))


def confirm_config(asked: bool, datums: int | None) -> "ConfirmConfig | None":
    """The settings of the test by ablation, None without ``--confirm``."""
    from analysis.faithfulness.confirm import ConfirmConfig

    if datums is not None and not asked:
        raise ConfigError("--confirm-datums", "is given without --confirm", "Add --confirm")
    if not asked:
        return None
    return ConfirmConfig() if datums is None else ConfirmConfig(max_datums=datums)


def attribution(
    choose: "Callable[[Run], AttributionConfig]",
    focus: "Focus",
    confirmation: "ConfirmConfig | None" = None,
) -> "Analysis[Attribution]":
    """The attribution that is chosen for a run; ``focus`` says which rows are printed."""
    from analysis.attribution.attribute import attribute, write_attribution
    from analysis.attribution.row_passes import chosen_steps
    from analysis.faithfulness.confirm import Confirmed, confirm, require_confirmable
    from analysis.jobs.question import Question
    from analysis.run.ablatable import obstacle_to_confirmation
    from cluster.terminal.attribution_tables import show_attribution

    def compute(run: "Run", on: "Machines", counting: Counting) -> "Attribution":
        config = choose(run)
        if confirmation is not None:
            require_confirmable(run, config.level)
        compute_lifetimes(run, counting, wanted=config.lifetime)
        with counting("reading outliers", "rows") as report:
            found = attribute(run, partial(on.run_job, report=report), config)
        if confirmation is None:
            return found
        with counting("ablating on held-out text", "neuron-datum pairs") as report:
            return confirm(run, found, confirmation, report, on.sweep)

    def show(console: "Console", run: "Run", found: "Attribution") -> None:
        confirmable = obstacle_to_confirmation(run) is None
        show_attribution(console, found, focus, confirmable=confirmable)
        say_lifetime(console, counted=choose(run).lifetime)

    def question(run: "Run") -> Question:
        configs = [choose(run)] if confirmation is None else [Confirmed(confirmation), choose(run)]
        return Question.of("attribute", *configs)

    def check(run: "Run") -> None:
        config = choose(run)
        chosen_steps(run, config)
        check_focus(run, config, focus)

    return Analysis(question, compute, write_attribution, show, check)


def one_parameter(config: "ParameterConfig", rows: int) -> "Analysis[ParameterTokens]":
    """The question about one parameter; ``rows``: tokens printed in each table."""
    from analysis.jobs.question import Question
    from analysis.parameters.tokens import parameter_tokens, write_parameter
    from cluster.terminal.attribution_tables import show_parameter

    def compute(run: "Run", on: "Machines", counting: Counting) -> "ParameterTokens":
        compute_lifetimes(run, counting, wanted=config.lifetime)
        return parameter_tokens(run, config)

    def show(console: "Console", run: "Run", found: "ParameterTokens") -> None:
        show_parameter(console, found, config.select, rows=rows)
        say_lifetime(console, counted=config.lifetime)

    return Analysis(lambda run: Question.of("parameter", config), compute, write_parameter, show)


def check_focus(run: "Run", config: "AttributionConfig", focus: "Focus") -> None:
    """Raises ``UnitError`` or ``ConfigError`` for a unit, number or token that does not exist."""
    from analysis.levels import NO_BLOCKS, groups_at
    from analysis.run.names import nearest, token_id

    if focus.token is not None:
        token_id(run.tokens, focus.token)
    if focus.unit is None:
        return
    level = "neuron" if config.level == "parameter" else config.level
    blocks = run.head_blocks if level == "head" else NO_BLOCKS
    groups = groups_at(level, run.layout, heads=run.num_heads, blocks=blocks)
    known = list(dict.fromkeys(groups.units))
    if focus.unit not in known:
        raise UnitError(focus.unit, f"has no {level}s here", nearest(focus.unit, known))
    if focus.number is None:
        return
    if level == "unit":
        problem = f"got {focus.number}, but whole units are asked about"
        raise ConfigError("--neuron", problem, "Ask with --unit, or choose another --level")
    numbers = [
        n for unit, n in zip(groups.units, groups.number_G, strict=False) if unit == focus.unit
    ]
    if focus.number not in numbers:
        problem = f"does not exist: they are {min(numbers)} to {max(numbers)}"
        raise UnitError(f"{focus.unit} {level} {focus.number}", problem)
