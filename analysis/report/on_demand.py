"""The pages of a report, each made when it is asked for: no file is written.

A report of a large model would have tens of thousands of files, and all its neurons would be
measured before the first page can be read. Here each page is made from the tables of the run, and a
neuron is measured when its page is opened.
"""

import mimetypes
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

import pandas as pd

from analysis.report.build import ASSETS, INDEX
from analysis.report.pages import training_page
from analysis.report.pages.chapters import chapters
from analysis.report.pages.influence import influence_page
from analysis.report.pages.neuron.neuron_page import neuron_page
from analysis.report.pages.neuron_table import neurons_page
from analysis.report.pages.overview import overview
from analysis.report.pages.report_data import ReportData
from analysis.report.pages.sources import course_pages
from analysis.report.pages.token_pages import token_page, tokens_page, vocabulary_counts
from analysis.report.pages.website import ReportPage, neuron_key, render_page, token_key

FOLDER = "report/"
"""Where the report is among the addresses, as in the folder of a run: links lead out of it."""
FIRST = FOLDER + INDEX
"""Path of the first page."""


@dataclass(frozen=True, eq=False)
class PagesOnDemand:
    """The files of a report, and the run's own pages on the course of training that it links to."""

    data: ReportData
    """Gathered with ``on_demand``."""

    def read(self, path: str) -> tuple[bytes | memoryview, str] | None:
        """Return the content of a file and its media type; None if there is no such file.

        ``path``: relative to the run, as ``report/index.html`` is. Raises ``RunError`` and
        ``ShardError`` if the run cannot be read.
        """
        inside = path.startswith(FOLDER)
        content = self.report_file(path.removeprefix(FOLDER)) if inside else self.run_page(path)
        if content is None:
            return None
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return content, f"{kind}; charset=utf-8" if kind.startswith("text/") else kind

    def report_file(self, key: str) -> bytes | memoryview | None:
        """Return one file of the report."""
        if key in ASSETS:
            return (resources.files("analysis.report") / key).read_bytes()
        if key in self.raw:
            return self.raw[key]
        page = self.page(key)
        return None if page is None else render_page(page, self.data.run.uri)

    def page(self, key: str) -> ReportPage | None:
        """Make one page of the report; those on influence and training from the tables of now."""
        if key == INDEX:
            return overview(self.data, course_pages(self.data.run, f"{self.data.run.uri}/report"))
        if key in self.neuron_indices:
            return neuron_page(self.data, self.neuron_indices[key])
        if key in self.token_ids:
            token_id = self.token_ids[key]
            return token_page(self.data, token_id, int(self.token_counts[token_id]))
        if key == influence_page.KEY:
            return influence_page.influence_page(self.data)
        if key == training_page.KEY:
            return training_page.training_page(self.data.run)
        return self.tables.get(key)

    def run_page(self, path: str) -> bytes | None:
        """Return one of the run's pages on the course of training."""
        run = self.data.run
        linked = {page.link for page in course_pages(run, f"{run.uri}/report")}
        return run.store.get(path) if f"../{path}" in linked else None

    @cached_property
    def raw(self) -> dict[str, bytes | memoryview]:
        return {file.key: file.data for file in self.data.files}

    @cached_property
    def neuron_indices(self) -> dict[str, int]:
        return {neuron_key(neuron): index for index, neuron in enumerate(self.data.neurons)}

    @cached_property
    def token_ids(self) -> dict[str, int]:
        return {token_key(token_id): token_id for token_id in self.data.neurons_by_token}

    @cached_property
    def token_counts(self) -> pd.Series:
        return vocabulary_counts(self.data)

    @cached_property
    def tables(self) -> dict[str, ReportPage]:
        """The pages that list neurons, tokens and the results of analyses."""
        pages = [neurons_page(self.data), tokens_page(self.data), *chapters(self.data)]
        return {page.key: page for page in pages}
