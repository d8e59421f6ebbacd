"""Pages of a complete report, and a reader of HTML."""

from functools import cache
from html.parser import HTMLParser
from typing import Any

from report_run import report_run

from analysis.report.build import (
    ReportConfig,
    WrittenReport,
    gather_report_data,
    report_store,
    write_report,
)
from analysis.report.drawing import markup
from analysis.run.run import Run
from capture.store import Store
from cluster.local.threads import run_job

NASTY = "<script>alert('x')</script>\"&<img src=x onerror=y>"


class Reader(HTMLParser):
    """Elements and text of an HTML document. Asserts that all tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in markup.VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return "".join(self.words)


def build(run: Run, to: str | None = None, **settings: Any) -> WrittenReport:
    store = report_store(run, to)
    return write_report(gather_report_data(run, run_job, ReportConfig(**settings)), store)


def contents(uri: str) -> dict[str, bytes]:
    store = Store(uri)
    return {key: store.get(key) for key in store.keys()}


@cache
def whole() -> dict[str, bytes]:
    """Contents of all files of a report with all analyses, by key."""
    build(report_run("memory://report"))
    return contents("memory://report/report")


def pages() -> dict[str, str]:
    return {key: data.decode() for key, data in whole().items() if key.endswith(".html")}


def read(key: str) -> Reader:
    return Reader(pages()[key])
