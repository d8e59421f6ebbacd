"""Checkpoints of other people: found by name, measured like those of a run; one-line errors."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tiny import TEXT
from tiny_hf import save_model, save_tokenizer

from analysis.jobs.loose_tables import read_loose_table
from analysis.trajectory.checkpoints.of_folder import checkpoints_at
from analysis.trajectory.config import TrajectoryConfig
from analysis.trajectory.observed.files import FileTexts
from analysis.trajectory.stored import trajectory_of_checkpoints
from analysis.trajectory.tables import TRAJECTORY
from capture.errors import CaptureError, ConfigError
from capture.models.huggingface import HFConfig
from capture.store import Store
from cluster.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a GPT-2 whose embedding changes by 0.1 each time, and a text."""
    here = tmp_path_factory.mktemp("stranger")
    model = save_model(here / "checkpoint-0", "gpt2", vocabulary=290)
    for step in (5, 50):
        with torch.no_grad():
            sign_D = 1 - 2 * (torch.arange(8) % 2)  # a constant would change no logit
            model.transformer.wte.weight += 0.1 * sign_D  # pyright: ignore
        model.whole.save_pretrained(here / f"checkpoint-{step}")
        save_tokenizer(here / f"checkpoint-{step}")
    (here / "checkpoint-last").mkdir()
    (here / "text.txt").write_text(TEXT)
    return here


def texts(folder: Path, **more) -> FileTexts:
    return FileTexts(place=str(folder), text=str(folder / "text.txt"), **more)


