"""Read the tables that the report shows, each once.

Only the columns in ``WANTED`` are read; tables may have more. The tables of ``attribute`` are
required. Those of other jobs may be missing; pages then name the command that computes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from analysis.jobs.question import Question
from analysis.jobs.tables import (
    command_for,
    place_of,
    read_question,
    read_table,
    require_tables,
    table_key,
    table_set,
    table_sets,
)
from analysis.run.run import Run
from capture.errors import ColumnError, RunError

Frames = Mapping[str, pd.DataFrame]

STRING, INT, LONG, REAL, FLAG = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
GROUP = {"level": STRING, "unit": STRING, "group": INT}
NEURON = {"unit": STRING, "neuron": INT}
METHOD = {"evidence": STRING, "background": STRING, "select": STRING}
SUBJECT = {"level": STRING, **NEURON, "kind": STRING}
BOUNDS = {"low": REAL, "high": REAL}

WANTED: dict[str, dict[str, dict[str, pa.DataType]]] = {
    "attribute": {
        "groups": {**GROUP, "rows": LONG, "weight": REAL},
        "tokens": {
            **GROUP,
            **{"rank": INT, "token_id": INT, "token": STRING, "score": REAL, "q": REAL},
            **{"count": LONG, "weight": REAL, "expected": REAL, "relative_frequency": REAL},
            **{"up": REAL, "down": REAL, "strengthened": REAL, "weakened": REAL},
        },
        "windows": {
            **GROUP,
            **{"token_id": INT, "token": STRING, "window": INT, "first_step": INT},
            **{"end_step": INT, "weight": REAL, "expected": REAL},
        },
        "datums": {
            **GROUP,
            **{"datum": INT, "rows": INT, "weight": REAL, "step": INT},
            **{"position": pa.int16(), "shift": pa.float32()},
        },
        "confirmed": {
            **GROUP,
            **{"token_id": INT, "token": STRING, "positions": LONG, "change": REAL, **BOUNDS},
            **{"p": REAL, "q": REAL, "confirmed": FLAG, "rms_change": REAL, "alive": FLAG},
            **{"first_step": INT, "end_step": INT},
        },
        "nulls": {
            **{"case": STRING, "groups": LONG, "confirmed_groups": LONG},
            **BOUNDS,
        },
    },
    "ablate": {
        "flips": {
            **SUBJECT,
            **{"token": STRING, "proportion": REAL, "count": LONG, "flips": LONG},
            **{"notable": FLAG, "token_id": INT, **BOUNDS},
        },
        "contexts": {
            **SUBJECT,
            **{"token": STRING, "before": STRING, "after": STRING, "context": STRING},
        },
        "neurons": {
            **SUBJECT,
            **{"datums": INT, "positions": LONG, "flips": LONG, "flipped_tokens": INT},
            **{"notable_flipped": INT, "notable_share": REAL, "notable_low": REAL},
            **{"notable_high": REAL, "other_share": REAL, "other_low": REAL, "other_high": REAL},
            **{"ratio": REAL, "change": REAL, "change_low": REAL, "change_high": REAL},
            **{"attributed": FLAG, "rms_change": REAL},
            **{"notable_positions": LONG, "other_positions": LONG},
            **{
                f"{name}{end}": REAL
                for name in ("notable_change", "other_change", "difference")
                for end in ("", "_low", "_high")
            },
        },
        "layers": {
            **{"level": STRING, "unit": STRING, "neurons": INT, "flipped_tokens": REAL},
            **{"flipped_low": REAL, "flipped_high": REAL, "notable_share": REAL},
            **{"notable_low": REAL, "notable_high": REAL},
        },
        "tokens": {
            **GROUP,
            **{"token_id": INT, "token": STRING, "count": LONG, "change": REAL},
            **BOUNDS,
        },
        "moves": {**GROUP, "before": STRING, "after": STRING, "count": LONG},
    },
    "activations": {
        "ranks": {
            **{"token": STRING, "token_id": INT, "rank": INT},
            **{"min_unit": STRING, "min_neuron": INT, "min_mean": REAL},
            **{"max_unit": STRING, "max_neuron": INT, "max_mean": REAL},
        },
        "comparisons": {
            **{"figure": INT, **NEURON, "token": STRING, "focus": FLAG, "count": LONG},
            **{"q25": REAL, "median": REAL, "q75": REAL},
        },
        "histograms": {
            **{"figure": INT, **NEURON, "group": STRING, "low": REAL, "high": REAL},
            "share": REAL,
        },
    },
    "neurons": {
        "neurons": {
            **NEURON,
            **{"cluster": INT, "membership": REAL, "x": REAL, "y": REAL, "topics": INT},
            "topic_tokens": pa.list_(pa.list_(STRING)),
        },
        "clusters": {
            **{"cluster": INT, "size": INT, "stability": REAL},
            **BOUNDS,
            **{"tokens": pa.list_(STRING), "units": pa.list_(STRING)},
        },
    },
    "faithfulness": {
        "scores": {
            **{"unit": STRING, **METHOD, "neurons": INT, "auc": REAL, "auc_low": REAL},
            **{"auc_high": REAL, "precision": REAL, "precision_low": REAL},
            **{"precision_high": REAL, "baseline": FLAG},
        },
        "neurons": {**NEURON, **METHOD, "auc": REAL, "precision": REAL},
    },
}
"""Job → table → column → type."""
OPTIONAL = {"confirmed", "nulls"}
"""Tables of ``attribute`` that older versions did not write; they count as empty."""
REQUIRED = "attribute"
"""The job without whose tables there is no report."""
COURSE = ("trajectory", "transitions", "quanta", "spectrum")
"""Jobs about the course of training, which write a page of their own beside their tables."""


@dataclass(frozen=True)
class UsedTables:
    """A set of tables that the report shows."""

    place: str
    question: str
    """Command, options and steps in one line."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Tables by job and name. The tables of a job in ``missing`` are empty."""

    tables: Mapping[str, Frames]
    missing: Mapping[str, str]
    """Job → the command that computes its tables."""
    used: Mapping[str, UsedTables]

    def __getitem__(self, key: tuple[str, str]) -> pd.DataFrame:
        job, name = key
        return self.tables[job][name]


