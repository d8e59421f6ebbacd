"""Write the report of a run to a folder or prefix.

``report.json`` lists the files of a report. A rebuild overwrites them and removes those that are no
longer part of the report, and nothing else; a folder that holds other files is refused. The first
page is written last, so a report that has one is complete.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources

from analysis.jobs.job import Runner
from analysis.jobs.tables import check_set_name, read_question, table_set
from analysis.report.measured.neurons import measured_alone, measured_together
from analysis.report.pages.chapters import chapters
from analysis.report.pages.comparison.compared_runs import compare_runs
from analysis.report.pages.data_page import data_files
from analysis.report.pages.neuron.neuron_page import neuron_page
from analysis.report.pages.neuron_table import neurons_page
from analysis.report.pages.overview import overview
from analysis.report.pages.report_data import ReportData, counted_shifts
from analysis.report.pages.sources import WANTED, UsedTables, course_pages, read_sources
from analysis.report.pages.token_pages import token_page, tokens_page, vocabulary_counts
from analysis.report.pages.website import (
    CHAPTERS,
    ReportPage,
    neuron_key,
    render_page,
    token_key,
)
from analysis.report.timeline import read_timeline
from analysis.run.run import Run
from capture.errors import ConfigError, RunError, at_least
from capture.store import Store

INDEX = "index.html"
MANIFEST = "report.json"
ASSETS = ("style.css", "report.js")
NUM_WRITERS = 8
"""Files written in parallel, because object stores have a high latency."""

ProgressReport = Callable[[int, int], None]
"""Called with the number of neurons whose page is done, and the number of all."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of the report."""

    max_neurons: int | None = 1200
    """Number of neurons with a page: those with the most evidence; None for all."""
    attribution: str = ""
    """Name of the attribution that the report shows; by default the one without a name."""
    sets: Mapping[str, str] = field(default_factory=dict)
    """Other analysis → name of its tables that the report shows; likewise."""

    def __post_init__(self) -> None:
        if self.max_neurons is not None:
            at_least("--neurons", self.max_neurons, 1)
        if self.attribution:
            check_set_name("--attribution", self.attribution)
        for job, name in self.sets.items():
            if job not in WANTED:
                problem = f"got {job!r}, must be one of {', '.join(WANTED)}"
                raise ConfigError("--set", problem, "For example: --set ablate=heads")
            check_set_name("--set", name)

    @property
    def names(self) -> dict[str, str]:
        """Analysis → name of its tables, for those that have a name."""
        return {"attribute": self.attribution, **self.sets}


@dataclass(frozen=True)
class WrittenReport:
    """Result of ``write_report``."""

    index: str
    """Address of the first page."""
    num_files: int
    missing: dict[str, str]
    """Analyses that the report lacks, each with the command that computes it."""
    used: dict[str, UsedTables]
    """Other analyses, each with its tables."""


def report_store(run: Run, to: str | None = None) -> Store:
    """Open the folder or prefix of the report, by default ``report/`` in the run.

    Raises ``RunError`` if it holds something other than a report, and ``ShardError`` if it lies in
    the run but is a link that leads out of it.
    """
    store = Store(f"{run.uri}/report", run.store.config) if to is None else Store(to)
    if store.uri.startswith(f"{run.uri}/"):
        # The report's own store takes the link's target for its root, so the run's store must ask.
        run.store.exists(f"{store.uri.removeprefix(f'{run.uri}/')}/{MANIFEST}")
    earlier_files(store)
    return store


def write_report(
    data: ReportData, store: Store, report: ProgressReport | None = None
) -> WrittenReport:
    """Write all pages, the first page last, and remove files of an earlier report."""
    before, keys = earlier_files(store), planned_files(data)
    # Until the end the list has the files of both reports: a rebuild after an interruption then
    # removes all that is left over.
    store.put(MANIFEST, manifest(data.run, before | keys))
    store.delete(INDEX)
    write_files(store, report_pages(data, report), data)
    for key in sorted(before - keys):
        store.delete(key)
    store.put(MANIFEST, manifest(data.run, keys))
    first = overview(data, course_pages(data.run, store.uri))
    store.put(INDEX, render_page(first, data.run.uri))
    found = {"missing": dict(data.sources.missing), "used": dict(data.sources.used)}
    return WrittenReport(f"{store.uri}/{INDEX}", len(keys), **found)


