"""The tutorial runs as written; the reference of analyses explains every table and column."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib import pyplot
from tiny import make_run, tiny_config

import ontogeny
from analysis.ablation import replacement
from analysis.ablation import tables as ablation_tables
from analysis.activations import tables as activation_tables
from analysis.attribution import config as attribution_config
from analysis.attribution import outlier_notions
from analysis.attribution import tables as attribution_tables
from analysis.behaviour import behaviour, predicates
from analysis.bigrams import tables as bigram_tables
from analysis.faithfulness import faithfulness
from analysis.influence import tables as influence_tables
from analysis.influence.directions import tables as direction_tables
from analysis.influence.drift import along
from analysis.influence.judge import tables as judge_tables
from analysis.influence.silencing import tables as silence_tables
from analysis.influence.suspects import tables as suspect_tables
from analysis.measures import selection
from analysis.neurons import tables as neuron_tables
from analysis.parameters import tables as parameter_tables
from analysis.report import timeline
from analysis.spectra import tables as spectrum_tables
from analysis.trajectory import tables as trajectory_tables
from analysis.transitions import tables as transition_tables
from analysis.transitions.quanta import tables as quanta_tables
from analysis.transitions.runs import tables as comparison_tables
from cluster.cli import parser

DOCS = Path(__file__).parents[2] / "docs"
JOBS: dict[str, Mapping[str, pa.Schema]] = {
    "attribute": attribution_tables.TABLES,
    "parameter": parameter_tables.TABLES,
    "ablate": ablation_tables.TABLES,
    "activations": activation_tables.TABLES,
    "neurons": neuron_tables.TABLES,
    "behaviour": behaviour.TABLES,
    "trajectory": trajectory_tables.SCHEMAS,
    "transitions": transition_tables.SCHEMAS,
    "quanta": quanta_tables.SCHEMAS,
    "compare": comparison_tables.SCHEMAS,
    "bigrams": bigram_tables.TABLES,
    "faithfulness": faithfulness.TABLES,
    "influence": influence_tables.SCHEMAS,
    "suspects": suspect_tables.SCHEMAS,
    "silence": silence_tables.SCHEMAS,
    "lds": judge_tables.SCHEMAS,
    "drift": along.SCHEMAS,
    "directions": direction_tables.SCHEMAS,
    "spectrum": spectrum_tables.SCHEMAS,
    "report": {"timeline": timeline.TIMELINE},
}
"""Job → table → schema, for all tables under ``analysis/``."""
CHOICES = {
    "evidence": attribution_config.EVIDENCE,
    "background": attribution_config.BACKGROUNDS,
    "select": selection.METHODS,
    "outliers": outlier_notions.NOTIONS,
    "value": replacement.VALUES,
    "predicate": predicates.CONDITIONS,
}


# --- the tutorial ---------------------------------------------------------------------------------


def blocks() -> list[tuple[str, str]]:
    """Return each block of Python in the tutorial, with the prose that follows it."""
    parts = re.split(r"```python\n(.*?)```\n", (DOCS / "tutorial.md").read_text(), flags=re.DOTALL)
    return list(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def pasted(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """Yield the names defined after all blocks have run, with a small run at ``runs/demo``."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "runs").mkdir()
    slowly = (
        "training.epochs=4",
        "training.learning_rate=1",
    )  # high rates leave few active neurons
    make_run(tiny_config(folder / "runs", "model.layers=3", *slowly, name="demo"))
    run = ontogeny.open_run(folder / "runs" / "demo")
    ontogeny.attribute(run, save=True)
    ontogeny.ablate(run, ontogeny.AblationConfig(max_neurons=2, max_datums=9), save=True)
    kept = tables_of(folder)
    namespace: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched, mpl.rc_context({"backend": "Agg"}):
        patched.chdir(folder)
        pyplot.switch_backend("Agg")
        for number, (code, _) in enumerate(blocks()):
            exec(compile(code, f"tutorial.md, block {number}", "exec"), namespace)
        yield namespace | {"folder": folder, "kept": kept}
        pyplot.close("all")


def tables_of(folder: Path) -> dict[str, bytes]:
    """Return the tables without a name, as ``ontogeny demo`` leaves them; key → bytes."""
    found = (folder / "runs" / "demo" / "analysis").glob("*/*.parquet")
    return {str(path): path.read_bytes() for path in found}