def read_sources(run: Run, sets: Mapping[str, str]) -> Sources:
    """Read all available tables. ``sets``: job → name of its set, where it has a name.

    Tables that were computed for an earlier state of the run, or that lack a column in ``WANTED``,
    count as missing. Raises ``RunError`` if those of ``attribute`` or of a set with a name are
    missing, ``ShardError`` if a file is damaged.
    """
    tables: dict[str, Frames] = {}
    missing, used = {}, {}
    for job, wanted in WANTED.items():
        own = table_set(job, sets.get(job, ""))
        try:
            tables[job] = {
                name: read_one(run, own, name, pa.schema(columns.items()))
                for name, columns in wanted.items()
            }
            place = "" if place_of(run, own) is run.store else f"{run.tables.uri}/"
            used[job] = UsedTables(f"{place}analysis/{own}", in_words(read_question(run, own)))
        except RunError:
            if job == REQUIRED or sets.get(job):
                raise
            tables[job] = {
                name: pa.schema(columns.items()).empty_table().to_pandas()
                for name, columns in wanted.items()
            }
            missing[job] = f"ontogeny {job} {run.uri}"
    return Sources(tables, missing, used)


def in_words(question: Question) -> str:
    """Return command, options and steps in one line."""
    return f"{question.line()}; {question.steps:,} steps"


def read_one(run: Run, job: str, name: str, schema: pa.Schema) -> pd.DataFrame:
    """One table; if it has levels, only the rows of neurons. Raises ``RunError`` if missing."""
    required = job.partition("/")[0] == REQUIRED
    remedy = f"Run: {command_for(run, job)}"
    if table_key(job, name) not in {file.key for file in require_tables(run, job).files}:
        if required and name in OPTIONAL:
            return schema.empty_table().to_pandas()
        raise RunError(run.uri, f"has no table {name!r} of {job}", remedy)
    wanted = {"level": ["neuron"]} if "level" in schema.names else {}
    try:
        return read_table(run, job, name, schema, wanted)
    except ColumnError as error:
        problem = f"has a table {name!r} of {job} made by another version: {error.problem}"
        raise RunError(run.uri, problem, remedy) from error


@dataclass(frozen=True)
class CoursePage:
    """The page of an analysis of the course of training, which lies beside its tables."""

    job: str
    question: str
    """Command, options and steps."""
    uri: str
    link: str
    """Relative to the report's folder; empty where the report lies outside the run."""


def course_pages(run: Run, report_uri: str) -> list[CoursePage]:
    """Return the pages of all sets of tables of ``COURSE``; those of earlier states are left out.

    Raises ``ShardError`` for damaged tables.
    """
    found = []
    for job in COURSE:
        for name in table_sets(run, job):
            own = table_set(job, name)
            key = f"analysis/{own}/index.html"
            try:
                marker, question = require_tables(run, own), read_question(run, own)
            except RunError:
                continue
            if key not in {file.key for file in marker.files}:
                continue
            store = place_of(run, own)
            inside = store is run.store and report_uri == f"{run.uri}/report"
            link = f"../{key}" if inside else ""
            found.append(CoursePage(job, in_words(question), f"{store.uri}/{key}", link))
    return found
