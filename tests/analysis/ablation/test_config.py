"""Subjects and settings of ablation, and the errors for bad ones."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_ablation import full, random_model, some_subjects, write_attribution
from tiny_run import copied, tiny_run

from analysis.ablation.ablatable import all_subjects
from analysis.ablation.ablate import ablate
from analysis.ablation.config import AblationConfig, SplitText
from analysis.ablation.propagation import trace
from analysis.ablation.subjects import (
    Subject,
    entries_of,
    parse_subjects,
    site_of,
    zero_ablation_value,
)
from analysis.attribution.tables import JOB, TABLES
from analysis.jobs.tables import write_tables
from analysis.run.run import Run, open_run
from capture.errors import CaptureError, ConfigError, RunError, UnitError
from capture.models.dropout import Masks
from capture.models.transformer import ModelConfig, fresh_model
from cluster import cli

UNIT = "layers.1.linear2.weight"


def copy_of_run(name: str) -> Run:
    return open_run(copied(tiny_run(), f"memory://ablation-{name}").uri)


# --- subjects -------------------------------------------------------------------------------------


def test_parsing_gives_each_subject_once_in_order() -> None:
    found = parse_subjects([f"{UNIT}:3,1", "layers.0.linear1.weight:7", f"{UNIT}:1, 2"], "row")
    assert found == [
        Subject(UNIT, 3, "row"),
        Subject(UNIT, 1, "row"),
        Subject("layers.0.linear1.weight", 7, "row"),
        Subject(UNIT, 2, "row"),
    ]


@pytest.mark.parametrize("text", [UNIT, f"{UNIT}:", f"{UNIT}:x", f"{UNIT}:1,,2", f"{UNIT}:-1", ""])
def test_text_that_names_no_subject_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_subjects([text], "neuron")
    assert str(caught.value) == (
        f"ablation.only: got {text!r}, wanted UNIT:N[,N…]. "
        "For example: layers.2.linear2.weight:17,80."
    )


def test_subjects_of_a_model() -> None:
    model = random_model(0, 1.0)
    assert len(all_subjects(model, "neuron")) == 2 * (12 + 10)
    assert len(all_subjects(model, "row")) == 2 * (10 + 12)
    assert all_subjects(model, "head") == [
        Subject(f"layers.{layer}.self_attn", head, "head") for layer in (0, 1) for head in range(3)
    ]


def test_zero_ablation_leaves_the_bias_of_a_row_and_zero_elsewhere() -> None:
    model = random_model(0, 1.0)
    for subject in some_subjects():
        name = subject.unit.replace("_weight", "_bias").replace(".weight", ".bias")
        row = subject.level == "row"
        wanted = float(model.get_parameter(name)[subject.group]) if row else 0.0
        assert zero_ablation_value(model, subject) == wanted


def test_zero_ablation_leaves_zero_in_a_row_without_a_bias() -> None:
    config = ModelConfig(layers=1, width=12, hidden=8, heads=3, attention_bias=False)
    model = fresh_model(config, vocabulary=9, window=4, seed=0)
    for name in ("in_proj_weight", "out_proj.weight"):
        assert zero_ablation_value(model, Subject(f"layers.0.self_attn.{name}", 2, "row")) == 0.0


def test_learned_positions_are_part_of_the_trace() -> None:
    config = ModelConfig(layers=2, width=12, hidden=8, heads=3, positions="learned", dropout=0)
    model = fresh_model(replace(config, attention_bias=False), vocabulary=9, window=4, seed=0)
    token_NT = np.array([[1, 5, 2], [0, 8, 3]])
    found = trace(model, token_NT).hidden_NTD
    torch.testing.assert_close(found, model.hidden(torch.from_numpy(token_NT), Masks.none()))


def test_a_head_is_its_entries_of_the_input_of_out_proj() -> None:
    model, head = random_model(0, 1.0), Subject("layers.1.self_attn", 2, "head")
    assert list(entries_of(model, head)) == [8, 9, 10, 11]
    assert (site_of(head).layer, site_of(head).point) == (1, "heads_out")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"max_neurons": 0}, "ablation.max_neurons: got 0, must be at least 1."),
        ({"max_datums": -1}, "ablation.max_datums: got -1, must be at least 1."),
        ({"contexts_per_token": 0}, "ablation.contexts_per_token: got 0, must be at least 1."),
        ({"scored_datums": -1}, "ablation.scored_datums: got -1, must be at least 0."),
        ({"seed": -1}, "ablation.seed: got -1, must be at least 0."),
        ({"level": "unit"}, "ablation.level: got 'unit', wanted neuron, row, head."),
        ({"value": "one"}, "ablation.value: got 'one', wanted zero, mean, resample."),
        ({"split": "dev"}, "ablation.split: got 'dev', wanted train, validation, test."),
        (
            {"only": ("x:1",), "everything": True},
            "ablation.only: cannot go with ablation.everything (--all).",
        ),
    ],
)
def test_impossible_settings_are_refused(values: dict, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AblationConfig(**values)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("level", "only", "text"),
    [
        ("neuron", "layers.1.linear2.wieght:0", "has no neurons. Did you mean " + UNIT),
        ("neuron", "layers.0.norm1.weight:0", "has no neurons. Did you mean layers."),
        ("head", f"{UNIT}:0", "has no heads. Did you mean layers."),
        ("neuron", f"{UNIT}:12", "neuron 12: does not exist: the unit's neurons are 0 to 11."),
        ("row", f"{UNIT}:16", "row 16: does not exist: the unit's rows are 0 to 15."),
        ("head", "layers.0.self_attn:2", "head 2: does not exist: the unit's heads are 0 to 1."),
    ],
)
def test_an_unknown_subject_is_refused(level, only: str, text: str) -> None:
    run = copy_of_run("subjects")
    write_attribution(run)
    with pytest.raises(UnitError, match=re.escape(text)):
        ablate(run, AblationConfig(level=level, only=(only,)))


def no_attribution(run: Run) -> None:
    """Leave the run without attribution."""


def no_tokens(run: Run) -> None:
    """Write an attribution without notable tokens."""
    frames = {name: full([], name) for name in TABLES}
    key = {"level": "neuron", "unit": UNIT, "group": 3}
    write_tables(run, JOB, {**frames, "groups": full([key], "groups")}, TABLES)


def other_level(run: Run) -> None:
    """Write an attribution without groups of the level."""
    write_tables(run, JOB, {name: full([], name) for name in TABLES}, TABLES)


def older_version(run: Run) -> None:
    """Write tables with the names of an older version."""
    write_tables(run, JOB, {"summary": full([], "groups")}, {"summary": TABLES["groups"]})


URI = "memory://ablation-attribution"


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (no_attribution, f"has no tables of attribute. Run: ontogeny attribute {URI}."),
        (
            older_version,
            f"has tables of attribute that an older version made. Run: ontogeny attribute {URI}.",
        ),
        (
            no_tokens,
            "has an attribution without tokens for any neuron. Attribute with lower thresholds: "
            f"ontogeny attribute {URI} ….",
        ),
        (
            other_level,
            "has an attribution without tokens for any neuron. Run: ontogeny attribute "
            f"{URI} --level neuron, or choose: --only, --all.",
        ),
    ],
)
def test_ablation_needs_an_attribution(prepare: Callable[[Run], None], text: str) -> None:
    run = copy_of_run("attribution")
    prepare(run)
    with pytest.raises(RunError) as caught:
        ablate(run, AblationConfig())
    assert str(caught.value) == f"{URI}: {text}"


def test_a_split_that_the_run_lacks_is_refused() -> None:
    with pytest.raises(RunError, match="test"):
        SplitText.of(open_run(tiny_run()), "test")


def test_the_text_of_a_split_is_that_of_the_run() -> None:
    run = open_run(tiny_run())
    text = SplitText.of(run, "train")
    assert np.array_equal(text.token_NT, run.token_NT)
    assert np.array_equal(text.target_NT, run.target_NT)
    assert np.array_equal(text.stream_NT[:, 1:], run.target_NT)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_tables_and_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of_run("command")
    write_attribution(run)
    arguments = ["ablate", run.uri, "--datums", "20", "--value", "mean", "--scored-datums", "5"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    for text in ("largest effect first", "log-probability, nats", "By unit", UNIT):
        assert text in shown
    assert run.store.exists("analysis/ablate/tables.json")
    assert cli.main([*arguments, "--level", "head", "--quiet", "--name", "heads"]) == 0
    assert not capsys.readouterr().out


def test_subjects_without_notable_tokens_are_shown_without_shares(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copy_of_run("unnamed")
    write_attribution(run)
    assert cli.main(["ablate", run.uri, "--only", f"{UNIT}:11", "--scored-datums", "0"]) == 0
    shown = capsys.readouterr().out
    assert "nan" not in shown
    assert "No interval is given for a single one or for neurons with equal values." in shown
    assert "No log-probabilities were computed" in shown


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", f"{UNIT}:99"], f"{UNIT} neuron 99: does not exist"),
        (["--only", "nonsense"], "wanted UNIT:N[,N…]"),
        (["--only", f"{UNIT}:1", "--all"], "cannot go with"),
        (["--split", "test"], "test"),
        (["--datums", "0"], "must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of_run("bad")
    write_attribution(run)
    assert cli.main(["ablate", run.uri, *arguments]) == CaptureError.exit_code
    shown = capsys.readouterr().err
    assert text in shown
    assert len(shown.strip().splitlines()) == 1
    assert run.store.keys("analysis/ablate") == []
