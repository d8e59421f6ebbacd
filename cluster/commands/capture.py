"""``ontogeny capture``: train a model and record it."""

import argparse
import shlex
from typing import TYPE_CHECKING

from cluster.options.arguments import add_command, add_config, add_overrides, add_quiet

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.run.run import Run
    from capture.config.settings import Config
    from cluster.options.arguments import Commands

TEXT = """\
CONFIG is a YAML file, or the name of a bundled configuration (demo, wikitext2). key=value overrides
any setting: ontogeny capture wikitext2 run.seed=1 training.epochs=2"""


def add(commands: "Commands") -> None:
    made = add_command(commands, "capture", run, "Train a model and record it.", TEXT)
    add_config(made, "YAML file, or demo, wikitext2, gpt2-tiny, …")
    add_overrides(made)
    existing = made.add_mutually_exclusive_group()
    text = "continue after the last committed segment"
    existing.add_argument("--resume", action="store_true", help=text)
    text = "replace an existing run"
    existing.add_argument("--overwrite", action="store_true", help=text)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.reading import read_config
    from cluster.local.torchrun import leads
    from cluster.terminal.tables import next_commands

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
        next_commands(
            console, [f"{name} {uri}" for name in (*first_questions(config), "info", "verify")]
        )
    return 0


def first_questions(config: "Config") -> tuple[str, ...]:
    """Return commands that can be asked of the run: attribution needs outliers and neurons."""
    if config.capture.record == "checkpoints" or config.model.hidden == 0:
        return ("trajectory",)
    return ("attribute",)


def record(
    config: "Config",
    console: "Console",
    *,
    quiet: bool,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Capture the run and print its summary; of a launcher's processes only rank 0 prints."""
    from analysis.run.run import open_run
    from cluster.local.torchrun import leads
    from cluster.on_ray.job import require_persistent
    from cluster.terminal.progress import capture_report

    require_persistent("run.uri", config.run.uri)
    quiet = quiet or not leads()
    with capture_report(console, quiet=quiet) as report:
        choose_runner(config)(config, report, resume=resume, overwrite=overwrite)
    if not quiet:
        show_summary(console, open_run(config.run.uri, config.store))


def choose_runner(config: "Config"):
    """What captures: this process, a launcher's processes, or workers of a Ray cluster.

    DeepSpeed always runs on workers, even a single one.
    """
    from capture.training.loop import capture_run
    from cluster.local.torchrun import capture_launched, is_launched

    if is_launched():
        return capture_launched
    if config.workers.count == 1 and config.engine == "plain":
        return capture_run
    from cluster.on_ray.session import require_ray

    require_ray()
    from cluster.on_ray.workers import capture_on_workers

    return capture_on_workers


def show_summary(console: "Console", run: "Run") -> None:
    """Print a few lines about a finished (or resumed) capture."""
    from rich.filesize import decimal
    from rich.markup import escape

    from cluster.terminal.run_tables import unchecked

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
        console.print("  checkpoints only; ontogeny replay adds audited records")
    for what, reasons in unchecked(run).items():
        console.print(f"  {what}: {escape(reasons)}")
    for split, table in evaluations.groupby("split", sort=False):
        last = table.iloc[-1]
        measure = f"perplexity {last['perplexity']:.1f}"
        if "accuracy" in table:
            measure = f"accuracy {last['accuracy']:.1%}"
        console.print(f"  {escape(str(split))} loss {last['loss']:.3f}, {measure}")


def outlier_size(run: "Run") -> tuple[int, int]:
    """Rows and bytes of the run's outlier shards."""
    files = [file for segment in run.segments for file in segment.files_of("outliers")]
    return sum(file.rows or 0 for file in files), sum(file.num_bytes for file in files)
