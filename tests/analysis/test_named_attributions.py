"""Attributions under names stand side by side; ``ablate`` and ``report`` say which one they use."""

from pathlib import Path

import pandas as pd
import pytest
from tiny_run import copied, tiny_run

import ontogeny
from analysis.jobs.tables import read_question, table_set, table_sets
from analysis.run.run import open_run
from capture.store import Store
from cluster.cli import main

LATE = ["--steps", "7:", "--max-q", "1", "--evidence", "target"]


@pytest.fixture
def run(tmp_path: Path) -> str:
    copied(tiny_run(), f"file://{tmp_path}/run")
    return f"{tmp_path}/run"


def test_another_question_under_another_name_replaces_nothing(run: str) -> None:
    assert main(["attribute", run, "--max-q", "1", "--quiet"]) == 0
    before = Store(run).get("analysis/attribute/tokens.parquet")
    assert main(["attribute", run, *LATE, "--name", "late", "--quiet"]) == 0
    assert Store(run).get("analysis/attribute/tokens.parquet") == before
    opened = open_run(run)
    assert table_sets(opened, "attribute") == ["", "late"]
    late, first = (read_question(opened, table_set("attribute", name)) for name in ("late", ""))
    assert (late.options["first_step"], first.options["first_step"]) == (7, 0)
    assert (late.options["evidence"], first.options["evidence"]) == ("target", "geometric-mean")


def test_ablate_and_report_use_the_attribution_named_and_say_so(run: str, capsys) -> None:
    assert main(["attribute", run, *LATE, "--name", "late", "--quiet"]) == 0
    options = ["--neurons", "2", "--datums", "9"]
    assert main(["ablate", run, *options]) == 2
    assert "has no tables of attribute. Run: ontogeny attribute" in capsys.readouterr().err
    assert main(["ablate", run, *options, "--attribution", "late"]) == 0
    assert "Attribution: analysis/attribute/late" in capsys.readouterr().out
    assert read_question(open_run(run), "ablate").options["attribution"] == "late"
    assert main(["report", run, "--neurons", "2", "--attribution", "late"]) == 0
    assert "analysis/attribute/late" in capsys.readouterr().out
    page = Store(run).get("report/index.html").decode()
    assert "<code>analysis/attribute/late</code></summary><code>attribute level=" in page


def test_a_report_shows_the_named_tables_of_other_analyses(run: str, capsys) -> None:
    assert main(["attribute", run, "--max-q", "1", "--quiet"]) == 0
    few = ["--neurons", "2", "--datums", "9", "--quiet"]
    assert main(["ablate", run, *few]) == 0
    heads = ["--level", "head", "--all", "--name", "heads"]
    assert main(["ablate", run, *few, *heads]) == 0
    assert main(["report", run, "--neurons", "2", "--set", "ablate=heads"]) == 0
    assert "Tables of ablate: analysis/ablate/heads\n" in capsys.readouterr().out
    page = Store(run).get("report/index.html").decode()
    assert "<code>analysis/ablate/heads</code></summary><code>ablate level=" in page
    for wrong, text in (
        ("ablate=absent", "has no tables of ablate/absent. Run: ontogeny ablate"),
        ("bigram=x", "--set: got 'bigram', must be one of attribute, ablate, activations"),
        ("ablate", "got 'ablate', must be ANALYSIS=NAME, as in ablate=heads"),
        ("ablate=../x", "--set: got '../x', wanted up to 64 letters"),
    ):
        assert main(["report", run, "--set", wrong]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["attribute --name", "ablate --attribution", "report --attribution"]
)
def test_a_name_that_is_no_folder_is_refused(command: str, run: str, capsys) -> None:
    name, option = command.split()
    assert main([name, run, option, "../x"]) == 2
    assert "got '../x', wanted up to 64 letters" in capsys.readouterr().err


def test_every_analysis_records_its_question(run: str) -> None:
    commands = (["neurons", "--min-rows", "1"], ["activations"], ["bigrams", "--datums", "0"])
    for name, *options in [["attribute"], *commands, ["behaviour", "--contains", "w3"]]:
        assert main([name, run, *options, "--quiet"]) == 0, name
        question = read_question(open_run(run), name)
        assert question.command == name
        assert question.options
        assert question.versions["ontogeny"] == ontogeny.__version__
        assert question.steps == 24


def test_the_public_functions_record_it_too(run: str) -> None:
    opened = ontogeny.open_run(run)
    ontogeny.attribute(opened, save=True, name="mine")
    assert read_question(opened, "attribute/mine").options["level"] == "neuron"
    config = ontogeny.AblationConfig(attribution="mine", only=("layers.1.linear2.weight:3",))
    ontogeny.ablate(opened, config, save=True)
    assert read_question(opened, "ablate").options["only"] == ["layers.1.linear2.weight:3"]
    assert isinstance(ontogeny.report(opened, attribution="mine"), str)
    assert len(pd.read_parquet(f"{run}/analysis/attribute/mine/groups.parquet"))