def test_checkpoints_are_measured_like_the_library_does(folder: Path) -> None:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    config = TrajectoryConfig(metrics=("loss", "update_norm", "induction"), datums=5000)
    found = trajectory_of_checkpoints(texts(folder), config)
    assert found.checkpoints["source"].tolist() == ["checkpoint-0", "checkpoint-5", "checkpoint-50"]
    changed = 0.1 * (290 * 8) ** 0.5
    assert found.series("update_norm")["value"].to_numpy() == pytest.approx(changed, rel=1e-4)
    last = GPT2LMHeadModel.from_pretrained(folder / "checkpoint-50").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "checkpoint-50")
    token_M = torch.tensor(tokenizer(TEXT)["input_ids"])
    ends = range(0, (len(token_M) - 1) // 8 * 8, 8)
    rows = torch.stack([token_M[end : end + 9] for end in ends])
    with torch.no_grad():
        logits_NTV = last(rows[:, :-1]).logits
    wanted = torch.nn.functional.cross_entropy(logits_NTV.flatten(0, 1), rows[:, 1:].flatten())
    assert found.series("loss")["value"].iloc[-1] == pytest.approx(float(wanted), rel=1e-4)
    assert np.isnan(found.series("loss")["null"]).all()  # no training text is known


def test_safetensors_files_beside_a_config_are_the_same_checkpoints(
    folder: Path, tmp_path: Path
) -> None:
    for step in (0, 5, 50):
        inside = folder / f"checkpoint-{step}"
        shutil.copy(inside / "model.safetensors", tmp_path / f"step-{step:04d}.safetensors")
    shutil.copy(inside / "config.json", tmp_path)
    config = TrajectoryConfig(metrics=("weight_norm", "copying"))
    one = trajectory_of_checkpoints(FileTexts(place=str(tmp_path)), config)
    other = trajectory_of_checkpoints(FileTexts(place=str(folder)), config)
    pd.testing.assert_frame_equal(one.trajectory, other.trajectory)


def test_without_text_the_other_metrics_are_measured(folder: Path) -> None:
    found = trajectory_of_checkpoints(FileTexts(place=str(folder)), TrajectoryConfig(datums=4))
    omitted = found.metrics.set_index("metric")["omitted"]
    assert omitted["loss"] == "needs held-out text"
    assert {"induction", "copying", "weight_norm"} <= set(found.trajectory["metric"])


def test_the_command_writes_tables_and_a_page_where_it_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trajectory", str(folder), "--metrics", "loss", "--text", str(folder / "text.txt")]
    assert main([*words, "--to", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "loss: " in said
    assert f"Tables: {tmp_path}/analysis/trajectory/" in said
    rows = read_loose_table(Store(str(tmp_path)), "trajectory", "trajectory", TRAJECTORY)
    assert rows["step"].tolist() == [0, 5, 50]
    assert (tmp_path / "analysis" / "trajectory" / "index.html").is_file()
    assert main([*words, "--to", str(tmp_path), "--datums", "9"]) == 2
    assert "holds the tables of another question (datums=200, now datums=9)" in (
        capsys.readouterr().err
    )
    assert main([*words, "--to", str(tmp_path), "--datums", "9", "--replace", "--quiet"]) == 0


# --- bad input ------------------------------------------------------------------------------------


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--to: is missing, and .* is no run"),
        (["--to", "{}/out", "--split", "test"], "--split: is given"),
        (["--to", "{}/out", "--steps", "0,7"], "got 7, but .* The nearest is at 5"),
        (["--to", "{}/out", "--text", "nowhere.txt"], "nowhere.txt: does not exist"),
        (["--to", "{}/out", "--metrics", "loss"], "needs held-out text, which this model or text"),
        (["--to", "{}/out", "--window", "9"], "--window: got 9, but the model takes 8 tokens"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options, message: str
) -> None:
    words = [word.format(tmp_path) for word in options]
    assert main(["trajectory", str(folder), *words]) == 2
    assert re.search(message, one_line(capsys))
    assert not list(tmp_path.rglob("*.parquet"))


def test_folders_that_hold_no_trajectory_say_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run and holds no checkpoints; wanted folders"):
        checkpoints_at(str(tmp_path))
    save_file({"a": torch.zeros(2)}, tmp_path / "step-1.safetensors")
    with pytest.raises(ConfigError, match=r"no config\.json that describes their model"):
        checkpoints_at(str(tmp_path))
    for name in ("a-7", "b-07"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has two checkpoints of step 7: a-7 and b-07"):
        checkpoints_at(str(tmp_path))
    with pytest.raises(ConfigError, match="main ends in no step"):
        checkpoints_at("someone/model@main,step2")
    with pytest.raises(ConfigError, match="is neither a run nor a folder"):
        checkpoints_at("someone/model")


def test_a_damaged_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "checkpoint-0", tmp_path / "checkpoint-0")
    shutil.copytree(folder / "checkpoint-5", tmp_path / "checkpoint-5")
    (tmp_path / "events-7").mkdir()  # of another kind
    assert checkpoints_at(str(tmp_path)).available == [0, 5]
    (tmp_path / "checkpoint-5" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"checkpoint-5 has no config\.json, as the other"):
        checkpoints_at(str(tmp_path))
    shutil.copy(tmp_path / "checkpoint-0" / "config.json", tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "model.safetensors").unlink()
    with pytest.raises(CaptureError, match="checkpoint-5"):
        trajectory_of_checkpoints(FileTexts(place=str(tmp_path)), TrajectoryConfig())


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "checkpoint-0" / "config.json", tmp_path)
    for step in (1, 2):
        save_file({"a": torch.zeros(2)}, tmp_path / f"step-{step}.safetensors")
    with pytest.raises(CaptureError, match=r"step-2\.safetensors: (lacks|has an unknown) "):
        trajectory_of_checkpoints(FileTexts(place=str(tmp_path)), TrajectoryConfig())


# --- revisions on the hub -------------------------------------------------------------------------


def test_revisions_are_asked_of_the_hub_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def read(path: str, revision: str):
        from analysis.trajectory.checkpoints.pretrained import pretrained_model

        asked.append((path, revision))
        return pretrained_model(str(folder / revision.replace("step", "checkpoint-")))

    home = "analysis.trajectory.checkpoints.of_folder.pretrained_model"
    monkeypatch.setattr(home, read)
    place = FileTexts(place="someone/model@step0,step50")
    found = trajectory_of_checkpoints(place, TrajectoryConfig(metrics=("weight_norm",)))
    assert found.checkpoints["source"].tolist() == ["step0", "step50"]
    assert set(asked) == {("someone/model", "step0"), ("someone/model", "step50")}


def test_a_revision_without_network_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("capture.models.hub.hub_problem", lambda: "OSError: no route to host")
    words = ["trajectory", "nobody/no-such-model@step1,step1000", "--to", str(tmp_path / "out")]
    assert main(words) == 2
    said = one_line(capsys)
    assert said.startswith("ontogeny: nobody/no-such-model@step1000: got 'nobody/no-such-model', ")
    assert said.endswith("Give a folder, or a hub id with network access.\n")
    assert not list(tmp_path.iterdir())


def test_a_revision_needs_an_id_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Only ids on the hub have revisions"):
        HFConfig(revision="step5")
    with pytest.raises(ConfigError, match="Only ids on the hub have revisions"):
        HFConfig(path=str(tmp_path), revision="step5")
    assert HFConfig(path="someone/model", revision="step5").revision == "step5"
