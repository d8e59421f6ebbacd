"""``ontogeny capture``: train a model and record it."""

import argparse
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.reading import read_config
    from cluster.local.torchrun import leads
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.tables import next_commands

    config, quiet = read_config(arguments.config, arguments.overrides), arguments.quiet
    how = {"resume": arguments.resume, "overwrite": arguments.overwrite}
    captured = record(config, console, quiet=quiet or arguments.json, **how)
    if arguments.json and leads():
        print_as_json(summary_of(captured))
    elif not quiet and leads():
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
) -> "Run":
    """Capture the run, print its summary and return it.

    Of a launcher's processes only rank 0 prints.
    """
    from analysis.run.run import open_run
    from cluster.local.torchrun import leads
    from cluster.on_ray.job import require_persistent
    from cluster.terminal.progress import capture_report

    require_persistent("run.uri", config.run.uri)
    quiet = quiet or not leads()
    with capture_report(console, quiet=quiet) as report:
        choose_runner(config)(config, report, resume=resume, overwrite=overwrite)
    captured = open_run(config.run.uri, config.store)
    if not quiet:
        show_summary(console, captured)
    return captured


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


@dataclass(frozen=True)
class CaptureSummary:
    """What a capture has made so far, as ``--json`` prints it."""

    run: str
    steps: int
    num_steps: int
    """Steps of the whole run; ``steps`` of them are done."""
    segments: int
    outliers: int
    outlier_bytes: int
    audit_error: float | None
    """Largest of all steps; None if only checkpoints are recorded."""
    unchecked: dict[str, int]
    """What could not be checked → how often."""
    evaluations: list[dict[str, Any]]
    """The last row of each held-out split."""


def summary_of(run: "Run") -> CaptureSummary:
    """Return the summary of a finished (or resumed) capture."""
    rows, size = outlier_size(run)
    errors, evaluations = run.steps()["audit_error"], run.evaluations()
    unchecked = sum((Counter(marker.unchecked) for marker in run.segments), Counter())
    last = [
        {str(name): value for name, value in table.iloc[-1].items()}
        for _, table in evaluations.groupby("split", sort=False)
    ]
    return CaptureSummary(
        run=run.uri,
        steps=run.steps_done,
        num_steps=run.num_steps,
        segments=len(run.segments),
        outliers=rows,
        outlier_bytes=size,
        audit_error=float(errors.max()) if errors.notna().all() else None,
        unchecked=dict(unchecked),
        evaluations=last,
    )


def show_summary(console: "Console", run: "Run") -> None:
    """Print a few lines about a finished (or resumed) capture."""
    from rich.filesize import decimal
    from rich.markup import escape

    made = summary_of(run)
    console.print(f"[bold]{escape(made.run)}[/]: {made.steps} of {made.num_steps} steps")
    if made.outliers:
        per_row = f"{made.outlier_bytes / made.outliers:.1f} bytes a row"
        console.print(f"  {made.outliers:,} outliers in {decimal(made.outlier_bytes)} ({per_row})")
    if made.audit_error is None:
        console.print("  checkpoints only; ontogeny replay adds audited records")
    else:
        console.print(
            f"  every step audited: Σ shifts = applied change, largest relative error "
            f"{made.audit_error:.1e}"
        )
    for reason, count in made.unchecked.items():
        console.print(f"  not checked: {count:,} {escape(reason)}")
    for last in made.evaluations:
        measure = f"perplexity {last['perplexity']:.1f}"
        if "accuracy" in last:
            measure = f"accuracy {last['accuracy']:.1%}"
        console.print(f"  {escape(str(last['split']))} loss {last['loss']:.3f}, {measure}")


def outlier_size(run: "Run") -> tuple[int, int]:
    """Rows and bytes of the run's outlier shards."""
    files = [file for segment in run.segments for file in segment.files_of("outliers")]
    return sum(file.rows or 0 for file in files), sum(file.num_bytes for file in files)
