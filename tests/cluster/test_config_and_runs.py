"""``ontogeny config`` prints what can be read back; ``ontogeny runs`` lists what is there."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import make_run, tiny_config

from capture.config.documented_yaml import field_docs
from capture.config.reading import BUNDLED, read_config
from cluster.cli import main

CONFIGURATIONS = sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def written(arguments: list[str], folder: Path, capsys) -> Path:
    assert main(["config", *arguments]) == 0
    file = folder / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    return file


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_printed_configuration_reads_back_as_itself(name: str, tmp_path: Path, capsys) -> None:
    assert read_config(written([name], tmp_path, capsys)) == read_config(name)


@pytest.mark.parametrize(
    "setting",
    [
        *("run.uri=0123", "run.uri=on", "run.uri=12:30", "run.uri='a: #b'", "run.uri=null"),
        *("run.uri='[x]'", "training.learning_rate=1e-5", "run.uri='ü→ '"),
    ],
)
def test_values_that_yaml_retypes_read_back(setting: str, tmp_path: Path, capsys) -> None:
    file = written(["demo", setting], tmp_path, capsys)
    assert read_config(file) == read_config("demo", [setting])


def test_every_documented_setting_is_printed_with_its_documentation(capsys) -> None:
    assert main(["config", "demo"]) == 0
    out = capsys.readouterr().out
    text = " ".join(line.strip().removeprefix("# ") for line in out.splitlines())
    for name, doc in documentation(read_config("demo")):
        assert " ".join(doc.replace("``", "`").split()) in text, name
    assert "one of plain, deepspeed" in text
    assert max(map(len, out.splitlines())) <= 100


def documentation(group: Any) -> list[tuple[str, str]]:
    found = list(field_docs(type(group)).items())
    assert len(found) >= 1
    for field in fields(group):
        if is_dataclass(value := getattr(group, field.name)):
            found += documentation(value)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(tiny_config(folder, name="a/whole"))
    make_run(tiny_config(folder, name="b"))
    for part in ("000002", "000003"):
        for path in (folder / "b").rglob(f"*{part}*"):
            path.unlink()
    (folder / "c").mkdir()
    (folder / "c/run.yaml").write_text("config: 3\n")
    return folder


def test_runs_lists_steps_state_and_size(folder: Path, capsys) -> None:
    assert main(["runs", str(folder), "--json"]) == 0
    whole, short, damaged = json.loads(capsys.readouterr().out)
    assert (whole["run"], whole["state"]) == (str(folder / "a/whole"), "complete")
    assert (whole["steps_done"], whole["num_steps"]) == (28, 28)
    assert whole["bytes"] > 10_000
    assert (short["state"], short["num_steps"]) == ("not complete", 28)
    assert short["steps_done"] < 28
    assert (damaged["state"], damaged["bytes"]) == ("damaged", None)
    assert str(folder / "c") in damaged["problem"]
    assert main(["runs", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "28 of 28" in out
    assert damaged["problem"] in out


def test_runs_of_a_folder_without_any(tmp_path: Path, capsys) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "No runs under" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nosuch")]) == 2
    assert "is no folder. Name a folder on this machine" in capsys.readouterr().err
