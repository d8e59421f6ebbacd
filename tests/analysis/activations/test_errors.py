"""Errors of the activation analysis, and its command."""

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from tiny_run import copied, tiny_run

from analysis.activations.config import ActivationConfig
from analysis.activations.tables import JOB, TABLES, activations
from analysis.jobs.tables import read_table, write_tables
from analysis.run.run import Run, open_run
from capture.errors import CaptureError, ConfigError, RunError, UnitError
from capture.format.markers import START
from cluster import cli
from cluster.commands import activations as command

UNIT = "layers.1.linear2.weight"
ATTRIBUTED = pa.schema(
    [("level", pa.string()), ("unit", pa.string()), ("group", pa.int32()), ("token_id", pa.int32())]
)


def attributed(name: str, *rows: tuple[str, str, int, int], schema: pa.Schema = ATTRIBUTED) -> Run:
    """Return a run with these attributed tokens: level, unit, group, token id."""
    run = open_run(copied(tiny_run(), f"memory://activations-{name}").uri)
    frame = pd.DataFrame(rows, columns=ATTRIBUTED.names)
    write_tables(run, "attribute", {"tokens": frame}, {"tokens": schema})
    return run


def about(run: Run, **settings: Any) -> dict[str, Any]:
    (row,) = activations(run, ActivationConfig(**settings)).about.to_dict("records")
    return {str(name): value for name, value in row.items()}


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (
            {"tokens": ("w3", "W33")},
            ConfigError,
            "token 'W33': is not in the vocabulary. Did you mean w3.",
        ),
        (
            {"tokens": ("zebra",)},
            ConfigError,
            "token 'zebra': is not in the vocabulary. See the run's corpus/vocab.parquet.",
        ),
        (
            {"tokens": ("<unk>",)},
            ConfigError,
            "activations.tokens: '<unk>' does not occur in the training datums as target. "
            "Choose another token.",
        ),
        (
            {"neuron": "layers.7.linear1.weight:0"},
            UnitError,
            "layers.7.linear1.weight: has no neurons. Did you mean layers.1.linear1.weight.",
        ),
        (
            {"neuron": f"{UNIT}:12"},
            UnitError,
            f"{UNIT} neuron 12: does not exist: the unit's neurons are 0 to 11.",
        ),
        (
            {"neuron": UNIT},
            ConfigError,
            f"activations.neuron: got '{UNIT}', must be UNIT:N, as in layers.2.linear2.weight:96.",
        ),
        (
            {"by": "position"},
            ConfigError,
            "activations.by: got 'position', must be target or input.",
        ),
        (
            {"step": 25},
            RunError,
            "memory://tiny-run: has no weights after 25 steps; it has 24.",
        ),
    ],
)
def test_bad_input_is_named(settings: dict[str, Any], error: type[CaptureError], text: str) -> None:
    with pytest.raises(error) as caught:
        activations(open_run(tiny_run()), ActivationConfig(**settings))
    assert str(caught.value) == text


def test_a_run_without_a_segment_is_refused() -> None:
    store = copied(tiny_run(), "memory://activations-begun")
    for key in store.keys("segments"):
        if key != START:
            store.delete(key)
    with pytest.raises(RunError, match="holds no committed segment yet"):
        activations(open_run(store.uri), ActivationConfig())


def test_attribution_of_fewer_steps_is_refused_only_if_it_is_needed() -> None:
    run = attributed("stale", ("neuron", UNIT, 4, 5))
    run.store.delete(max(key for key in run.store.keys("segments") if key != START))
    shorter = open_run(run.uri)
    with pytest.raises(RunError, match="has tables of attribute for 24 steps, but 21 are done"):
        activations(shorter, ActivationConfig())
    assert about(shorter, tokens=("w3",), neuron=f"{UNIT}:4")["step"] == 21


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (command,))


def test_the_command_shows_ranks_and_the_neuron(capsys: pytest.CaptureFixture[str]) -> None:
    uri = copied(tiny_run(), "memory://activations-command").uri
    asked = ["--tokens", "w3,w7", "--neuron", f"{UNIT}:4", "--rows", "1"]
    assert cli.main(["activations", uri, *asked]) == 0
    out = capsys.readouterr().out
    assert "Mean activation over the positions that predict a token, among 408 of 51 datums." in out
    assert "Neurons on “w3”" in out
    assert "1 more tokens are in the tables; see --rows." in out
    assert f"{UNIT}, neuron 4 on “w3”, and its neighbours there" in out
    told = " ".join(out.split())
    assert "of the unit's 12 neurons have a higher mean," in told
    assert "of all 56 are further from their own overall mean" in told
    assert read_table(open_run(uri), JOB, "about", TABLES["about"])["neuron"].item() == 4
    again = ["--by", "input", "--step", "7", "--quiet", "--replace"]
    assert cli.main(["activations", uri, *asked, *again]) == 0
    assert capsys.readouterr().out == ""
    table = read_table(open_run(uri), JOB, "about", TABLES["about"])
    assert (table["by"].item(), table["step"].item()) == ("input", 7)


def test_bad_input_is_one_line_and_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["activations", tiny_run(), "--tokens", "w3,,w7"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ontogeny: token '': is not in the vocabulary.")
    assert err.count("\n") == 1
