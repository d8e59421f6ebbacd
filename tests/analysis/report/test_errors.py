"""Errors of the report, and the command ``report``."""

import argparse
import re
from collections.abc import Callable

import pyarrow as pa
import pytest
from report_pages import build, contents
from report_run import report_run
from rich.console import Console
from tiny_run import copied, tiny_run

from analysis.jobs.tables import write_tables
from analysis.report.build import (
    INDEX,
    MANIFEST,
    ReportConfig,
    report_store,
)
from analysis.report.pages.sources import WANTED
from analysis.run.run import open_run
from capture.errors import CaptureError, ConfigError, RunError
from capture.store import Store
from capture.store.config import StoreConfig
from cluster.commands.pages import report as command

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


def into_a_folder_with_other_files() -> None:
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
            into_a_folder_with_other_files,
            RunError,
            "memory://report-full: holds thesis.tex and is not a report. "
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


def test_a_report_in_the_run_uses_the_store_settings_of_the_run() -> None:
    settings = StoreConfig(retries=3, patience_seconds=7.0)
    run = open_run(tiny_run(), settings)
    assert report_store(run).config == settings


def test_a_folder_with_other_files_stays_unchanged() -> None:
    with pytest.raises(RunError):
        into_a_folder_with_other_files()
    assert contents("memory://report-full") == {"thesis.tex": b""}


def test_tables_of_an_earlier_state_count_as_missing() -> None:
    run = report_run("memory://report-old")
    key = "analysis/ablate/flips.parquet"
    marker = "analysis/ablate/tables.json"
    assert run.store.exists(key)
    run.store.delete(marker)
    assert "ablate" in build(run).missing


def test_tables_of_another_version_count_as_missing() -> None:
    run = report_run("memory://report-version", "attribute")
    schemas = {name: pa.schema(of.items()) for name, of in WANTED["ablate"].items()}
    schemas["neurons"] = schemas["neurons"].remove(schemas["neurons"].get_field_index("change"))
    frames = {name: schema.empty_table().to_pandas() for name, schema in schemas.items()}
    write_tables(run, "ablate", frames, schemas)
    assert "ablate" in build(run, max_neurons=1).missing


# --- command --------------------------------------------------------------------------------------


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    arguments = parser.parse_args(["report", *words])
    return arguments.command(arguments, Console(width=110, highlight=False))


def test_the_command_prints_the_address_and_what_is_missing(capsys) -> None:
    report_run("memory://report-command", "attribute", "ablate")
    assert run_command("memory://report-command", "--neurons", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "memory://report-command/report/index.html"
    assert any("neurons (ontogeny neurons memory://report-command)" in line for line in lines)
    assert "Tables of ablate: analysis/ablate" in lines
    assert not any("ontogeny ablate" in line for line in lines)


def test_the_question_of_tables_unfolds_in_the_head_of_the_page() -> None:
    report_run("memory://report-folded", "attribute")
    assert run_command("memory://report-folded", "--quiet") == 0
    page = Store("memory://report-folded/report").get(INDEX).decode()
    (facts,) = re.findall('<dl class="facts">.*?</dl>', page, flags=re.DOTALL)
    folded = "<details><summary><code>analysis/attribute</code></summary><code>attribute"
    assert folded in facts.replace("\n", "")
    shown = re.sub("<details>.*?</details>", "", facts, flags=re.DOTALL)
    assert "; 24 steps" not in shown


def test_the_command_can_be_quiet_and_write_to_another_folder(capsys) -> None:
    report_run("memory://report-quiet", "attribute")
    assert run_command("memory://report-quiet", "--to", "memory://elsewhere", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert Store("memory://elsewhere").exists(INDEX)
    assert not Store("memory://report-quiet/report").exists(INDEX)


@pytest.mark.parametrize("to", [None, "{run}/report", "{run}/report/mine", "{link}/report"])
def test_a_report_is_not_written_through_a_link_out_of_the_run(tmp_path, to):
    copied(tiny_run(), f"{tmp_path}/run")
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "report").symlink_to("../outside")
    (tmp_path / "link").symlink_to("run")
    run = open_run(f"{tmp_path}/run")
    target = to and to.format(run=tmp_path / "run", link=tmp_path / "link")
    if target == f"{tmp_path}/link/report":
        run = open_run(f"{tmp_path}/link")
    with pytest.raises(CaptureError, match="leads out of the run"):
        report_store(run, target)
    assert list((tmp_path / "outside").iterdir()) == []
