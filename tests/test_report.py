"""The report: every link leads somewhere, no text becomes markup, a rebuild leaves nothing over."""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from posixpath import dirname, join, normpath
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from analysis import ablation_tables, activation_tables, neuron_tables
from analysis.report import markup, neuron_page, neuron_tests
from analysis.report.build import (
    INDEX,
    MANIFEST,
    Built,
    ReportConfig,
    gather,
    report_store,
    write_report,
)
from analysis.report.material import Material, split_windows
from analysis.report.sources import WANTED
from analysis.report.timeline import TIMELINE, CountOutliers, read_timeline
from analysis.report.website import CHAPTERS, Page, neuron_key, rendered, token_key
from analysis.run import Run, open_run
from analysis.tables import write_tables
from capture.errors import CaptureError, ConfigError, RunError, ShardError
from capture.store import Store
from capture.store_config import StoreConfig
from cluster.commands import report as command
from cluster.local import run_job
from report_run import NEURONS, report_run
from tiny_run import copied, tiny_run

NASTY = "<script>alert('x')</script>\"&<img src=x onerror=y>"


class Reader(HTMLParser):
    """What a browser would see: elements, links, text; complains of tags that do not match."""

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
        if tag not in markup.VOID:
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


def build(run: Run, to: str | None = None, **settings: int) -> Built:
    store = report_store(run, to)
    return write_report(gather(run, run_job, ReportConfig(**settings)), store)


def contents(uri: str) -> dict[str, bytes]:
    store = Store(uri)
    return {key: store.get(key) for key in store.keys()}


@cache
def whole() -> dict[str, bytes]:
    """Every file of the report of a run with all analyses."""
    build(report_run("memory://report"))
    return contents("memory://report/report")


def pages() -> dict[str, str]:
    return {key: data.decode() for key, data in whole().items() if key.endswith(".html")}


def read(key: str) -> Reader:
    return Reader(pages()[key])


# --- laws -----------------------------------------------------------------------------------------


def test_every_link_leads_to_a_file_of_the_report_and_nowhere_else() -> None:
    for key, text in pages().items():
        page = Reader(text)
        places = [a["href"] for a in (*page.of("a"), *page.of("link"))]
        places += [script["src"] for script in page.of("script")]
        for place in places:
            assert place is not None
            assert place.startswith("#") or normpath(join(dirname(key), place)) in whole(), place


def test_the_list_of_files_is_complete() -> None:
    listed = json.loads(whole()[MANIFEST])["files"]
    assert {*listed, MANIFEST} == whole().keys()
    neurons = {neuron_key(neuron) for neuron in NEURONS}
    assert neurons | set(CHAPTERS) <= set(listed)


def test_every_page_is_well_formed_and_says_what_it_is() -> None:
    for key, text in pages().items():
        page = Reader(text)
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert text.startswith("<!doctype html>"), key
        assert page.of("html") == [{"lang": "en"}]
        assert len(page.of("h1")) == len(page.of("main")) == 1
        assert text.partition("</head>")[0].count("<title>") == 1
        assert len(set(ids)) == len(ids), key
        assert sum("aria-current" in link for link in page.of("a")) == 1
        headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
        assert (np.diff(headings) <= 1).all(), key
        assert all(head["scope"] == "col" for head in page.of("th"))


def test_pages_load_their_own_style_and_script_only() -> None:
    for text in pages().values():
        page = Reader(text)
        (policy,) = [m["content"] for m in page.of("meta") if "http-equiv" in m]
        assert policy is not None
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
        assert [script.keys() for script in page.of("script")] == [{"src", "defer"}]
        assert not any(name.startswith("on") for _, found in page.elements for name in found)
    assert b"url(" not in whole()["style.css"]
    assert b"http" not in whole()["style.css"] + whole()["report.js"]


def test_a_rebuilt_report_is_the_same_to_the_byte() -> None:
    run = report_run("memory://report-again")
    build(run, "memory://report-twice")
    first = contents("memory://report-twice")
    build(run, "memory://report-twice")
    assert contents("memory://report-twice") == first


