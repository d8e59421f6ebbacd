"""Pages made on demand are those of the written report, and nothing else can be read."""

import pytest
from report_pages import build, contents
from report_run import NEURONS, report_run

import ontogeny
from analysis.report.build import MANIFEST, ReportConfig, gather_report_data
from analysis.report.measured import neurons as measuring
from analysis.report.on_demand import FIRST, FOLDER, PagesOnDemand
from analysis.report.pages.website import neuron_key
from analysis.run.run import Run
from cluster.local.threads import run_job


@pytest.fixture(scope="module")
def run() -> Run:
    return report_run("memory://on-demand")


def opened(run: Run, **settings) -> PagesOnDemand:
    config = ReportConfig(**settings)
    return PagesOnDemand(gather_report_data(run, run_job, config, keep=False, on_demand=True))


def test_nothing_is_written(run: Run) -> None:
    pages, before = opened(run), contents(run.uri)
    pages.read(FIRST)
    pages.read(FOLDER + neuron_key(NEURONS[0]))
    assert contents(run.uri) == before


def test_every_file_is_that_of_the_written_report(run: Run) -> None:
    pages = opened(run)
    build(run)
    written = contents("memory://on-demand/report")
    assert len(written) > 20
    for key in written.keys() - {MANIFEST}:
        found = pages.read(FOLDER + key)
        assert found is not None, key
        assert bytes(found[0]) == written[key], key


def test_a_neuron_is_measured_when_its_page_is_opened_and_only_once(run: Run, monkeypatch) -> None:
    asked = []

    def measure(run, neurons, *rest, max_datums):
        asked.append(neurons)
        return measuring.nothing("is a test")

    monkeypatch.setattr(measuring, "measure_neurons", measure)
    pages = opened(run)
    pages.read(FIRST)
    pages.read(FOLDER + "neurons.html")
    assert asked == []
    for _ in range(2):
        pages.read(FOLDER + neuron_key(NEURONS[1]))
    assert asked == [[NEURONS[1]]]


def test_answers_that_come_later_are_shown() -> None:
    own = report_run("memory://on-demand-later", "attribute")
    pages, key = opened(own), f"{FOLDER}influence.html"
    before = pages.read(key)
    assert before is not None
    assert b"Not computed" in bytes(before[0])
    config = ontogeny.InfluenceConfig(method="bm25")
    ontogeny.influence(own, "datum:validation:0", config, save=True, name="later")
    after = pages.read(key)
    assert after is not None
    assert b"Answers named later" in bytes(after[0])


@pytest.fixture(scope="module")
def pages(run: Run) -> PagesOnDemand:
    return opened(run)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "index.html",
        "run.json",
        "config.yaml",
        "report/../run.json",
        "report/neuron/none.1.html",
        "report/report.json",
        "analysis/attribute/tables.json",
        "/etc/passwd",
        "../../etc/passwd",
    ],
)
def test_no_other_file_can_be_read(path: str, pages: PagesOnDemand) -> None:
    assert pages.read(path) is None


def test_all_neurons_have_a_page_unless_fewer_are_asked_for(run: Run) -> None:
    assert len(opened(run, max_neurons=None).data.neurons) == len(NEURONS)
    assert len(opened(run, max_neurons=2).data.neurons) == 2
