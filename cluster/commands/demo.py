"""``ontogeny demo``: the whole way once, in minutes."""

import argparse
import shlex

from rich.console import Console

from analysis.ablation.ablate import AblationConfig
from analysis.attribution.attribute import AttributionConfig
from analysis.report.build import ReportConfig
from analysis.run.run import open_run
from capture.config.reading import read_config
from capture.config.settings import Config
from cluster.commands.ablate import ablate
from cluster.commands.attribute import attribute
from cluster.commands.capture import record
from cluster.commands.report import report
from cluster.options.arguments import add_command, add_overrides, add_quiet, add_ray
from cluster.options.machines import Machines, machines
from cluster.terminal.tables import next_commands


def add(inner) -> None:
    text = """\
Trains the study's model on the reference text inside Python's own pydoc, records what each
datum did to each weight, names the tokens that taught some neurons, and silences those neurons
to see whether predictions of these tokens change, and leaves pages to read in a browser. No
network, no data, no GPU; some minutes.
An earlier demo at the same place is replaced."""
    made = add_command(inner, "demo", run, "The whole way once, in minutes.", text)
    add_overrides(made)
    add_ray(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    config = read_config("demo", arguments.overrides)
    with machines(arguments) as on:
        whole_way(config, console, quiet=arguments.quiet, on=on)
    return 0


def whole_way(config: Config, console: Console, *, quiet: bool, on: Machines) -> None:
    """Capture, attribute, ablate, report; capture finds its own workers, as it always does."""
    say = console.print if not quiet else lambda text: None
    say(f"[bold]1. Train, and record what each datum did[/] → {config.run.uri}")
    record(config, console, quiet=quiet, overwrite=True)
    found = open_run(config.run.uri, config.store)
    say("\n[bold]2. Ask the record: which tokens taught which neurons?[/]")
    attribution = AttributionConfig.trusted(tallies=bool(found.shards("tallies")))
    attribute(found, attribution, console, rows=8, quiet=quiet, on=on)
    say("\n[bold]3. Ask the model: does silencing these neurons agree?[/]")
    ablation = AblationConfig(max_neurons=30, max_datums=1000)
    ablate(found, ablation, console, rows=8, quiet=quiet, on=on)
    say("\n[bold]4. Look at it: a page for every neuron and token[/]")
    report(found, ReportConfig(), console, quiet=quiet, on=on)
    if not quiet:
        uri = shlex.quote(found.uri)
        own = "capture demo run.uri=runs/mine corpus.kind=text corpus.path=YOUR.txt"
        next_commands(console, [f"info {uri}", f"verify {uri}", own])
