"""Wrong input, command by command: one helpful line, exit code 2, nothing written.

``{whole}`` in a case is a run without tables, ``{attributed}`` one with those of ``attribute``; the
others are named where they are made.
"""

import re

import pytest
from refusals import READING_COMMANDS, refusal, refusing_runs, snapshot

from cluster.cli import main

UNIT = "layers.1.linear2.weight"
HUGE = 10**24


@pytest.fixture(scope="module")
def runs() -> dict[str, str]:
    return refusing_runs()


# --- runs that are not ready ----------------------------------------------------------------------


def test_every_command_is_covered_by_this_file(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    (\w+)\s", capsys.readouterr().out, flags=re.MULTILINE)
    assert set(listed) == READING_COMMANDS.keys() | {
        *("capture", "demo", "plan", "config", "runs", "selfcheck", "smoothness", "seeds")
    }


@pytest.mark.parametrize("command", READING_COMMANDS)
def test_a_file_is_not_a_run(command, tmp_path, capsys):
    (tmp_path / "README.md").write_text("# Title\n")
    refusing_runs()  # compare takes one of them beside the file
    options = READING_COMMANDS[command].split()
    assert main([command, f"{tmp_path}/README.md", *options]) == 2
    assert capsys.readouterr().err == (
        f"ontogeny: {tmp_path}/README.md: is a file, and a run is a folder. "
        "Name the folder of a run, as in runs/demo.\n"
    )


@pytest.mark.parametrize("command", READING_COMMANDS)
def test_a_run_that_does_not_exist(command, runs, capsys):
    said = refusal(f"{command} {{nowhere}} {READING_COMMANDS[command]}", runs, capsys)
    assert "memory://bad-input/nowhere: holds no run. Make one with: ontogeny capture" in said


@pytest.mark.parametrize("command", sorted(READING_COMMANDS.keys() - {"info", "verify", "gc"}))
def test_a_run_that_has_no_committed_segment(command, runs, capsys):
    said = refusal(f"{command} {{untrained}} {READING_COMMANDS[command]}", runs, capsys)
    assert "untrained: holds no committed segment yet. Let it train on: ontogeny capture" in said


def test_info_and_verify_accept_a_run_without_committed_segments(runs, capsys):
    assert main(["info", runs["untrained"]]) == 0
    assert "0 of 24 steps" in capsys.readouterr().out
    assert main(["verify", runs["untrained"], "--quiet"]) == 0


@pytest.mark.parametrize("command", READING_COMMANDS)
def test_a_run_of_a_newer_schema(command, runs, capsys):
    said = refusal(f"{command} {{newer}} {READING_COMMANDS[command]}", runs, capsys)
    assert "has schema version 99, this version of ontogeny reads 3. Use a newer version" in said


@pytest.mark.parametrize("command", READING_COMMANDS)
def test_a_uri_of_an_unknown_scheme(command, runs, capsys):
    said = refusal(f"{command} nosuch://x {READING_COMMANDS[command]}", runs, capsys)
    assert "nosuch://x: cannot be opened" in said


@pytest.mark.parametrize("command", ["ablate", "report"])
def test_a_command_that_needs_attribution_says_so(command, runs, capsys):
    said = refusal(f"{command} {{whole}}", runs, capsys)
    assert "has no tables of attribute. Run: ontogeny attribute memory://bad-input/whole" in said
    said = refusal(f"{command} {{outdated}}", runs, capsys)
    assert "has tables of attribute for 24 steps, but 21 are done. Run: ontogeny attribute" in said


def test_activations_refuse_outdated_attribution(runs, capsys):
    said = refusal("activations {outdated}", runs, capsys)
    assert "has tables of attribute for 24 steps, but 21 are done" in said


@pytest.mark.parametrize("command", ["ablate", "report", "activations"])
def test_damaged_tables_end_with_exit_code_3(command, runs, capsys):
    before = snapshot(runs["damaged"])
    assert main([command, runs["damaged"]]) == 3
    printed = capsys.readouterr().err
    assert printed.startswith("ontogeny: memory://bad-input/damaged/analysis/attribute/tables.json")
    assert printed.count("\n") == 1
    assert snapshot(runs["damaged"]) == before


@pytest.mark.parametrize(
    "command",
    [
        "attribute {untallied} --evidence update-norm",
        "attribute {untallied} --evidence ablation-estimate",
        "attribute {untallied} --evidence input-update-norm",
        "attribute {untallied} --evidence input-ablation-estimate",
        "neurons {untallied} --tokens-weight 0.5",
    ],
)
def test_evidence_from_tallies_needs_recorded_tallies(command, runs, capsys):
    said = refusal(command, runs, capsys)
    assert "untallied: holds no tallies. Capture with capture.tally.enabled=true" in said


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("attribute {normed} --level neuron --evidence target", "captured no neurons (inputs of"),
        ("attribute {normed} --level head --evidence target", "captured no attention heads"),
        ("attribute {normed} --level row --evidence target", "captured no rows (of units with"),
        ("attribute {normed} --study", "has no outliers of weights (units with two axes)"),
        ("neurons {normed}", "normed: captured no MLP weights"),
        ("faithfulness {normed}", "captured no neurons"),
    ],
)
def test_a_run_that_captured_other_units(command, text, runs, capsys):
    assert text in refusal(command, runs, capsys)