def test_a_smaller_report_leaves_no_page_of_the_larger_one() -> None:
    run = report_run("memory://report-smaller")
    build(run, "memory://report-shrunk")
    build(run, "memory://report-shrunk", max_neurons=2)
    build(run, "memory://report-fresh", max_neurons=2)
    assert contents("memory://report-shrunk") == contents("memory://report-fresh")
    assert sum(key.startswith("neuron/") for key in contents("memory://report-fresh")) == 2


@given(text=st.text())
@settings(max_examples=50)
def test_text_never_becomes_markup(text: str) -> None:
    page = Reader(markup.element("p", text, title=text))
    assert [tag for tag, _ in page.elements] == ["p"]
    assert page.text == text
    assert page.of("p")[0]["title"] == text


# --- pages ----------------------------------------------------------------------------------------


def test_a_neuron_page_tells_the_whole_story() -> None:
    page = read(neuron_key(NEURONS[3]))
    headings = ["Which tokens taught it", "When they taught it", "The data that moved it most"]
    headings += ["When it is silenced", "When it is active", "Its relatives"]
    assert all(heading in page.text for heading in headings)
    assert f"Neuron 3 of {NEURONS[3][0]}" in page.text
    assert "62 % made weights stronger" in page.text
    assert "change 5.0× as often as others (50.00 % against 10.00 %)" in page.text
    assert "right token changes by −0.0200 nats on average (95 %: −0.0300 to −0.0100)" in page.text
    assert "w1 → w2 × 4" in page.text
    assert "fall into 2 groups" in page.text
    assert page.text.count("0.750") == 1
    turns = [a["href"] for a in page.of("a") if a["href"] and a["href"].startswith("../neuron/")]
    assert turns[:2] == [f"../{neuron_key(NEURONS[place])}" for place in (2, 4)]


def test_the_tables_read_are_those_that_the_analyses_write() -> None:
    written = {
        "ablate": ablation_tables.TABLES,
        "activations": activation_tables.TABLES,
        "neurons": neuron_tables.TABLES,
    }
    for job, tables in written.items():
        for name, columns in WANTED[job].items():
            for column, kind in columns.items():
                assert tables[name].field(column).type == kind, f"{job} {name} {column}"


def test_the_ends_of_the_list_have_one_neighbour() -> None:
    assert "← stronger" not in read(neuron_key(NEURONS[0])).text
    assert "weaker →" not in read(neuron_key(NEURONS[-1])).text


def test_the_strongest_place_of_a_datum_is_marked() -> None:
    run = open_run(tiny_run())
    row = SimpleNamespace(datum=2, rows=7, step=1, position=3, shift=-0.5)
    words = [run.tokens[token] for token in run.token_NT[2]]
    item = neuron_page.passage(material_of(run), row)
    marks = [f"<mark>{words[3]}</mark>", f'<mark class="target">{words[4]}</mark>']
    assert " ".join(marks) in item
    assert "at step 1, −0.500" in Reader(item).text


def test_the_last_position_of_a_datum_has_its_target_too() -> None:
    run = open_run(tiny_run())
    row = SimpleNamespace(datum=2, rows=7, step=1, position=7, shift=0.5)
    target = run.tokens[run.target_NT[2, 7]]
    item = neuron_page.passage(material_of(run), row)
    assert item.endswith(f'<mark class="target">{target}</mark></blockquote></li>')


def test_words_of_the_corpus_stay_words() -> None:
    run = open_run(tiny_run())
    vars(run)["tokens"] = [NASTY] * run.num_tokens
    row = SimpleNamespace(datum=0, rows=1, step=1, position=0, shift=0.5)
    page = Reader(neuron_page.passage(material_of(run), row))
    assert {tag for tag, _ in page.elements} == {"li", "div", "blockquote", "mark"}
    assert page.text.count(NASTY) == 9
    context = SimpleNamespace(before="<b>", after=NASTY, context=f"… {NASTY} (<b> {NASTY}) & …")
    page = Reader(neuron_tests.snippet(context))
    assert [tag for tag, _ in page.elements] == ["mark", "del", "ins"]
    assert page.text == f"… {NASTY} <b> {NASTY} & …"
    assert Reader(rendered(Page("x.html", NASTY, markup.Html(""), "x.html"), NASTY).decode())


def material_of(run: Run) -> Material:
    return Material(run, *[None] * 4)  # type: ignore[arg-type]  # passages need the run alone


