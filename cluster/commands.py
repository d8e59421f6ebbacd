"""What each command does: read arguments, call capture and analysis, show what came of it."""

import argparse
import shlex
from functools import partial

from rich.console import Console
from rich.filesize import decimal

from analysis.ablation import AblationConfig, write_ablation
from analysis.ablation import ablate as silence_neurons
from analysis.attribution import AttributionConfig, write_attribution
from analysis.attribution import attribute as analyse
from analysis.run import Run, open_run
from capture.config import Config, read_config
from capture.errors import NOT_TRUSTWORTHY
from capture.store import Store
from capture.training import capture_run
from capture.verify import verify as verify_run
from cluster import show
from cluster.local import run_job
from cluster.progress import capture_report, counting

DONE = 0


def capture(arguments: argparse.Namespace, console: Console) -> int:
    config = read_config(arguments.config, arguments.overrides)
    record(config, arguments, console, resume=arguments.resume, overwrite=arguments.overwrite)
    if not arguments.quiet:
        uri = shlex.quote(config.run.uri)
        show.next_commands(console, [f"{name} {uri}" for name in ("attribute", "info", "verify")])
    return DONE


def record(
    config: Config,
    arguments: argparse.Namespace,
    console: Console,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    with capture_report(console, quiet=arguments.quiet) as report:
        capture_run(config, report, resume=resume, overwrite=overwrite)
    if not arguments.quiet:
        show.summary(console, open_run(config.run.uri))


def demo(arguments: argparse.Namespace, console: Console) -> int:
    """Capture, attribute and ablate on the embedded text."""
    config = read_config("demo", arguments.overrides)
    say = console.print if not arguments.quiet else lambda text: None
    say(f"[bold]1. Train, and record what each datum did[/] → {config.run.uri}")
    record(config, arguments, console, overwrite=True)
    run = open_run(config.run.uri)
    say("\n[bold]2. Ask the record: which tokens taught which neurons?[/]")
    attribute_run(run, AttributionConfig(), arguments, console, rows=8)
    say("\n[bold]3. Ask the model: does silencing these neurons agree?[/]")
    ablate_run(run, AblationConfig(max_neurons=30, max_datums=1000), arguments, console, rows=8)
    if not arguments.quiet:
        uri = shlex.quote(run.uri)
        own = "capture demo run.uri=runs/mine corpus.kind=text corpus.path=YOUR.txt"
        show.next_commands(console, [f"info {uri}", f"verify {uri}", own])
    return DONE


def attribute(arguments: argparse.Namespace, console: Console) -> int:
    config = AttributionConfig(
        max_parameters=arguments.parameters,
        min_count=arguments.min_count,
        most_frequent=arguments.most_frequent,
        most_counted=arguments.most_counted,
    )
    attribute_run(open_run(arguments.run), config, arguments, console, rows=arguments.rows)
    return DONE


def attribute_run(
    run: Run,
    config: AttributionConfig,
    arguments: argparse.Namespace,
    console: Console,
    *,
    rows: int,
) -> None:
    with counting(console, "reading outliers", "rows", quiet=arguments.quiet) as report:
        found = analyse(run, partial(run_job, report=report), config)
    write_attribution(run, found)
    if not arguments.quiet:
        show.attribution(console, found, rows=rows)


def ablate(arguments: argparse.Namespace, console: Console) -> int:
    config = AblationConfig(max_neurons=arguments.neurons, max_datums=arguments.datums)
    ablate_run(open_run(arguments.run), config, arguments, console, rows=arguments.rows)
    return DONE


def ablate_run(
    run: Run, config: AblationConfig, arguments: argparse.Namespace, console: Console, *, rows: int
) -> None:
    with counting(console, "silencing neurons", "predictions", quiet=arguments.quiet) as report:
        found = silence_neurons(run, config, report)
    write_ablation(run, found)
    if not arguments.quiet:
        show.ablation(console, found, rows=rows)


def info(arguments: argparse.Namespace, console: Console) -> int:
    show.info(console, open_run(arguments.run))
    return DONE


def verify(arguments: argparse.Namespace, console: Console) -> int:
    checked = []
    findings = verify_run(Store(arguments.run), checked.append)
    if not arguments.quiet:
        size = decimal(sum(file.num_bytes for file in checked))
        show.findings(console, findings, f"{len(checked)} files, {size}")
    return NOT_TRUSTWORTHY if any(f.state != "unlisted" for f in findings) else DONE


def way_on(arguments: argparse.Namespace) -> str:
    """How to go on after Ctrl-C."""
    if arguments.command is not capture:
        return "run the command again."
    again = ["capture", arguments.config, *arguments.overrides, "--resume"]
    return f"go on with: {show.program()} {shlex.join(again)}"
