"""The chapter with the raw data: every table that the report shows, as a file beside the pages."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa
from markupsafe import Markup

from analysis.jobs.tables import encode_frame, marker_key, place_of, require_tables, table_set
from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, element, fragment, section
from analysis.report.pages.overview import format_bytes
from analysis.report.pages.report_data import TRAINING, DataFile, ReportData
from analysis.report.pages.website import ReportPage
from analysis.run.run import Run
from capture.shards.schema import EVALUATIONS, STEPS

KEY, TITLE = "data.html", "Data of this report"
CURVES = pa.schema([field for field in STEPS if field.name != "datums"])
"""Columns of the table of steps; the datums of each step stay in the run."""


def data_files(
    run: Run, sets: Mapping[str, str], missing: Collection[str], jobs: Sequence[str]
) -> list[DataFile]:
    """Read the files of all analyses that the report shows, and the losses and audit of the run.

    ``sets``: job → name of its set of tables, where it has a name.
    """
    found = list(training_files(run))
    for job in jobs:
        if job not in missing:
            found += analysis_files(run, job, table_set(job, sets.get(job, "")))
    return found


def training_files(run: Run) -> Iterator[DataFile]:
    for name, frame, schema in (
        ("steps", run.steps(), CURVES),
        ("evaluations", run.evaluations(), EVALUATIONS),
    ):
        data, rows = encode_frame(frame[schema.names], schema)
        yield DataFile(TRAINING, f"{name}.parquet", rows, data)


def analysis_files(run: Run, job: str, own: str) -> Iterator[DataFile]:
    """The tables of one set, and the list of them with the question that they answer."""
    store = place_of(run, own)
    yield DataFile(job, "tables.json", None, store.get(marker_key(own)))
    for file in require_tables(run, own).files:
        yield DataFile(job, file.key.rpartition("/")[2], file.rows, store.get(file.key))


def data_page(data: ReportData) -> ReportPage:
    lead = markup.paragraph(
        "The tables behind the pages, as Parquet files beside them. tables.json names the files of "
        "an analysis, their checksums and the question that they answer: command, options and "
        "versions. Shifts, tallies and checkpoints stay in the run.",
        kind="lead",
    )
    sources = dict.fromkeys(file.source for file in data.files)
    parts = [files_of(data, source) for source in sources]
    return ReportPage(KEY, TITLE, fragment(element("h1", TITLE), lead, *parts), KEY)


def files_of(data: ReportData, source: str) -> Markup:
    """The files of one analysis, and the question that they answer."""
    columns = [
        Column("file", link, "The file, as a link"),
        Column(
            "rows",
            lambda file: "" if file.rows is None else markup.integer(file.rows),
            "Rows of the table; empty for JSON",
            numeric=True,
        ),
        Column(
            "size",
            lambda file: format_bytes(len(file.data)),
            "Size of the file (1 KB = 1,000 bytes)",
            numeric=True,
        ),
    ]
    own = [file for file in data.files if file.source == source]
    used = data.sources.used.get(source)
    note = markup.paragraph("From ", markup.code(str(used)), kind="soft") if used else None
    table = markup.data_table(f"Files of {source}", columns, own)
    return section(source.capitalize(), note, table, identity=source)


def link(file: DataFile) -> Markup:
    return element("a", file.name, href=file.key)
