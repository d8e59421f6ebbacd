"""Write the report of a run: pages first, the first page last, pages of an earlier report away.

A report knows its files (``report.json``), so that rebuilding it removes what it wrote before and
nothing else. A folder that holds other things is refused.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources

import pandas as pd

from analysis.activations.histograms import neuron_histograms
from analysis.jobs.job import Runner
from analysis.report.pages.chapters import chapters
from analysis.report.pages.neuron_page import neuron_page
from analysis.report.pages.neuron_table import neurons_page
from analysis.report.pages.overview import overview
from analysis.report.pages.report_data import Material, parts
from analysis.report.pages.sources import read_sources
from analysis.report.pages.token_pages import token_page, tokens_page, vocabulary_counts
from analysis.report.pages.website import CHAPTERS, Neuron, Page, neuron_key, rendered, token_key
from analysis.report.timeline import read_timeline
from analysis.run.run import Run
from capture.errors import RunError, at_least
from capture.store.store import Store

INDEX = "index.html"
MANIFEST = "report.json"
ASSETS = ("style.css", "report.js")
WRITERS = 8
"""Files written at once; object stores answer slowly."""

Report = Callable[[int, int], None]
"""Told how many neurons have their page, of how many."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report holds."""

    max_neurons: int = 1200
    """Neurons with a page of their own: those with the most evidence."""

    def __post_init__(self) -> None:
        at_least("--neurons", self.max_neurons, 1)


@dataclass(frozen=True)
class Built:
    """What was written."""

    index: str
    """Where the first page lies."""
    num_files: int
    missing: dict[str, str]
    """Analyses that the report lacks, each with the command that does it."""


def report_store(run: Run, to: str | None = None) -> Store:
    """Where the report goes: a folder or prefix, the run's own ``report/`` by default.

    Raises ``RunError`` where it holds something else than a report.
    """
    store = Store(f"{run.uri}/report", run.store.config) if to is None else Store(to)
    earlier_files(store)
    return store


def write_report(material: Material, store: Store, report: Report | None = None) -> Built:
    """Write all pages, the first one last; remove those of an earlier report."""
    before, keys = earlier_files(store), planned(material)
    store.put(MANIFEST, manifest(material.run, before | keys))
    store.delete(INDEX)
    write_all(store, pages(material, report), material.run.uri)
    for key in sorted(before - keys):
        store.delete(key)
    store.put(MANIFEST, manifest(material.run, keys))
    store.put(INDEX, rendered(overview(material), material.run.uri))
    return Built(f"{store.uri}/{INDEX}", len(keys), dict(material.sources.missing))


def planned(material: Material) -> set[str]:
    """Keys of all that the report consists of, its list of files left out."""
    neurons = {neuron_key(neuron) for neuron in material.neurons}
    tokens = {token_key(token_id) for token_id in material.neurons_by_token}
    return neurons | tokens | set(CHAPTERS) | set(ASSETS)


def manifest(run: Run, keys: set[str]) -> bytes:
    return json.dumps({"run": run.uri, "files": sorted(keys)}, indent=1).encode()


def earlier_files(store: Store) -> set[str]:
    """Files of the report that the folder holds; raises ``RunError`` if it holds anything else."""
    if store.exists(MANIFEST):
        try:
            return {str(key) for key in json.loads(store.get(MANIFEST))["files"]}
        except (ValueError, KeyError, TypeError) as error:
            problem = "is not a readable list of the report's files"
            remedy = "Remove the folder and run the command again"
            raise RunError(f"{store.uri}/{MANIFEST}", problem, remedy) from error
    if found := store.keys():
        problem = f"holds {found[0]} and is no report"
        raise RunError(store.uri, problem, "Choose an empty folder with --to")
    return set()


def gather(run: Run, run_job: Runner, config: ReportConfig) -> Material:
    """Read all that the pages need.

    Raises ``RunError`` where ``attribute`` has not been done for neurons, ``ShardError`` where
    tables are damaged.
    """
    sources = read_sources(run)
    groups = sources["attribute", "groups"].head(config.max_neurons)
    if not len(groups):
        problem = "has attributions, but none of neurons"
        raise RunError(run.uri, problem, f"Run: ontogeny attribute {run.uri} --level neuron")
    taught = taught_tokens(sources["attribute", "tokens"], groups)
    if run.config.model.kind == "hf":  # whose activations are not read: no such figure
        taught = {}
    histograms = neuron_histograms(run, taught)
    return Material(run, sources, read_timeline(run, run_job), histograms, groups)


def taught_tokens(tokens: pd.DataFrame, groups: pd.DataFrame) -> dict[Neuron, list[int]]:
    """Ids of the tokens that taught the report's neurons."""
    known = set(zip(groups["unit"], groups["group"].tolist(), strict=True))
    return {
        neuron: table["token_id"].tolist()
        for neuron, table in parts(tokens).items()
        if neuron in known
    }


def pages(material: Material, report: Report | None) -> Iterator[Page]:
    """All but the first page, one after the other."""
    yield neurons_page(material)
    yield tokens_page(material)
    yield from chapters(material)
    counts = vocabulary_counts(material)
    for token_id in material.neurons_by_token:
        yield token_page(material, token_id, int(counts[token_id]))
    total = len(material.neurons)
    for place in range(total):
        yield neuron_page(material, place)
        if report:
            report(place + 1, total)


def write_all(store: Store, made: Iterator[Page], run_uri: str) -> None:
    """Write assets and pages, some at once and a bounded number waiting."""
    folder = resources.files("analysis.report")
    with ThreadPoolExecutor(WRITERS) as pool:
        waiting: deque[Future[None]] = deque(
            pool.submit(store.put, name, (folder / name).read_bytes()) for name in ASSETS
        )
        for page in made:
            waiting.append(pool.submit(store.put, page.key, rendered(page, run_uri)))
            if len(waiting) > 2 * WRITERS:
                waiting.popleft().result()
        for future in waiting:
            future.result()