def planned_files(data: ReportData) -> set[str]:
    """Keys of all files of the report except its list of files."""
    neurons = {neuron_key(neuron) for neuron in data.neurons}
    tokens = {token_key(token_id) for token_id in data.neurons_by_token}
    raw = {file.key for file in data.files}
    return neurons | tokens | raw | set(CHAPTERS) | set(ASSETS)


def manifest(run: Run, keys: set[str]) -> bytes:
    return json.dumps({"run": run.uri, "files": sorted(keys)}, indent=1).encode()


def earlier_files(store: Store) -> set[str]:
    """Keys of the report in the folder, empty if there is none.

    Raises ``RunError`` if the folder holds anything else, or a list that cannot be read.
    """
    if store.exists(MANIFEST):
        try:
            return {str(key) for key in json.loads(store.get(MANIFEST))["files"]}
        except (ValueError, KeyError, TypeError) as error:
            problem = "is not a readable list of the report's files"
            remedy = "Remove the folder and run the command again"
            raise RunError(f"{store.uri}/{MANIFEST}", problem, remedy) from error
    if found := store.keys():
        problem = f"holds {found[0]} and is not a report"
        raise RunError(store.uri, problem, "Choose an empty folder with --to")
    return set()


def gather_report_data(
    run: Run,
    run_job: Runner,
    config: ReportConfig,
    *,
    keep: bool = True,
    other: Run | None = None,
    report: ProgressReport | None = None,
    on_demand: bool = False,
) -> ReportData:
    """Read the tables and compute the counts that the pages show.

    With ``keep``, the counts are written to ``run.tables`` for the next report. ``other`` is a run
    to compare with. ``report`` is called with datums measured and their number. All neurons are
    measured together, or with ``on_demand`` each alone when it is asked for. Raises ``RunError``
    if one of the runs has no attribution of neurons, ``ShardError`` if tables are damaged.
    """
    sources = read_sources(run, config.names)
    groups = sources["attribute", "groups"].iloc[: config.max_neurons]
    if not len(groups):
        problem = "has attributions, but none of neurons"
        raise RunError(run.uri, problem, f"Run: ontogeny attribute {run.uri} --level neuron")
    neurons = list(zip(groups["unit"], groups["group"].tolist(), strict=True))
    question = read_question(run, table_set("attribute", config.attribution))
    compared = None if other is None else compare_runs(run, sources, other)
    timeline = read_timeline(run, run_job, keep=keep)
    tokens = sources["attribute", "tokens"]
    if on_demand:
        measured = measured_alone(run, tokens, question)
    else:
        measured = measured_together(run, neurons, tokens, question, report)
    files = data_files(run, config.names, sources.missing, list(WANTED))
    counted = counted_shifts(question.options)
    return ReportData(run, sources, timeline, measured, groups, files, compared, counted)


def report_pages(data: ReportData, report: ProgressReport | None) -> Iterator[ReportPage]:
    """Yield all pages except the first page of the report."""
    yield neurons_page(data)
    yield tokens_page(data)
    yield from chapters(data)
    counts = vocabulary_counts(data)
    for token_id in data.neurons_by_token:
        yield token_page(data, token_id, int(counts[token_id]))
    total = len(data.neurons)
    for index in range(total):
        yield neuron_page(data, index)
        if report:
            report(index + 1, total)


def write_files(store: Store, pages: Iterator[ReportPage], data: ReportData) -> None:
    """Write assets, raw data and pages in parallel, with a bounded number of pages in memory."""
    folder = resources.files("analysis.report")
    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        pending: deque[Future[None]] = deque(
            pool.submit(store.put, name, (folder / name).read_bytes()) for name in ASSETS
        )
        pending += [pool.submit(store.put, file.key, file.data) for file in data.files]
        for page in pages:
            pending.append(pool.submit(store.put, page.key, render_page(page, data.run.uri)))
            if len(pending) > 2 * NUM_WRITERS:
                pending.popleft().result()
        for future in pending:
            future.result()
