"""The report in a browser, read from disk: no errors, search, sorting, keyboard, narrow screens."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_run import NEURONS, report_run

from analysis.report.build import ReportConfig, gather_report_data, report_store, write_report
from analysis.report.pages.neuron_table import TABLE_ID
from analysis.report.pages.website import CHAPTERS, neuron_key, token_key
from cluster.local.threads import run_job

api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH")

PAGES = [*CHAPTERS, neuron_key(NEURONS[3]), token_key(3)]
Browser = Any
Page = Any
Request = Any
"""Types of Playwright, which may not be installed."""
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on disk."""
    run = report_run(str(tmp_path_factory.mktemp("report") / "run"))
    write_report(gather_report_data(run, run_job, ReportConfig()), report_store(run))
    return Path(run.uri) / "report"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visit(browser: Browser, folder: Path) -> Iterator[Open]:
    """A function that opens a page of the report. Any error in the browser fails the test."""
    complaints: list[str] = []
    contexts = []

    def note_failure(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # leaving a page aborts what it still loads
            complaints.append(f"{request.url}: {request.failure}")

    def open_page(key: str, **settings: object) -> Page:
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", note_failure)
        page.goto((folder / key).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def first_cells(page: Page) -> list[str]:
    """First column of the visible rows of the table of neurons."""
    return page.locator(f"#{TABLE_ID} tbody tr:visible td:first-child").all_inner_texts()


@pytest.mark.parametrize("width", [320, 360])
def test_no_page_is_wider_than_a_narrow_screen(visit: Open, folder: Path, width: int) -> None:
    page = visit("index.html", viewport={"width": width, "height": 700})
    for key in PAGES:
        page.goto((folder / key).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, key


def test_the_style_has_a_light_and_a_dark_theme(visit: Open) -> None:
    papers = {
        visit("index.html", color_scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    }
    assert papers == {"rgb(252, 251, 248)", "rgb(22, 24, 27)"}


def test_searching_shows_the_rows_with_every_word(visit: Open) -> None:
    page = visit("neurons.html")
    field = page.get_by_label("Search by unit, neuron or token")
    field.fill("LAYERS.1 linear2")
    assert first_cells(page) == [f"{unit} · {number}" for unit, number in NEURONS[6:]]
    assert page.locator("output").inner_text() == "2 of 8"
    field.fill("")
    assert len(first_cells(page)) == len(NEURONS)


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ("neuron 3", 3),
        (f"{NEURONS[3][0]}:3", 3),
        ("NEURON 0", 0),
    ],
)
def test_a_neuron_is_found_by_its_number(visit: Open, query: str, number: int) -> None:
    page = visit("neurons.html")
    page.get_by_label("Search by unit, neuron or token").fill(query)
    wanted = [
        key for key in NEURONS if key[1] == number and key[0] in (query.partition(":")[0], key[0])
    ]
    if ":" in query:
        wanted = [NEURONS[3]]
    assert first_cells(page) == [f"{unit} · {number}" for unit, number in wanted]


def test_a_number_is_no_part_of_another_number_or_of_a_unit(visit: Open) -> None:
    page = visit("neurons.html")
    field = page.get_by_label("Search by unit, neuron or token")
    for query in ("neuron 30", "neuron 1", "89"):
        field.fill(query)
        assert first_cells(page) == []


def test_the_query_is_kept_in_the_address(visit: Open) -> None:
    page = visit("neurons.html")
    page.get_by_label("Search by unit, neuron or token").fill("neuron 3")
    assert page.evaluate("location.href").endswith("neurons.html#q=neuron+3")
    page.locator(f"#{TABLE_ID} tbody tr:visible a").first.click()
    page.go_back()
    assert len(first_cells(page)) == len(NEURONS) // 2
    page.goto(page.url.partition("#")[0] + "#q=linear1%20neuron%200")
    assert len(first_cells(page)) == len(NEURONS) // 4
    assert page.get_by_label("Search by unit, neuron or token").input_value() == "linear1 neuron 0"


def test_the_field_of_every_page_leads_to_the_neurons(visit: Open) -> None:
    page = visit(neuron_key(NEURONS[3]))
    page.get_by_label("Find").fill("neuron 0")
    page.keyboard.press("Enter")
    page.wait_for_url("**/report/neurons.html#q=neuron+0")
    assert len(first_cells(page)) == len(NEURONS) // 2


NUMBERS = [
    *("−12.5", "−0.4", "−1.0e−05", "0.0 %", "< 0.001", "0.25 to 0.5", "1 of 2 tokens", "7"),
    *("12.3 KB", "1.2 MB", "1,234,567", "∞"),
]
"""Cells of numeric columns in ascending order."""


def test_numbers_are_sorted_by_value_in_every_notation(visit: Open) -> None:
    page = visit("neurons.html")
    values = page.evaluate("texts => texts.map(numberIn)", NUMBERS[:-1])
    assert values == sorted(values)
    assert page.evaluate("numberIn('∞') === Infinity && Number.isNaN(numberIn('–'))")
    order = page.evaluate("['b 10', 'b 9', 'a 11'].sort((a, b) => compare(a, b, false))")
    assert order == ["a 11", "b 9", "b 10"]


def test_sorting_is_descending_first_and_announced(visit: Open) -> None:
    page = visit("neurons.html")
    head = page.locator("th", has_text="outliers")
    shown = first_cells(page)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert first_cells(page) == shown
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert first_cells(page) == shown[::-1]
    page.locator("th", has_text="neuron").get_by_role("button").click()
    assert page.locator("th[aria-sort]").count() == 1
    assert first_cells(page) == sorted(shown)


def test_rows_without_a_number_stay_last(visit: Open) -> None:
    page = visit("neurons.html")
    button = page.locator("th", has_text="difference").get_by_role("button")
    for _ in range(2):
        button.click()
        assert {cell.split(" ")[0] for cell in first_cells(page)[-2:]} == {NEURONS[0][0]}


def test_the_keyboard_reaches_content_and_headers(visit: Open) -> None:
    page = visit("neurons.html")
    focused = page.locator(":focus")
    page.keyboard.press("Tab")
    assert focused.inner_text() == "Skip to the content"
    page.keyboard.press("Enter")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(focused.evaluate("element => element.tagName"))
    assert reached == ["INPUT", "DIV", "BUTTON", "BUTTON"]
    outline = focused.evaluate("element => getComputedStyle(element).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").count() == 1


def test_a_neuron_links_to_its_tokens(visit: Open) -> None:
    page = visit("neurons.html")
    page.locator(f"#{TABLE_ID} tbody a").nth(3).click()
    unit, number = NEURONS[3]
    assert page.locator("h1").inner_text() == f"Neuron {number} of {unit}"
    assert page.locator("#tokens tbody tr").count() == 3
    page.locator("#tokens tbody a").first.click()
    assert "/token/" in page.url
    page.locator("nav a", has_text="Overview").click()
    assert page.url.endswith("index.html")


def test_without_scripts_the_table_is_complete(visit: Open) -> None:
    page = visit("neurons.html", java_script_enabled=False)
    assert len(first_cells(page)) == len(NEURONS)
    assert page.locator("form:visible").count() == 0
