"""The report: links resolve, text is never interpreted as markup, a rebuild leaves no old pages."""

import json
import re
from posixpath import dirname, join, normpath
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from report_pages import NASTY, Reader, build, contents, pages, read, whole
from report_run import NEURONS, TABLES, report_run
from tiny_run import tiny_run

from analysis.ablation import tables as ablation_tables
from analysis.activations import tables as activation_tables
from analysis.attribution import tables as attribution_tables
from analysis.jobs.tables import write_tables
from analysis.neurons import tables as neuron_tables
from analysis.report.build import (
    INDEX,
    MANIFEST,
)
from analysis.report.drawing import markup
from analysis.report.pages.neuron import neuron_effects, passages
from analysis.report.pages.report_data import ReportData
from analysis.report.pages.sources import OPTIONAL, WANTED
from analysis.report.pages.website import CHAPTERS, ReportPage, neuron_key, render_page, token_key
from analysis.run.run import Run, open_run

# --- laws -----------------------------------------------------------------------------------------


def test_every_link_leads_to_a_file_of_the_report() -> None:
    for key, text in pages().items():
        page = Reader(text)
        addresses = [a["href"] for a in (*page.of("a"), *page.of("link"))]
        addresses += [script["src"] for script in page.of("script")]
        for address in addresses:
            assert address is not None
            path, _, name = address.partition("#")
            target = normpath(join(dirname(key), path)) if path else key
            assert target in whole(), address
            assert f' id="{name}"' in pages()[target] if name else True, address


def test_the_list_of_files_is_complete() -> None:
    listed = json.loads(whole()[MANIFEST])["files"]
    assert {*listed, MANIFEST} == whole().keys()
    neurons = {neuron_key(neuron) for neuron in NEURONS}
    assert neurons | set(CHAPTERS) <= set(listed)


def test_every_page_is_well_formed_and_has_title_heading_and_language() -> None:
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


def test_pages_load_only_the_style_and_script_of_the_report() -> None:
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
def test_text_is_never_interpreted_as_markup(text: str) -> None:
    page = Reader(markup.element("p", text, title=text))
    assert [tag for tag, _ in page.elements] == ["p"]
    assert page.text == text
    assert page.of("p")[0]["title"] == text


# --- pages ----------------------------------------------------------------------------------------


def test_a_neuron_page_has_all_sections_and_figures() -> None:
    page = read(neuron_key(NEURONS[3]))
    headings = ["Token evidence", "Token evidence over training", "Passages of largest activation"]
    headings += ["Datums with the largest single shifts", "Tokens that it writes"]
    headings += ["Effect of ablating the neuron", "Activations", "Related neurons"]
    assert all(heading in page.text for heading in headings)
    assert f"Neuron 3 of {NEURONS[3][0]}" in page.text
    assert "62 % moved weights away from zero" in page.text
    assert "5.0×" not in page.text
    assert "Yes, 1 of 3 tokens that were tested." in page.text
    assert "−0.400 nats (95 % CI −0.500 to −0.300, n = 20 positions)" in page.text
    assert "with the most evidence in steps 6 to 11. The neuron is alive" in page.text
    assert "1 of 2 tokens" in read(neuron_key(NEURONS[-1])).text
    assert (
        "changes by −0.0500 nats where it is in the evidence (95 % CI −0.0600 to −0.0400, n = 16 "
        "positions) and by 0.0000 elsewhere (n = 24)"
    ) in page.text
    assert "nearly dead" not in page.text
    assert "nearly dead" in read(neuron_key(NEURONS[2])).text
    assert "target token changes by −0.0200 nats (95 % CI −0.0300 to −0.0100)" in page.text
    assert "of the 4 marked targets are tokens of its evidence" in page.text
    assert "w1 → w2 × 4" in page.text
    assert "form 2 topics" in page.text
    assert page.text.count("0.750") == 1
    links = [a["href"] for a in page.of("a") if a["href"] and a["href"].startswith("../neuron/")]
    assert links[:2] == [f"../{neuron_key(NEURONS[index])}" for index in (2, 4)]


def test_the_tables_read_are_those_that_the_analyses_write() -> None:
    written = {
        "attribute": attribution_tables.TABLES,
        "ablate": ablation_tables.TABLES,
        "activations": activation_tables.TABLES,
        "neurons": neuron_tables.TABLES,
    }
    for job, tables in written.items():
        for name, columns in WANTED[job].items():
            for column, kind in columns.items():
                assert tables[name].field(column).type == kind, f"{job} {name} {column}"


def test_the_first_and_last_neuron_have_one_neighbour() -> None:
    assert "← more evidence" not in read(neuron_key(NEURONS[0])).text
    assert "less evidence →" not in read(neuron_key(NEURONS[-1])).text