# --- names that there are not ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        ("attribute {whole} --unit layers.9.linear2.weight", UNIT),
        ("attribute {whole} --level head --unit layers.7.self_attn", "layers.1.self_attn"),
        ("attribute {whole} --level row --unit layers.1.linear1", "layers.1.linear1.weight"),
        ("ablate {attributed} --only layers.9.linear2.weight:1", UNIT),
        ("ablate {attributed} --level head --only layers.1.linear2.weight:1", "layers.1.self_attn"),
        ("activations {whole} --neuron layers.9.linear2.weight:1", UNIT),
    ],
)
def test_an_unknown_unit_names_the_nearest(command, nearest, runs, capsys):
    said = refusal(command, runs, capsys)
    assert re.search(r"has no (neurons|rows|heads)", said)
    assert nearest in said.split(". ", 1)[1]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (f"attribute {{whole}} --neuron {UNIT}:{HUGE}", "they are 0 to 11"),
        (f"attribute {{whole}} --neuron {UNIT}:99", f"{UNIT} neuron 99: does not exist"),
        (f"attribute {{whole}} --neuron {UNIT}", "--neuron: got"),
        (f"attribute {{whole}} --neuron {UNIT}:-1", "must be UNIT:N, as in layers.2"),
        (f"attribute {{whole}} --neuron {UNIT}:1 --unit {UNIT}", "not allowed with argument"),
        (f"ablate {{attributed}} --neuron {UNIT}:12", "the unit's neurons are 0 to 11."),
        (f"attribute {{whole}} --unit {UNIT} --number 3", "unrecognized arguments: --number"),
        (f"attribute {{whole}} --level unit --neuron {UNIT}:3", "whole units are asked"),
        (
            "attribute {whole} --level head --neuron layers.1.self_attn:2",
            "layers.1.self_attn head 2: does not exist: they are 0 to 1.",
        ),
        (f"ablate {{attributed}} --only {UNIT}:12", "the unit's neurons are 0 to 11."),
        (f"ablate {{attributed}} --only {UNIT}:{HUGE}", "the unit's neurons are 0 to 11."),
        (f"ablate {{attributed}} --only {UNIT}:-1", "wanted UNIT:N[,N…]. For example"),
        (f"ablate {{attributed}} --only {UNIT}", "wanted UNIT:N[,N…]. For example"),
        (f"ablate {{attributed}} --only {UNIT}:1 --all", "cannot go with"),
        (f"ablate {{attributed}} --level row --only {UNIT}:16", "the unit's rows are 0 to 15."),
        ("ablate {attributed} --level head --only layers.1.self_attn:2", "heads are 0 to 1."),
        (
            "ablate {attributed} --level head",
            "has an attribution without tokens for any head. Run: ontogeny attribute "
            "memory://bad-input/attributed --level head, or choose: --only, --all.",
        ),
        ("ablate {attributed} --split test", "has no corpus/test.parquet"),
        (f"activations {{whole}} --neuron {UNIT}:12", "the unit's neurons are 0 to 11."),
        (f"activations {{whole}} --neuron {UNIT}:-1", "must be UNIT:N, as in layers.2"),
        (f"activations {{whole}} --neuron {UNIT}", "must be UNIT:N, as in layers.2"),
        ("activations {whole} --step 25", "has no weights after 25 steps; it has 24."),
        ("activations {whole} --steps 3,25", "--steps: got 25, but the last checkpoint is at 24"),
        ("activations {whole} --steps 3 --step 4", "--step: got --steps too"),
        ("activations {whole} --steps 3 --json", "--json: got --steps too"),
        ("faithfulness {whole} --step 0", "faithfulness.step: got 0, must be at least 1"),
        ("behaviour {whole} --datums 1,2,51", "has no datum 51: its datums are 0 to 50."),
        ("behaviour {whole} --datums 1,x", "--datums: 'x' is not the id of a datum. Give ids"),
        ("behaviour {whole} --datums ''", "--datums: names no datum"),
        ("behaviour {whole} --datums 1", "1 of 51 datums seen by training are among the 1 given"),
        ("behaviour {whole} --regex '('", "behaviour.regex: '(' is not a regular expression"),
        ("behaviour {whole} --regex xyz", "0 of 51 datums seen by training have text that matches"),
        ("behaviour {whole} --regex ''", "all but 0 of 51 datums seen by training"),
        ("behaviour {whole} --contains w1 --measure target", "measured for --target TOKEN only"),
        ("report {attributed} --to {whole}", "holds checkpoints/step-000000.safetensors and is no"),
    ],
)
def test_unknown_numbers_and_names_are_refused(command, text, runs, capsys):
    assert text in refusal(command, runs, capsys)


@pytest.mark.parametrize(
    "command",
    [
        "attribute {whole} --token W1x",
        "activations {whole} --tokens w2,W1x",
        "behaviour {whole} --contains W1x",
        "behaviour {whole} --target W1x",
    ],
)
def test_an_unknown_token_names_the_nearest(command, runs, capsys):
    said = refusal(command, runs, capsys)
    assert "'W1x'" in said
    assert re.search(r"\bw1\b", said)
