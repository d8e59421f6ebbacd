"""What an analysis checks before it starts: that it may write its tables where they shall go.

A set of tables that answers another question is never replaced, and a place that cannot be written
is found before a run is scanned, which may take hours.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.jobs.question import Question
from analysis.jobs.tables import check_set_name, marker_key, read_question, table_set, table_sets
from analysis.run.run import Run
from capture.errors import RunError, ShardError, StoreAwayError, StoreError
from capture.format import markers
from capture.format.markers import Marker, read_marker
from capture.store.access import require_writable

ADDED = {"lifetime": False}
"""Options that tables of earlier versions do not name, with the value that they had."""
CHANGES_SHOWN = 4
"""Differences that an error names."""
LONGEST_NAME = 40
"""Letters of a suggested name."""


def claim(run: Run, question: Question, name: str, *, replace: bool = False) -> None:
    """Return if a command may write the tables of a question under this name.

    Args:
        run: Where the tables are written: ``run.tables``.
        question: What is asked; its command is the job.
        name: Name of the set; "" is the unnamed one.
        replace: Allow it to replace tables of another question or run.

    Raises:
        ConfigError: The name cannot be that of a folder.
        RunError: The set answers another question, or was made from another run.
        StoreError: The place cannot be written.
    """
    if name:
        check_set_name("--name", name)
    job = table_set(question.command, name)
    if not replace:
        require_free(run, job, question)
    try:
        require_writable(run.tables, f"analysis/{job}")
    except StoreAwayError:
        raise
    except StoreError as error:
        remedy = f"{error.remedy}. " if error.remedy else ""
        remedy += "Or keep the tables elsewhere: --to PLACE"
        raise StoreError(error.where, error.problem, remedy) from error


def is_answered(run: Run, question: Question) -> bool:
    """Whether the unnamed tables answer a question and, in their options, ask more than it does."""
    try:
        stored = read_question(run, question.command)
    except (RunError, ShardError):
        return False
    return stored.options != question.options and extends(stored, question)


# --- the question ---------------------------------------------------------------------------------


def require_free(run: Run, job: str, question: Question) -> None:
    """Raise ``RunError`` if a set of tables stands there that the new one may not replace."""
    if not run.tables.exists(marker_key(job)):
        return
    try:
        marker = read_marker(run.tables, marker_key(job))
        values = markers.read_values(run.tables, marker_key(job)).get("question")
    except ShardError:
        return  # damaged: nothing could read these tables
    where = f"{run.tables.uri}/analysis/{job}"
    if run.tables.uri != run.uri and not follows(marker, run):
        remedy = "Choose another folder, or replace them: --replace"
        raise RunError(where, "holds tables of another run", remedy)
    options = values.get("options") if isinstance(values, dict) else None
    known = Question(question.command, options if isinstance(options, dict) else {}, {})
    if not extends(question, known):
        problem = f"holds the tables of another question ({difference(question, known)})"
        sets = table_sets(run, question.command)
        keep = f"Keep both: --name {suggested_name(question, known, sets)}"
        raise RunError(where, problem, f"{keep}. Or replace them: --replace")


def follows(marker: Marker, run: Run) -> bool:
    """Whether tables were made from this run, at its present or an earlier length."""
    chain = {run.start.checksum, *(segment.checksum for segment in run.segments)}
    return not marker.previous or marker.previous in chain


def extends(new: Question, old: Question) -> bool:
    """Whether a question is another one, or that with further options; versions do not count."""
    if new.command != old.command or (new.options and not old.options):
        return False
    if any(added_options(new, old)):
        return False
    return all(new.options.get(name, new) == value for name, value in old.options.items())


def difference(new: Question, old: Question) -> str:
    """Say which options two questions differ in, with their values in both; the first few."""
    if not old.options:
        return "an earlier version did not record it"
    pairs = ((name, old.options.get(name), new.options.get(name)) for name in differing(new, old))
    changes = [change for pair in pairs for change in changes_of(*pair)]
    left = len(changes) - CHANGES_SHOWN
    return "; ".join([*changes[:CHANGES_SHOWN], *([f"{left} more"] if left > 0 else [])])


def changes_of(name: str, was: Any, now: Any) -> Iterator[str]:
    """Yield the changes of an option: one, or those of its parts if both values are groups."""
    if isinstance(was, dict) and isinstance(now, dict):
        for part in dict.fromkeys([*now, *was]):
            if was.get(part) != now.get(part):
                yield from changes_of(f"{name}.{part}", was.get(part), now.get(part))
        return
    old, new = ("{…}" if isinstance(x, dict) else json.dumps(x)[:60] for x in (was, now))
    yield f"{name}={old}, now {name}={new}"


def differing(new: Question, old: Question) -> Iterator[str]:
    """Yield the options that keep a question from extending another one, then those added."""
    yield from added_options(new, old)
    for name, value in old.options.items():
        if new.options.get(name, new) != value:
            yield name
    yield from (name for name in new.options if name not in old.options)


def added_options(new: Question, old: Question) -> list[str]:
    """Return the options of ``ADDED`` in which two questions differ."""
    return [n for n, v in ADDED.items() if new.options.get(n, v) != old.options.get(n, v)]


def suggested_name(new: Question, old: Question, taken: Sequence[str]) -> str:
    """Return a free name for the new set, from the first option whose value is another one."""
    changed = ((name, new.options.get(name)) for name in differing(new, old) if old.options)
    option, value = next(((name, value) for name, value in changed if value), ("other", ""))
    name = as_name(f"{option} {words_of(value)}")
    numbers = range(2, len(taken) + 3)
    return next(free for free in (name, *(f"{name}-{n}" for n in numbers)) if free not in taken)


def words_of(value: Any) -> str:
    """Return the words and numbers of a plain value; nothing for True, whose name says it all."""
    if value is True:
        return ""
    if isinstance(value, dict):
        return " ".join(f"{name} {words_of(part)}" for name, part in value.items() if part)
    if isinstance(value, list):
        return " ".join(map(words_of, value))
    return str(value)


def as_name(text: str) -> str:
    """Return a text as the name of a set."""
    return "-".join(re.findall("[A-Za-z0-9]+", text))[:LONGEST_NAME].strip("-")
