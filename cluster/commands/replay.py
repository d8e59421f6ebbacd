"""``ontogeny replay``: add records to a run by replaying its steps from checkpoints."""

import argparse
from typing import TYPE_CHECKING, cast

from capture.errors import ConfigError, RunError
from cluster.options.arguments import add_command, add_overrides, add_quiet, add_ray, add_run
from cluster.options.choices import RECORD_KINDS, REPLAY_TOLERANCE
from cluster.options.ranges import parse_numbers

if TYPE_CHECKING:
    from rich.console import Console

    from capture.replay.segments import Precision, ReplayResult
    from cluster.options.arguments import Commands

PRECISION = "capture.factors.precision"
TEXT = f"""\
Replays the steps of each segment from its checkpoint, several segments at a time, and adds the
records that you ask for: {", ".join(RECORD_KINDS)}. Existing records stay as they are, so you can
repeat the command after an interruption. A segment is added only if it ends where it ended when it
was captured: to the last bit on the same kind of machine, else within {REPLAY_TOLERANCE:.0e}.
One setting can differ from the run's: {PRECISION}=float16"""


def add(commands: "Commands") -> None:
    summary = "Add records to a run by replaying its steps."
    made = add_command(commands, "replay", run, summary, TEXT)
    add_run(made)
    text = "as in 0-9,12; default: all committed segments"
    made.add_argument("--segments", metavar="LIST", help=text)
    text = "as in outliers,factors,tallies; default outliers"
    made.add_argument("--record", metavar="KINDS", default="outliers", help=text)
    text = "processes on this machine; default: as many as fit with the cores of the capture"
    made.add_argument("--workers", type=int, metavar="N", help=text)
    add_ray(made)
    add_overrides(made)
    add_quiet(made, json=True)


def run(arguments: argparse.Namespace, console: "Console") -> int:
    from capture.config.records import wanted_kinds
    from capture.device import available_cores
    from capture.format.chain import read_segments
    from capture.replay.segments import read_replayable_run
    from capture.store import Store
    from cluster.local.processes import replay_segments
    from cluster.options.machines import HERE, machines
    from cluster.terminal.as_json import print_as_json
    from cluster.terminal.progress import counting

    store = Store(arguments.run)
    kinds = wanted_kinds(arguments.record.split(","), "--record")
    past = read_replayable_run(store, wanted_precision(arguments.overrides))
    segments = chosen_segments(arguments.segments, len(read_segments(store)), store.uri)
    workers = arguments.workers or max(1, available_cores() // past.threads)
    if workers < 1:
        raise ConfigError("--workers", f"got {workers}, must be at least 1")
    quiet = arguments.quiet or arguments.json
    with machines(arguments) as on:
        sweep = None if on is HERE else on.sweep
        if sweep:
            from cluster.on_ray.mapreduce import require_visible

            require_visible(store)
        with counting(console, "replay", "segments", quiet=quiet) as report:
            found = replay_segments(past, segments, kinds, report, workers=workers, sweep=sweep)
    if arguments.json:
        print_as_json({"run": store.uri, "segments": found})
    elif not quiet:
        show(console, store.uri, found)
    return 0


def wanted_precision(overrides: list[str]) -> "Precision | None":
    """The one setting that may differ from the run's; raises ``ConfigError`` for any other."""
    from capture.config.reading import make_config, read_override
    from capture.config.settings import to_values

    for override in overrides:
        key, _ = read_override(override)
        if key != PRECISION:
            problem = "cannot differ from what the run was captured with"
            raise ConfigError(key, problem, f"Replay takes only {PRECISION}")
    if not overrides:
        return None
    config = make_config({}, overrides)
    return cast("Precision", to_values(config)["capture"]["factors"]["precision"])


def chosen_segments(text: str | None, committed: int, uri: str) -> list[int]:
    """The segments of a list such as 0-9,12 in order; None: all that are committed.

    Raises ``ConfigError`` for a list that cannot be read or names a segment that is not committed,
    ``RunError`` if no segment is.
    """
    if not committed:
        raise RunError(
            uri, "holds no committed segment yet", "Let it train on: ontogeny capture … --resume"
        )
    if text is None:
        return list(range(committed))
    return parse_numbers("--segments", text, committed, "segments")


def show(console: "Console", uri: str, found: "list[ReplayResult]") -> None:
    """Print what was added, and how closely replay reproduced the captured weights."""
    from rich.filesize import decimal
    from rich.markup import escape

    made = [replayed for replayed in found if replayed.added]
    console.print(
        f"[bold]{escape(uri)}[/]: {len(found)} segments, {len(found) - len(made)} of "
        "them had all records already"
    )
    for kind in RECORD_KINDS:
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
