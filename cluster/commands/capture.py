"""``ontogeny capture``: train a model and record it."""

import argparse
import shlex

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from analysis.run.run import Run, open_run
from capture.config.reading import read_config
from capture.config.settings import Config
from capture.training.loop import capture_run
from cluster.local.torchrun import capture_launched, is_launched, leads
from cluster.on_ray.job import require_lasting
from cluster.on_ray.session import require_ray
from cluster.options.arguments import add_command, add_overrides, add_quiet
from cluster.terminal.progress import capture_report
from cluster.terminal.tables import next_commands


def add(inner) -> None:
    text = """\
CONFIG is a YAML file, or the name of a configuration that comes with the product (demo,
wikitext2). Any key can be given anew: ontogeny capture wikitext2 run.seed=1 training.epochs=2"""
    made = add_command(inner, "capture", run, "Train a model and record it.", text)
    made.add_argument(
        "config", metavar="CONFIG", help="YAML file, or demo, wikitext2, gpt2-tiny, …"
    )
    add_overrides(made)
    way = made.add_mutually_exclusive_group()
    way.add_argument("--resume", action="store_true", help="go on after the last committed segment")
    way.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    config = read_config(arguments.config, arguments.overrides)
    record(
        config,
        console,
        quiet=arguments.quiet,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    if not arguments.quiet and leads():
        uri = shlex.quote(config.run.uri)
        next_commands(console, [f"{name} {uri}" for name in ("attribute", "info", "verify")])
    return 0


def record(
    config: Config,
    console: Console,
    *,
    quiet: bool,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Capture the run and say what it left behind; of a launcher's processes the first does."""
    require_lasting("run.uri", config.run.uri)
    quiet = quiet or not leads()
    with capture_report(console, quiet=quiet) as report:
        runner(config)(config, report, resume=resume, overwrite=overwrite)
    if not quiet:
        summary(console, open_run(config.run.uri, config.store))


def runner(config: Config):
    """What captures: this process, a launcher's processes, or workers of a cluster.

    DeepSpeed's steps are those of workers, be it one. Ray is loaded for a cluster's alone.
    """
    if is_launched():
        return capture_launched
    if config.workers.count == 1 and config.engine == "plain":
        return capture_run
    require_ray()
    from cluster.on_ray.workers import capture_on_workers

    return capture_on_workers


def summary(console: Console, run: Run) -> None:
    """What a finished (or resumed) capture left behind, in a few lines."""
    rows, size = outlier_size(run)
    steps, evaluations = run.steps(), run.evaluations()
    per_row = f" ({size / rows:.1f} bytes a row)" if rows else ""
    console.print(f"[bold]{escape(run.uri)}[/]: {run.steps_done} of {run.num_steps} steps")
    if rows:
        console.print(f"  {rows:,} outliers in {decimal(size)}{per_row}")
    if steps["audit_error"].notna().all():
        console.print(
            f"  every step audited: Σ shifts = applied change, largest relative error "
            f"{steps['audit_error'].max():.1e}"
        )
    else:
        console.print("  checkpoints alone; replaying adds records, audited")
    for split, table in evaluations.groupby("split", sort=False):
        last = table.iloc[-1]
        console.print(f"  {split} loss {last['loss']:.3f}, perplexity {last['perplexity']:.1f}")


def outlier_size(run: Run) -> tuple[int, int]:
    """Rows and bytes of the run's outlier shards."""
    files = [file for segment in run.segments for file in segment.files_of("outliers")]
    return sum(file.rows or 0 for file in files), sum(file.num_bytes for file in files)