def test_a_token_page_names_its_neurons() -> None:
    page = read(token_key(2))
    links = {a["href"] for a in page.of("a")}
    assert {f"../{neuron_key(NEURONS[place])}" for place in (0, 1)} <= links
    assert "Taught 2 of 8 neurons" in page.text
    assert "What silencing these neurons does to it" not in page.text


def test_the_overview_counts_what_was_recorded() -> None:
    run = open_run(tiny_run())
    page = read(INDEX)
    assert f"{sum(shard.rows for shard in run.shards('outliers')):,} outsized shifts" in page.text
    assert "24 of 24 steps (complete)" in page.text
    assert len(page.of("svg")) == 5


@pytest.mark.parametrize("job", [job for job in WANTED if job != "attribute"])
def test_pages_say_which_command_makes_what_is_missing(job: str) -> None:
    run = report_run(f"memory://report-without-{job}", *(other for other in WANTED if other != job))
    built = build(run)
    command = f"ontogeny {job} {run.uri}"
    assert built.missing == {job: command}
    found = contents(f"{run.uri}/report")
    assert any(command in data.decode() for key, data in found.items() if key in CHAPTERS)


def test_attribution_alone_makes_a_report() -> None:
    built = build(report_run("memory://report-alone", "attribute"))
    assert set(built.missing) == WANTED.keys() - {"attribute"}
    assert built.index == "memory://report-alone/report/index.html"


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (markup.whole(1234567), "1,234,567"),
        (markup.whole(float("nan")), "–"),
        (markup.decimals(-0.5, 2), "−0.50"),
        (markup.decimals(float("inf")), "∞"),
        (markup.significant(0.00012345), "0.000123"),
        (markup.significant(123456.0), "123,456"),
        (markup.significant(1.5e-9), "1.50e−09"),
        (markup.percent(0.1234, 1), "12.3 %"),
        (markup.probability(1e-9), "< 0.001"),
    ],
)
def test_numbers_as_they_are_written(written: str, text: str) -> None:
    assert written == text


def test_windows_are_split_by_neuron_and_token() -> None:
    table = pd.DataFrame(
        {
            "unit": ["b", "a", "a", "a"],
            "group": [0, 1, 1, 1],
            "token_id": [5, 7, 7, 5],
            "token": ["five", "seven", "seven", "five"],
            "window": [0, 1, 0, 0],
            "first_step": [0, 10, 0, 0],
            "end_step": [10, 20, 10, 10],
            "weight": [1.0, 2.0, 3.0, 4.0],
            "expected": [0.5, 0.5, 0.5, 0.5],
        }
    )
    found = split_windows(table)
    assert found.keys() == {("b", 0, 5), ("a", 1, 7), ("a", 1, 5)}
    seven = found["a", 1, 7]
    assert (seven.token, seven.edge_B1.tolist()) == ("seven", [0, 10, 20])
    assert seven.weight_B.tolist() == [3.0, 2.0]
    assert split_windows(table.head(0)) == {}


# --- when outliers fell ---------------------------------------------------------------------------


def count_job(run: Run) -> CountOutliers:
    return CountOutliers(tuple(run.layout.names), run.steps_done, 5)


@given(order=st.permutations(range(4)))
@settings(max_examples=10)
def test_outliers_counted_in_any_order_of_shards_give_the_same_table(order: list[int]) -> None:
    run = open_run(tiny_run())
    shards = run.shards("outliers")
    found = run_job(count_job(run), [shards[place] for place in order])
    wanted = run_job(count_job(run), shards)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-12)


def test_outliers_by_unit_and_time_are_those_of_the_record() -> None:
    run = open_run(tiny_run())
    found = run_job(count_job(run), run.shards("outliers")).query("rows > 0")
    shifts = run.shifts()
    groups = shifts.assign(first_step=shifts["step"] // 5 * 5).groupby(
        ["unit", "first_step"], observed=True
    )
    wanted = groups["abs_diff"].agg(rows="size", size="sum")
    found = found.set_index(["unit", "first_step"]).sort_index()
    assert found["rows"].to_dict() == wanted["rows"].to_dict()
    assert found["size"].to_dict() == pytest.approx(wanted["size"].to_dict())
    assert (found["end_step"] <= 24).all()


