"""``ontogeny demo``: train, record, attribute, ablate and report, in minutes."""

import argparse
import shlex
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.commands.ablate import ablation
from cluster.commands.attribute import attribution
from cluster.commands.capture import record, summary_of
from cluster.commands.pages.report import report
from cluster.options.analysis import Analysis, perform
from cluster.options.arguments import add_command, add_overrides, add_quiet, add_ray

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.attribution.config import AttributionConfig
    from analysis.run.run import Run
    from capture.config.settings import Config
    from cluster.options.arguments import Commands
    from cluster.options.machines import Machines

TEXT = """\
Trains the study's model on the reference text of Python's own pydoc and records what each datum did
to each weight. Then it names the tokens that moved some neurons, ablates those neurons to see
whether predictions of these tokens change, and writes pages to read in a browser. Needs no network,
no data and no GPU; takes some minutes. After an interruption, run the same command again: it
continues its own run. It never replaces a run that has other settings."""


def add(commands: "Commands") -> None:
    made = add_command(commands, "demo", run, "Every stage once, in minutes.", TEXT)
    add_overrides(made)
    add_ray(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.reading import read_config
    from cluster.options.machines import machines
    from cluster.terminal.as_json import print_as_json

    config = read_config("demo", arguments.overrides)
    with machines(arguments) as on:
        made = run_demo(config, console, quiet=arguments.quiet or arguments.json, on=on)
    if arguments.json:
        print_as_json(made)
    return 0


def run_demo(
    config: "Config", console: "Console", *, quiet: bool, on: "Machines"
) -> dict[str, Any]:
    """Capture, attribute, ablate, report; return what each command answers, by its name.

    Capture chooses its own workers, as it always does.
    """
    from analysis.ablation.config import AblationConfig
    from analysis.report.build import ReportConfig
    from analysis.run.run import open_run
    from cluster.terminal.attribution_tables import Focus
    from cluster.terminal.tables import next_commands

    say = console.print if not quiet else lambda text: None
    say(f"[bold]1. Train, and record what each datum did[/] → {config.run.uri}")
    record(config, console, quiet=quiet, resume=True)
    found = open_run(config.run.uri, config.store)
    made: dict[str, Any] = {"capture": summary_of(found)}
    say("\n[bold]2. Ask the record: which tokens moved which neurons?[/]")
    ask = partial(perform_once, run=found, console=console, quiet=quiet, on=on)
    made["attribute"] = ask(attribution(best_config, Focus(rows=8)))
    say("\n[bold]3. Ask the model: does ablating these neurons agree?[/]")
    strongest = AblationConfig(max_neurons=30, max_datums=1000)
    made["ablate"] = ask(ablation(strongest, rows=8))
    say("\n[bold]4. Read the report: a page for every neuron and token[/]")
    made["report"] = report(found, ReportConfig(), console, quiet=quiet, on=on)
    if not quiet:
        uri = shlex.quote(found.uri)
        own = "capture demo run.uri=runs/mine corpus.kind=text corpus.path=YOUR.txt"
        next_commands(console, [f"info {uri}", f"verify {uri}", own])
    return made


def perform_once(
    analysis: "Analysis[Any]", run: "Run", console: "Console", *, quiet: bool, on: "Machines"
) -> Any:
    """Perform an analysis and return its tables, unless its tables answer more (``--confirm``).

    These are kept, and their place is returned.
    """
    from analysis.jobs.claims import is_answered

    question = analysis.question(run)
    if not is_answered(run, question):
        return perform(analysis, run, console, quiet=quiet, on=on)
    place = f"{run.uri}/analysis/{question.command}/"
    if not quiet:
        console.print(f"Kept, as they answer more: the tables in {place}", markup=False)
    return {"kept": place}


def best_config(run: "Run") -> "AttributionConfig":
    """The settings of ``ontogeny attribute`` without options."""
    from analysis.attribution.config import AttributionConfig

    return AttributionConfig.recommended(tallies=bool(run.shards("tallies")))