def test_the_tutorial_keeps_the_tables_of_the_demo(pasted):
    assert pasted["kept"].items() <= tables_of(pasted["folder"]).items()


def test_every_block_is_followed_by_an_explanation():
    assert len(blocks()) >= 15
    for code, prose in blocks():
        assert len(prose.strip().split("\n\n")[0].split()) >= 8, code
        assert not prose.strip().startswith("#"), code


def test_the_tutorial_runs_from_top_to_bottom(pasted):
    assert pasted["run"].steps_done == pasted["run"].num_steps
    assert len(pasted["shifts"]) > 0
    assert len(pasted["tokens"]) > 0
    assert len(pasted["flips"]) > 0
    assert len(pasted["often"]) > 0


def test_the_tutorial_imports_no_private_module():
    imports = re.findall(
        r"^(?:import|from) ([\w.]+)", "\n".join(code for code, _ in blocks()), re.M
    )
    assert set(imports) == {"ontogeny", "numpy", "pandas", "matplotlib.pyplot", "duckdb"}


def test_the_plot_shows_the_history_of_one_neuron(pasted):
    top, middle, bottom = pasted["axes"]
    num_tokens = min(5, len(pasted["tokens"]))
    assert len(top.lines) == len(middle.lines) == num_tokens
    assert len(bottom.collections[0].get_offsets()) == len(pasted["own"]) > 0
    assert (pasted["folder"] / "neuron.png").read_bytes().startswith(b"\x89PNG")


def test_counts_from_pandas_and_from_sql_agree(pasted):
    own: pd.DataFrame = pasted["own"]
    last = blocks()[-1][0].split("duckdb.sql(", 1)[1]
    found = eval(f"duckdb.sql({last}", pasted)  # the last expression of the block
    by_epoch = own.groupby("epoch")["abs_diff"].agg(["size", "sum"])
    assert found["rows"].tolist() == by_epoch["size"].tolist()
    assert found["moved"].tolist() == pytest.approx(by_epoch["sum"].tolist(), rel=1e-5)


# --- the reference of tables ----------------------------------------------------------------------


def sections(level: int) -> dict[str, str]:
    """Return headings of ``analyses.md`` of a level, with the text below each."""
    text = (DOCS / "reference" / "analyses.md").read_text()
    parts = re.split(rf"^(#{{1,{level}}}) (.*)$", text, flags=re.MULTILINE)
    found = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return {title: body for marks, title, body in found if len(marks) == level}


@pytest.mark.parametrize("job", JOBS)
def test_every_column_of_every_table_is_explained(job):
    chapter = sections(2)[f"`{job}`"]
    parts = re.split(r"^### (.*)$", chapter, flags=re.MULTILINE)
    headed = zip(parts[1::2], parts[2::2], strict=True)
    tables = {name: text for heading, text in headed for name in re.findall(r"`(\w+)`", heading)}
    assert list(tables) == list(JOBS[job])
    for name, schema in JOBS[job].items():
        explained = re.findall(r"`(\w+)`", "".join(first_cells(tables[name])))
        assert sorted(explained) == sorted(schema.names), f"{job}/{name}"


def first_cells(text: str) -> list[str]:
    """Return the first cell of every table row in a text, without heads."""
    rows = re.findall(r"^\| *(.*?) *\|", text, flags=re.MULTILINE)
    return [row for row in rows if "`" in row]


@pytest.mark.parametrize("option", CHOICES)
def test_every_choice_is_explained(option):
    text = (DOCS / "reference" / "analyses.md").read_text()
    for choice in CHOICES[option]:
        assert re.search(rf"(\*\*|`|--){re.escape(choice)}(\*\*|`)", text), (option, choice)


def test_every_analysis_has_a_chapter():
    assert [title for title in sections(2) if title.startswith("`")] == [f"`{job}`" for job in JOBS]


# --- links and commands ---------------------------------------------------------------------------

PAGES = [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken_by_the_parser(page):
    text = page.read_text().replace("\\\n", " ")  # a command may go on in the next line
    lines = re.findall(r"^(?:\$ )?ontogeny (.*)$", text, flags=re.MULTILINE)
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True))
    assert len(lines) > 5 or page.name != "README.md"
