"""The raw data beside the pages: the bytes of the run's tables, and links to them."""

import io
import json

import pandas as pd
from report_pages import Reader, build, contents, read, whole
from report_run import report_run
from tiny_run import tiny_run

from analysis.report.pages.data_page import KEY
from analysis.report.pages.sources import WANTED
from analysis.run.run import open_run
from capture.store import Store


def test_every_table_that_pages_show_lies_beside_them_byte_for_byte() -> None:
    stored = Store("memory://report")
    for job in WANTED:
        listed = json.loads(whole()[f"data/{job}/tables.json"])
        assert {file["key"] for file in listed["files"]} == {
            f"analysis/{job}/{name}.parquet" for name in WANTED[job]
        }
        for file in listed["files"]:
            name = file["key"].rpartition("/")[2]
            assert whole()[f"data/{job}/{name}"] == stored.get(file["key"])


def test_losses_of_each_step_lie_beside_the_pages() -> None:
    found = pd.read_parquet(io.BytesIO(whole()["data/training/steps.parquet"]))
    wanted = open_run(tiny_run()).steps()
    assert found["loss"].tolist() == wanted["loss"].tolist()
    assert "datums" not in found
    evaluations = pd.read_parquet(io.BytesIO(whole()["data/training/evaluations.parquet"]))
    assert len(evaluations) == len(open_run(tiny_run()).evaluations())


def test_pages_link_to_the_data_that_they_show() -> None:
    links = {a["href"] for a in read(KEY).of("a")}
    assert {f"data/{job}/tables.json" for job in WANTED} <= links
    assert "data/attribute/tokens.parquet" in links
    assert "data.html#ablate" in {a["href"] for a in read("ablation.html").of("a")}
    assert "attribute" in {section["id"] for section in read(KEY).of("section")}


def test_missing_analyses_have_no_data() -> None:
    run = report_run("memory://report-data", "attribute")
    build(run, max_neurons=1)
    pages = contents(f"{run.uri}/report")
    assert {key.split("/")[1] for key in pages if key.startswith("data/")} == {
        "attribute",
        "training",
    }
    neuron = next(key for key in pages if key.startswith("neuron/"))
    links = {a["href"] for a in Reader(pages[neuron].decode()).of("a")}
    assert "../data.html#attribute" in links
    assert "../data.html#ablate" not in links
