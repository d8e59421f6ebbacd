"""``ontogeny replay``: add records to a run by taking its steps again."""

import argparse
import re
from typing import cast

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from capture.config.reading import make_config, read_override
from capture.config.records import KINDS, wanted_kinds
from capture.config.settings import to_values
from capture.device import available_cores
from capture.errors import ConfigError, RunError
from capture.format.markers import read_segments
from capture.replay.segments import TOLERANCE, Precision, Replayed, read_past
from capture.store.store import Store
from cluster.local.processes import replay_segments
from cluster.options.arguments import add_command, add_overrides, add_quiet, add_ray, add_run
from cluster.options.machines import HERE, machines
from cluster.terminal.progress import counting

PRECISION = "capture.factors.precision"


def add(inner) -> None:
    text = f"""\
Takes the steps of each segment again from its checkpoint, several segments at a time, and adds the
records asked for: {", ".join(KINDS)}. What is there already is left as it is, so the command can
be given again after an interruption. Each segment must end where it ended when it was captured, to
the last bit on the same kind of machine, else within {TOLERANCE:.0e}; or nothing of it is added.
One setting can be given anew: {PRECISION}=float16"""
    summary = "Add records to a run by taking its steps again."
    made = add_command(inner, "replay", run, summary, text)
    add_run(made)
    made.add_argument(
        "--segments", metavar="LIST", help="as in 0-9,12; default: all that are committed"
    )
    made.add_argument(
        "--record", metavar="KINDS", default="outliers", help="as in outliers,factors,tallies"
    )
    processes = "processes here; default: one for as many cores as the run was captured on"
    made.add_argument("--workers", type=int, metavar="N", help=processes)
    add_ray(made)
    add_overrides(made)
    add_quiet(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    store = Store(arguments.run)
    kinds = wanted_kinds(arguments.record.split(","), "--record")
    past = read_past(store, wanted_precision(arguments.overrides))
    segments = chosen_segments(arguments.segments, len(read_segments(store)), store.uri)
    workers = arguments.workers or max(1, available_cores() // past.threads)
    if workers < 1:
        raise ConfigError("--workers", f"got {workers}, must be at least 1")
    with machines(arguments) as on:
        sweep = None if on is HERE else on.sweep
        if sweep:
            from cluster.on_ray.mapreduce import require_sight

            require_sight(store)
        with counting(console, "replay", "segments", quiet=arguments.quiet) as report:
            found = replay_segments(past, segments, kinds, report, workers=workers, sweep=sweep)
    if not arguments.quiet:
        show(console, store.uri, found)
    return 0


def wanted_precision(overrides: list[str]) -> Precision | None:
    """The one setting that may differ from the run's; raises ``ConfigError`` for any other."""
    for override in overrides:
        key, _ = read_override(override)
        if key != PRECISION:
            problem = "cannot differ from what the run was captured with"
            raise ConfigError(key, problem, f"Replaying takes {PRECISION} alone")
    if not overrides:
        return None
    config = make_config({}, overrides)
    return cast(Precision, to_values(config)["capture"]["factors"]["precision"])


def chosen_segments(text: str | None, committed: int, uri: str) -> list[int]:
    """Segments of a list such as 0-9,12; raises for what is none or is not committed."""
    if not committed:
        raise RunError(
            uri, "holds no committed segment yet", "Let it train on: ontogeny capture … --resume"
        )
    if text is None:
        return list(range(committed))
    chosen: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if not found:
            raise ConfigError("--segments", f"got {text!r}", "Write numbers and ranges: 0-9,12")
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < committed:
            problem = f"got {part.strip()!r}, the run has segments 0 to {committed - 1}"
            raise ConfigError("--segments", problem)
        chosen |= set(range(first, last + 1))
    return sorted(chosen)


def show(console: Console, uri: str, found: list[Replayed]) -> None:
    """What was added, and how well the steps were met."""
    made = [replayed for replayed in found if replayed.added]
    console.print(
        f"[bold]{escape(uri)}[/]: {len(found)} segments, {len(found) - len(made)} of "
        "them had all that was asked for"
    )
    for kind in KINDS:
        num = sum(kind in replayed.added for replayed in made)
        if num:
            console.print(f"  {kind} added to {num} segments")
    if not made:
        return
    off = [replayed for replayed in made if replayed.difference]
    worst = max((replayed.difference for replayed in off), default=0.0)
    exact = f"{len(made) - len(off)} ended exactly where they did when they were captured"
    rest = f", {len(off)} up to {worst:.1e} of the weights away" if off else ""
    console.print(f"  {decimal(sum(r.num_bytes for r in made))}; {exact}{rest}")
    audit = max(replayed.audit_error for replayed in made)
    console.print(f"  every step audited, largest relative error {audit:.1e}")
