"""A run in five lines, as ``repr`` and notebooks show it."""

from collections.abc import Callable
from html import escape

from analysis.run.stored_run import StoredRun
from capture.errors import CaptureError

RECORDS = ("outliers", "tallies", "factors")


def describe(run: StoredRun) -> dict[str, str]:
    """Return what a run holds: topic → one line. A part that is damaged says so."""
    return {
        "run": run.uri,
        "steps": stated(lambda: steps_done(run)),
        "datums": stated(lambda: f"{run.num_datums:,}"),
        "units": stated(lambda: f"{len(run.layout.names)} ({run.layout.size:,} parameters)"),
        "records": stated(lambda: records(run)),
    }


def stated(line: Callable[[], str]) -> str:
    """Return the line, or why there is none: ``repr`` must not raise."""
    try:
        return line()
    except CaptureError as error:
        return f"unknown: {error}"


def steps_done(run: StoredRun) -> str:
    whole = "" if run.steps_done == run.num_steps else ", not complete"
    return f"{run.steps_done:,} of {run.num_steps:,} in {len(run.segments)} segments{whole}"


def records(run: StoredRun) -> str:
    """Kinds of records with their rows; parts of factors have no rows of their own."""
    found = []
    for kind in RECORDS:
        files = [file for segment in run.segments for file in segment.files_of(kind)]
        rows = sum(file.rows or 0 for file in files)
        if files:
            found.append(f"{kind} {rows:,} rows" if rows else f"{kind} {len(files):,} files")
    partly = filter(None, map(run.committed.partly_recorded, ("outliers", "factors")))
    return "; ".join([", ".join(found) or "checkpoints only", *partly])


def as_text(lines: dict[str, str]) -> str:
    return "\n".join(f"{topic:<8} {line}" for topic, line in lines.items())


def as_html(lines: dict[str, str]) -> str:
    rows = (
        f'<tr><th style="text-align:left">{topic}</th>'
        f'<td style="text-align:left">{escape(line)}</td></tr>'
        for topic, line in lines.items()
    )
    return f"<table>{''.join(rows)}</table>"