def test_a_second_report_reads_no_shard_again() -> None:
    run = report_run("memory://report-once", "attribute")
    first = read_timeline(run, run_job)
    pd.testing.assert_frame_equal(read_timeline(run, None), first)  # type: ignore[arg-type]
    assert list(first.columns) == TIMELINE.names


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"units": ("layers.0.linear1.weight",)}, "has rows of layers.0.linear1.bias"),
        ({"num_steps": 3}, "has rows of other steps"),
    ],
)
def test_rows_that_the_run_cannot_have_are_refused(change: dict, problem: str) -> None:
    run = open_run(tiny_run())
    with pytest.raises(ShardError, match=problem):
        run_job(replace(count_job(run), **change), run.shards("outliers"))


# --- errors ---------------------------------------------------------------------------------------


def without_attribution() -> None:
    copied(tiny_run(), "memory://report-bare")
    build(open_run("memory://report-bare"))


def without_neurons() -> None:
    run = report_run("memory://report-units")
    schemas = {name: pa.schema(of.items()) for name, of in WANTED["attribute"].items()}
    frames = {name: schema.empty_table().to_pandas() for name, schema in schemas.items()}
    write_tables(run, "attribute", frames, schemas)
    build(run)


def into_a_full_folder() -> None:
    Store("memory://report-full").put("thesis.tex", b"")
    build(report_run("memory://report-source"), "memory://report-full")


def over_a_damaged_list() -> None:
    Store("memory://report-damaged").put(MANIFEST, b"{}")
    build(report_run("memory://report-source"), "memory://report-damaged")


def of_no_neurons() -> None:
    ReportConfig(max_neurons=0)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (
            without_attribution,
            RunError,
            "memory://report-bare: has no tables of attribute. "
            "Run: ontogeny attribute memory://report-bare.",
        ),
        (
            without_neurons,
            RunError,
            "memory://report-units: has attributions, but none of neurons. "
            "Run: ontogeny attribute memory://report-units --level neuron.",
        ),
        (
            into_a_full_folder,
            RunError,
            "memory://report-full: holds thesis.tex and is no report. "
            "Choose an empty folder with --to.",
        ),
        (
            over_a_damaged_list,
            RunError,
            "memory://report-damaged/report.json: is not a readable list of the report's files. "
            "Remove the folder and run the command again.",
        ),
        (of_no_neurons, ConfigError, "--neurons: got 0, must be at least 1."),
    ],
)
def test_error_texts(act: Callable[[], None], kind: type[CaptureError], message: str) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_a_report_in_the_run_is_written_as_the_run_is_read() -> None:
    settings = StoreConfig(retries=3, patience_seconds=7.0)
    run = open_run(tiny_run(), settings)
    assert report_store(run).config == settings


def test_nothing_of_a_full_folder_is_touched() -> None:
    with pytest.raises(RunError):
        into_a_full_folder()
    assert contents("memory://report-full") == {"thesis.tex": b""}


def test_tables_of_an_earlier_state_count_as_missing() -> None:
    run = report_run("memory://report-old")
    key = "analysis/ablate/flips.parquet"
    marker = "analysis/ablate/tables.json"
    assert run.store.exists(key)
    run.store.delete(marker)
    assert "ablate" in build(run).missing


# --- command --------------------------------------------------------------------------------------


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    arguments = parser.parse_args(["report", *words])
    return arguments.command(arguments, Console(width=110, highlight=False))


def test_the_command_says_where_the_report_is_and_what_it_lacks(capsys) -> None:
    report_run("memory://report-command", "attribute", "ablate")
    assert run_command("memory://report-command", "--neurons", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "memory://report-command/report/index.html"
    assert any("neurons (ontogeny neurons memory://report-command)" in line for line in lines)
    assert not any("ablate" in line for line in lines)


def test_the_command_can_be_quiet_and_write_elsewhere(capsys) -> None:
    report_run("memory://report-quiet", "attribute")
    assert run_command("memory://report-quiet", "--to", "memory://elsewhere", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert Store("memory://elsewhere").exists(INDEX)
    assert not Store("memory://report-quiet/report").exists(INDEX)
