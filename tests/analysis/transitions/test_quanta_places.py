"""Quanta of other people's checkpoints, through the command: a text is needed, and a place."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny import TEXT
from tiny_hf import save_model

from analysis.jobs.loose_tables import read_loose_table
from analysis.transitions.quanta.tables import SCHEMAS
from capture.store import Store
from cluster.cli import main

SMALL = ["--clusters", "2", "--positions", "16", "--draws", "1", "--steps", "all"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine checkpoints of a GPT-2, as one configuration with a file for each."""
    here = tmp_path_factory.mktemp("stranger")
    model = save_model(here, "gpt2", vocabulary=290)
    (here / "model.safetensors").unlink()
    for number in range(9):
        weights = {name: weight.clone() for name, weight in model.whole.state_dict().items()}
        weights["transformer.wte.weight"] *= 1 + number
        del weights["lm_head.weight"]  # tied
        save_file(weights, here / f"step-{2**number}.safetensors", {"format": "pt"})
    (here / "text.txt").write_text(TEXT)
    return here


def test_stored_checkpoints_have_quanta(folder: Path, tmp_path: Path) -> None:
    text = ["--text", str(folder / "text.txt")]
    assert main(["quanta", str(folder), *SMALL, *text, "--to", str(tmp_path), "--quiet"]) == 0
    place = Store(str(tmp_path))
    found = read_loose_table(place, "quanta", "curves", SCHEMAS["curves"])
    assert sorted(set(found["step"])) == [2**number for number in range(9)]
    assert place.exists("analysis/quanta/index.html")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--to", "PLACE"], "quanta: needs a text to predict"),
        (["--text", "TEXT"], "--to: is missing"),
        (["--text", "TEXT", "--to", "PLACE", "--split", "test"], "--split: is given, but"),
    ],
)
def test_what_is_missing_is_said_and_nothing_written(
    folder: Path,
    tmp_path: Path,
    options: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"PLACE": str(tmp_path / "to"), "TEXT": str(folder / "text.txt")}
    given = [names.get(option, option) for option in options]
    assert main(["quanta", str(folder), *SMALL, *given]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert not Store(str(tmp_path / "to")).exists("analysis/quanta/tables.json")
