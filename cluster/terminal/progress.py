"""Progress of a command: a bar in a terminal, a line every few seconds elsewhere, or nothing."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from capture.engine.evaluation import Evaluation
from capture.store.lease import TakenOver
from capture.training.loop import Event, OtherThreads, WindowReplay
from capture.training.loop import Progress as CaptureProgress
from capture.training.write_queue import WriteDelay

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class GroupRestart:
    """The group of workers was started again after some were lost."""

    number: int
    """How many times by now."""
    most: int
    """How many times are allowed (workers.max_failures)."""


@dataclass(frozen=True)
class NodeWait:
    """The cluster has too little room yet; capture waits for nodes to join."""

    problem: str
    seconds: float
    """How long it has waited so far."""
    patience_seconds: float
    """How long it waits for another node since the last one joined."""


DriverEvent = Event | GroupRestart | NodeWait
Report = Callable[[DriverEvent], None]
SideEvent = (
    Evaluation | WindowReplay | WriteDelay | TakenOver | OtherThreads | GroupRestart | NodeWait
)


@contextmanager
def capture_report(console: Console, *, quiet: bool) -> Iterator[Report]:
    """Yield a function to pass to ``capture_run`` as its report."""
    if quiet:
        yield lambda event: None
    elif console.is_terminal:
        with capture_bar(console) as bar:
            yield Bar(bar)
    else:
        yield Lines(console)


def capture_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TextColumn("{task.fields[rate]} rows/s"),
        TextColumn("{task.fields[size]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def counting(
    console: Console, what: str, unit: str, *, quiet: bool
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with how much of an analysis is done, and how much there is.

    Shows a bar that vanishes at the end; without a terminal, a line every few seconds. Rows are
    reported once for each shard, so shards per second are shown, too.
    """
    speed = Speed(unit)
    if not (quiet or console.is_terminal):
        yield CountingLines(console, what, speed)
        return
    bar = Progress(
        TextColumn(what),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn(f"of {{task.fields[total_text]}} {unit}{{task.fields[speed]}}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet,
    )
    with bar:
        task = bar.add_task(what, total=None, total_text="…", speed="")
        yield lambda done, total: bar.update(
            task, completed=done, total=total, total_text=short(total), speed=speed.after_shard()
        )


class Speed:
    """Shards per second since the start, for progress in rows."""

    def __init__(self, unit: str) -> None:
        self.unit, self.shards, self.start = unit, 0, time.monotonic()

    def after_shard(self) -> str:
        """The speed as text; call it once after every shard. Empty for other units."""
        self.shards += 1
        seconds = max(time.monotonic() - self.start, 0.001)
        return f", {self.shards / seconds:.1f} shards/s" if self.unit == "rows" else ""


class CountingLines:
    """Prints one line every few seconds, for logs."""

    def __init__(self, console: Console, what: str, speed: Speed) -> None:
        self.console, self.what, self.speed = console, what, speed
        self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        speed, now = self.speed.after_shard(), time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            share = f"{done / max(total, 1):.0%} of {short(total)} {self.speed.unit}"
            self.console.print(f"{self.what}: {share}{speed}", highlight=False, markup=False)


class Pace:
    """Rows per second and seconds left, measured since the first report."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.first: CaptureProgress | None = None

    def rows_per_second(self, now: CaptureProgress) -> str:
        """The rate as text; "…" at the first report, which has nothing to measure from."""
        first = self.since(now)
        seconds = time.monotonic() - self.start
        return short(round((now.rows - first.rows) / seconds)) if seconds and now != first else "…"

    def time_left(self, now: CaptureProgress) -> str:
        """Hours, minutes and seconds as text; "…" at the first report of an unfinished run."""
        steps = now.steps_done - self.since(now).steps_done
        seconds, left = time.monotonic() - self.start, now.num_steps - now.steps_done
        return clock(seconds / steps * left if steps else 0.0) if steps or not left else "…"

    def since(self, now: CaptureProgress) -> CaptureProgress:
        if self.first is None:
            self.first, self.start = now, time.monotonic()
        return self.first


class EventLines:
    """Lines for events other than progress; repeated ones at most every few seconds."""

    def __init__(self) -> None:
        self.last = -math.inf

    def line(self, event: SideEvent) -> str | None:
        """The line for an event; None for one that was printed moments ago."""
        if isinstance(event, WriteDelay | NodeWait):
            now = time.monotonic()
            if now - self.last < SECONDS_BETWEEN_LINES:
                return None
            self.last = now
            return waiting_line(event)
        if isinstance(event, GroupRestart):
            again = f"time {event.number}, workers.max_failures={event.most}"
            return f"workers were lost; their group starts again ({again})"
        if isinstance(event, TakenOver):
            return f"took the lease over from {event.holder}: {event.reason}"
        if isinstance(event, WindowReplay):
            return window_replay_line(event) if event.steps_done == 1 else None
        if isinstance(event, OtherThreads):
            return (
                f"uses {event.now} threads, the run was started with {event.started_with}: floats "
                "are added in another order, so the model departs from an uninterrupted run's"
            )
        return evaluation_line(event)


class Bar:
    """Moves a progress bar; lines for other events, such as held-out losses, scroll above it."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.pace = Pace()
        self.events = EventLines()
        self.task = bar.add_task("", start=True, total=None, epoch="…", loss=0, rate="…", size="")

    def __call__(self, event: DriverEvent) -> None:
        if not isinstance(event, CaptureProgress):
            line = self.events.line(event)
            if line is not None:
                self.bar.console.print(line, markup=False)
            return
        self.bar.update(
            self.task,
            total=event.num_steps,
            completed=event.steps_done,
            epoch=f"{event.epoch + 1}/{event.epochs}",
            loss=event.loss,
            rate=self.pace.rows_per_second(event),
            size=decimal(event.stored_bytes),
        )


class Lines:
    """Prints one line every few seconds, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.pace = Pace()
        self.events = EventLines()
        self.last = -SECONDS_BETWEEN_LINES

    def __call__(self, event: DriverEvent) -> None:
        if not isinstance(event, CaptureProgress):
            line = self.events.line(event)
            if line is not None:
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif time.monotonic() - self.last >= SECONDS_BETWEEN_LINES or finished(event):
            self.console.print(self.line(event), highlight=False)
            self.last = time.monotonic()

    def line(self, event: CaptureProgress) -> str:
        rate, size = self.pace.rows_per_second(event), decimal(event.stored_bytes)
        return (
            f"step {event.steps_done}/{event.num_steps}  epoch {event.epoch + 1}/{event.epochs}  "
            f"loss {event.loss:.2f}  {rate} rows/s  {size}  "
            f"ETA {self.pace.time_left(event)}"
        )


def finished(event: CaptureProgress) -> bool:
    return event.steps_done == event.num_steps


def evaluation_line(event: Evaluation) -> str:
    when, measure = f"epoch {event.epoch + 1}", f"perplexity {event.perplexity:.1f}"
    if event.accuracy is not None:  # a task
        when, measure = f"step {event.step:,}", f"accuracy {event.accuracy:.1%}"
    return f"{when}: {event.split} loss {event.loss:.3f}, {measure}"


def window_replay_line(event: WindowReplay) -> str:
    return f"replaying {event.num_steps} steps, for the tallies of the open window"


def waiting_line(event: WriteDelay | NodeWait) -> str:
    if isinstance(event, NodeWait):
        return (
            f"waiting for nodes, {event.seconds:.0f} s so far, up to "
            f"{event.patience_seconds:.0f} s after the last one joined: {event.problem}"
        )
    if event.patience_seconds is None:
        return f"training waits for the store, {event.seconds:.0f} s so far: {event.problem}"
    return (
        f"the store has been unavailable for {event.seconds:.0f} s, retrying for up to "
        f"{event.patience_seconds:.0f} s: {event.problem}"
    )


def short(number: float) -> str:
    """12345 → 12.3k"""
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}k" if number < 10**6 else f"{number / 10**6:.1f}M"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