def test_the_position_of_the_largest_shift_is_marked() -> None:
    run = open_run(tiny_run())
    row = SimpleNamespace(datum=2, rows=7, step=1, position=3, shift=-0.5)
    words = [run.tokens[token] for token in run.token_NT[2]]
    item = passages.passage(data_of(run), row)
    marks = [f"<mark>{words[3]}</mark>", f'<mark class="target">{words[4]}</mark>']
    assert " ".join(marks) in item
    assert "largest shift −0.500 at step 1" in Reader(item).text


def test_the_target_of_the_last_position_is_shown() -> None:
    run = open_run(tiny_run())
    row = SimpleNamespace(datum=2, rows=7, step=1, position=7, shift=0.5)
    target = run.tokens[run.target_NT[2, 7]]
    item = passages.passage(data_of(run), row)
    assert item.endswith(f'<mark class="target">{target}</mark></blockquote></li>')


def test_tokens_of_the_corpus_are_escaped() -> None:
    run = open_run(tiny_run())
    vars(run)["tokens"] = [NASTY] * run.num_tokens
    row = SimpleNamespace(datum=0, rows=1, step=1, position=0, shift=0.5)
    page = Reader(passages.passage(data_of(run), row))
    assert {tag for tag, _ in page.elements} == {"li", "div", "blockquote", "mark"}
    assert page.text.count(NASTY) == 9
    context = SimpleNamespace(before="<b>", after=NASTY, context=f"… {NASTY} (<b> {NASTY}) & …")
    page = Reader(neuron_effects.context_snippet(context))
    assert [tag for tag, _ in page.elements] == ["mark", "del", "ins"]
    assert page.text == f"… {NASTY} <b> {NASTY} & …"
    assert Reader(render_page(ReportPage("x.html", NASTY, Markup(""), "x.html"), NASTY).decode())


def data_of(run: Run) -> ReportData:
    return ReportData(run, *[None] * 4)  # type: ignore[arg-type]  # passages need the run alone


def test_a_token_page_names_its_neurons() -> None:
    page = read(token_key(2))
    links = {a["href"] for a in page.of("a")}
    assert {f"../{neuron_key(NEURONS[index])}" for index in (0, 1)} <= links
    assert "In the evidence of 2 of 8 neurons" in page.text
    assert "Effect of ablating these neurons" not in page.text


def test_the_overview_counts_what_was_recorded() -> None:
    run = open_run(tiny_run())
    page = read(INDEX)
    num_outliers = sum(shard.rows for shard in run.shards("outliers"))
    assert f"The record holds {num_outliers:,} outliers" in page.text
    assert "24 of 24 steps (complete)" in page.text
    heads = " ".join(page.text.split())
    assert "untrained model800.0 %0.0 % to 32.0 %" in page.text
    assert "agreement" not in heads
    assert "difference, nats" in heads
    assert "−0.0600 to −0.0400" in heads
    assert len(page.of("svg")) == 5


@pytest.mark.parametrize("job", [job for job in WANTED if job != "attribute"])
def test_pages_name_the_command_that_computes_what_is_missing(job: str) -> None:
    run = report_run(f"memory://report-without-{job}", *(other for other in WANTED if other != job))
    built = build(run)
    command = f"ontogeny {job} {run.uri}"
    assert built.missing == {job: command}
    found = contents(f"{run.uri}/report")
    assert any(command in data.decode() for key, data in found.items() if key in CHAPTERS)


def test_attribution_alone_is_enough_for_a_report() -> None:
    built = build(report_run("memory://report-alone", "attribute"))
    assert set(built.missing) == WANTED.keys() - {"attribute"}
    assert built.index == "memory://report-alone/report/index.html"


def test_the_chapter_on_ablation_judges_by_log_probability_beside_chance() -> None:
    page = read("ablation.html")
    assert "by chance half" in page.text
    assert "6 of 6 neurons lower notable tokens more than others: 100 % (95 % CI 61 to 100 %)" in (
        page.text
    )
    assert "1 of 6 neurons is nearly dead" in page.text
    assert "flip at a higher rate" not in page.text


def test_without_confirmation_pages_name_the_command() -> None:
    run = report_run("memory://report-unconfirmed", "attribute")
    tables = TABLES["attribute"](run)
    schemas = {
        name: pa.schema(columns.items())
        for name, columns in WANTED["attribute"].items()
        if name not in OPTIONAL
    }
    write_tables(run, "attribute", tables, schemas)
    build(run)
    pages = contents(f"{run.uri}/report")
    for key in (INDEX, neuron_key(NEURONS[0])):
        assert f"ontogeny attribute {run.uri} --confirm" in Reader(pages[key].decode()).text
