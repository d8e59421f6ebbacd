"""``ontogeny attribute``: options, output, refusals."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tiny import make_run, tiny_config

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.measures.selection import SelectionConfig
from analysis.parameters.config import ParameterConfig
from analysis.parameters.tokens import parameter_tokens
from analysis.run.run import open_run
from cluster.cli import main
from cluster.local.threads import run_job
from cluster.terminal.attribution_tables import Focus, bars, show_attribution, signs

UNIT = "layers.1.linear2.weight"
ANY = SelectionConfig(min_observations=0, max_q=1, most=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attribute")
    make_run(tiny_config(folder))
    return folder / "run"


def shown(run: Path, focus: Focus, **settings: object) -> str:
    config = AttributionConfig(**{"selection": ANY, **settings})  # pyright: ignore[reportArgumentType]
    text = io.StringIO()
    found = attribute(open_run(str(run)), run_job, config)
    show_attribution(Console(file=text, width=300), found, focus)
    return text.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--study", "--min-count", "1"],
        ["--level", "head", "--weight", "shift"],
        ["--level", "row", "--evidence", "input", "--weight", "effect", "--background", "train"],
        ["--evidence", "ablation-estimate", "--tokens", "3", "--max-q", "1"],
        ["--outliers", "neuron", "--keep", "0.5", "--select", "kl"],
        ["--steps", "4:", "--windows", "2"],
        ["--steps", "7", "--max-q", "1"],
        ["--level", "parameter", "--parameters", "50", "--datums", "5", "--steps", ":20"],
    ],
)
def test_options_change_the_tables(run: Path, options: list[str], capsys) -> None:
    assert main(["attribute", str(run), *options, "--replace"]) == 0
    assert "Token evidence per" in capsys.readouterr().out
    groups = pd.read_parquet(run / "analysis/attribute/groups.parquet")
    windows = pd.read_parquet(run / "analysis/attribute/windows.parquet")
    level = options[options.index("--level") + 1] if "--level" in options else "neuron"
    assert level in set(groups["level"])
    if "--steps" in options and len(windows):
        assert (windows["first_step"].min(), windows["end_step"].max()) in {
            (4, 28),
            (7, 8),
            (0, 20),
        }


def test_a_neuron_is_named_by_unit_and_number_in_one_word(run: Path, capsys) -> None:
    assert main(["attribute", str(run), "--neuron", f"{UNIT}:2", "--replace"]) == 0
    printed = capsys.readouterr().out
    assert UNIT in printed
    assert main(["attribute", str(run), "--unit", UNIT, "--replace"]) == 0
    assert len(capsys.readouterr().out) > len(printed)


def test_quiet_prints_nothing(run: Path, capsys) -> None:
    assert main(["attribute", str(run), "--quiet", "--replace"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--unit", "layers.1.linear3.weight"],
            "layers.1.linear3.weight: has no neurons here. Did",
        ),
        (["--neuron", f"{UNIT}:10"], f"{UNIT} neuron 10: does not exist: they are 0 to 9."),
        (["--token", "catt"], "token 'catt': is not in the vocabulary. Did you mean cat"),
        (["--steps", "30:"], "has steps 0 to 27, asked for 30 to 27. Steps are chosen as in 0:28."),
        (["--windows", "0"], "attribution.windows: got 0, must be at least 1."),
        (
            ["--evidence", "update-norm", "--level", "head"],
            "attribution.level: got head, with evidence",
        ),
        (["--max-q", "2"], "selection.max_q: got 2.0, must be above 0 and at most 1."),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    run: Path, options: list[str], text: str, capsys
) -> None:
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    assert main(["attribute", str(run), *options, "--name", "bad"]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--level", "layer"], "ontogeny: --level: invalid choice: 'layer'"),
        (["--steps", "a:b"], "--steps: got 'a:b', must be like 0:100, 100: or 7"),
    ],
)
def test_options_that_cannot_be_parsed_are_refused(
    run: Path, options: list[str], text: str, capsys
) -> None:
    assert main(["attribute", str(run), *options]) == 2
    assert text in capsys.readouterr().err


# --- one parameter --------------------------------------------------------------------------------


def strongest_parameter(run: Path) -> tuple[str, int]:
    rows = open_run(str(run)).shifts(unit=UNIT)["index"]
    return UNIT, int(rows.mode()[0])


def test_one_parameter_is_asked_by_its_name(run: Path, capsys) -> None:
    unit, index = strongest_parameter(run)
    options = ["--neuron", f"{unit}:{index}", "--rows", "3", "--min-count", "2"]
    assert main(["attribute", str(run), "--level", "parameter", *options]) == 0
    printed = capsys.readouterr().out
    for order in ("by relative frequency", "by count", "chosen by study"):
        assert f"Tokens of {unit}:{index}, {order}" in printed
    assert f"(row {index // 10}, column {index % 10})" in printed
    assert "By chance, with as many outliers at datums drawn at random" in printed
    folder = run / f"analysis/parameter/{unit.replace('.', '-')}-{index}"
    tokens = pd.read_parquet(folder / "tokens.parquet")
    selection = SelectionConfig(min_count=2)
    config = ParameterConfig(unit=unit, index=index, selection=selection)
    wanted = parameter_tokens(open_run(str(run)), config)
    assert tokens.equals(wanted.tokens)


def test_without_frequent_tokens_nothing_is_compared_with_chance(run: Path, capsys) -> None:
    unit, index = strongest_parameter(run)
    options = ["--level", "parameter", "--neuron", f"{unit}:{index}", "--min-count", "99999"]
    assert main(["attribute", str(run), *options, "--name", "rare"]) == 0
    printed = capsys.readouterr().out
    assert "No token occurs 99,999 times or more, so none is compared with chance." in printed
    assert "By chance" not in printed


def test_options_of_one_parameter_change_the_answer(run: Path, capsys) -> None:
    unit, index = strongest_parameter(run)
    options = ["--study", "--evidence", "target", "--select", "rate", "--steps", "3:", "--tokens"]
    command = ["attribute", str(run), "--level", "parameter", "--neuron", f"{unit}:{index}"]
    assert main([*command, *options, "4", "--name", "other", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["about"][0]["evidence"] == "target"
    assert found["about"][0]["first_step"] >= 3
    assert found["about"][0]["tokens"] == found["about"][0]["rows"]
    assert (run / "analysis/parameter/other/tokens.parquet").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--neuron", f"{UNIT}:9999"], f"{UNIT}[9999]: does not exist: the unit is 12 × 10, its"),
        (["--neuron", "linear2:3"], "linear2: was not captured. Did you mean"),
        (
            ["--neuron", f"{UNIT}:3", "--weight", "shift"],
            "--weight: does not go with one parameter. Leave it out.",
        ),
        (
            ["--neuron", f"{UNIT}:3", "--evidence", "update-norm"],
            "parameter.evidence: got update-norm, must be one of target, input, window.",
        ),
        (["--neuron", f"{UNIT}:3", "--confirm"], "--confirm: does not go with one parameter."),
    ],
)
def test_bad_questions_about_one_parameter_are_one_line(
    run: Path, options: list[str], text: str, capsys
) -> None:
    assert main(["attribute", str(run), "--level", "parameter", *options]) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


# --- output ---------------------------------------------------------------------------------------


def test_only_tokens_above_expectation_are_shown(run: Path) -> None:
    settings = SelectionConfig(min_count=1, most_counted=50)
    config = AttributionConfig.study(selection=settings)
    found = attribute(open_run(str(run)), run_job, config)
    first = found.groups.iloc[0]
    tokens = found.tokens[found.tokens["level"] == "neuron"]
    mine = tokens[(tokens["unit"] == first["unit"]) & (tokens["group"] == first["group"])]
    more = int((mine["relative_frequency"] > 1).sum())
    assert 10 < more < len(mine)
    text = io.StringIO()
    show_attribution(Console(file=text, width=300), found, Focus(rows=1))
    assert f"(+{more - 10})" in text.getvalue()


def test_one_neuron_is_shown_in_full(run: Path) -> None:
    text = shown(run, Focus(unit=UNIT, number=3))
    assert f"{UNIT} neuron 3: its tokens" in text
    assert "have such tokens" not in text
    assert "--confirm tests each by ablation" in text
    assert "when: its weight in 5 parts of steps 0 to 27." in text
    assert "% of the evidence for these tokens strengthened existing weights" in text


def test_a_token_is_shown_with_the_groups_it_stands_out_in(run: Path) -> None:
    text = shown(run, Focus(token="cat"))
    assert "Evidence for “cat”" in text
    assert "layers.0.linear1.weight" in text


def test_evidence_without_direction_says_so(run: Path) -> None:
    assert "This evidence has no direction" in shown(run, Focus(), evidence="update-norm")
    assert "% of the ablation estimate for these tokens is positive" in shown(
        run, Focus(), evidence="ablation-estimate"
    )


def test_without_tokens_that_stand_out_no_signs_are_shown(run: Path) -> None:
    nothing = SelectionConfig(min_observations=1e9)
    text = shown(run, Focus(), selection=nothing)
    assert "No neuron has more evidence for a token than others have." in text
    assert "--confirm" not in text
    assert "strengthened" not in text


def test_bars_are_scaled_to_the_largest() -> None:
    assert bars(np.array([0.0, 1, 4, 8])) == "▁▁▄█"
    assert bars(np.zeros(3)) == "▁▁▁"


def test_signs_are_described() -> None:
    tokens = pd.DataFrame({"up": [3.0, 0], "strengthened": [17.0, 0], "weakened": [0.0, 3]})
    assert signs(tokens).startswith("85% of the evidence for these tokens strengthened existing")
