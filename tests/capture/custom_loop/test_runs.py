"""Runs of custom training loops: reading, analysing and resuming them."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_loops import TOP, Small, loss_of, tokens, uri
from tiny import contents
from torch import nn

from analysis.run.run import open_run
from capture.custom_loop.record import record
from capture.errors import RunError
from capture.maintenance.verify import verify
from capture.store import Store
from cluster.cli import main

SETTINGS: dict[str, Any] = {"outliers": TOP, "segment_steps": 4}
DATUMS: dict[str, Any] = {"datums": tokens(), "vocabulary": [f"w{i}" for i in range(11)]}


def train(model, optimizer, recorder, steps: range) -> None:
    """Train with three datums a step; every second step ends an epoch."""
    for step in steps:
        recorder.epoch = step // 2
        now = torch.arange(3 * step, 3 * step + 3) % 12
        recorder.datums(now)
        loss_of(model, tokens()[now]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 2:
            with torch.no_grad():
                recorder.evaluation("validation", float(loss_of(model, tokens())))


def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Small()
    return model, torch.optim.Adam(model.parameters(), 0.05)


def make(where: str, *, steps: int = 8, **more) -> None:
    model, optimizer = fresh()
    with record(model, optimizer, run=where, **(SETTINGS | DATUMS | more)) as recorder:
        train(model, optimizer, recorder, range(steps))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    where = uri(tmp_path_factory.mktemp("own"))
    make(where)
    return where


# --- reading --------------------------------------------------------------------------------------


def test_steps_have_epoch_and_batch(run):
    steps = open_run(run).steps()
    assert steps["epoch"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert steps["batch"].tolist() == [0, 1] * 4
    assert steps["loss"].between(1, 4).all()


def test_an_evaluation_after_the_last_step_of_a_segment_is_stored(run):
    evaluations = open_run(run).evaluations()
    assert evaluations["step"].tolist() == [2, 4, 6, 8]
    assert evaluations["epoch"].tolist() == [0, 1, 2, 3]
    assert [marker.end_step for marker in open_run(run).segments] == [4, 8]


def test_datums_have_texts_tokens_and_targets(run):
    opened = open_run(run)
    names = [f"w{token}" for token in tokens()[3, :-1]]
    assert opened.shifts(datum=3)["datum"].unique().tolist() == [" ".join(names)]
    assert (opened.target_NT == tokens()[:, 1:].numpy()).all()
    assert opened.num_steps == opened.steps_done == 8


def test_checkpoints_are_readable_and_the_model_is_not(run):
    opened = open_run(run)
    found = opened.checkpoint(4)
    assert found["layer.weight"].shape == (6, 6)
    assert found["optimizer/exp_avg/layer.weight"].shape == (6, 6)
    with pytest.raises(RunError, match="only its code can build the model"):
        opened.model()
    with pytest.raises(RunError, match="has no checkpoint after 5 steps"):
        opened.checkpoint(5)


ANY = ("--level", "row", "--min-count", "1", "--select", "study", "--most-frequent", "11")
"""On so little data no test is significant, so selection is by the study's rule."""


@pytest.mark.parametrize("options", [["--evidence", "target"], ["--evidence", "window"]])
def test_tokens_are_attributed(run, options, capsys):
    assert main(["attribute", run, *ANY, *options, "--replace"]) == 0
    assert "layer.weight" in (found := capsys.readouterr().out), found


def test_datums_with_names_are_attributed_like_tokens(tmp_path, capsys):
    make(uri(tmp_path), datums=[f"image-{i}" for i in range(12)], vocabulary=None)
    assert main(["attribute", uri(tmp_path), *ANY, "--evidence", "window"]) == 0
    assert "image-" in capsys.readouterr().out


def test_info_and_verify_accept_the_run(run, capsys):
    assert main(["info", run]) == 0
    shown = capsys.readouterr().out
    assert "8 of 8 steps, 2 segments (of a custom training loop)" in shown
    assert "Adam (β₁ 0.9, β₂ 0.999), initial learning rate 0.05" in shown
    assert "12 datums of 5 tokens" in shown
    assert main(["verify", run]) == 0


REFUSALS = {
    (
        "replay",
        "--record",
        "factors",
    ): "run.loop: is own (made by capture.custom_loop.record), but its steps",
    ("ablate",): "was recorded in a custom training loop, and only its code can build the model",
    (
        "activations",
    ): "was recorded in a custom training loop, and only its code can build the model",
}


@pytest.mark.parametrize("command", REFUSALS, ids=lambda command: command[0])
def test_commands_that_need_the_model_are_refused(run, command, capsys):
    assert main([command[0], run, *command[1:]]) == 2
    assert REFUSALS[command] in " ".join(capsys.readouterr().err.split())


def test_gradients_without_factors_are_refused(run):
    with pytest.raises(RunError, match="whose steps cannot be replayed"):
        open_run(run).gradient(0, 0, "layer.weight")


def test_datums_without_description_are_numbered(tmp_path, capsys):
    model, optimizer = fresh()
    with record(model, optimizer, run=uri(tmp_path), **SETTINGS):
        for _ in range(2):
            loss_of(model, tokens()).backward()
            optimizer.step()
            optimizer.zero_grad()
    opened = open_run(uri(tmp_path))
    assert opened.num_datums == 24
    assert opened.shifts(datum=[3, 23])["datum"].unique().tolist() == ["3", "23"]
    assert main(["info", uri(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["attribute", uri(tmp_path)]) == 2
    assert "Say what datums are: record(…, datums=…)" in capsys.readouterr().err
    with record(model, optimizer, run=uri(tmp_path), resume=True, **SETTINGS):
        loss_of(model, tokens()).backward()
        optimizer.step()
    assert open_run(uri(tmp_path)).steps()["datums"][2].tolist() == list(range(24, 36))


# --- resuming -------------------------------------------------------------------------------------


def test_an_existing_run_is_refused_unchanged(run):
    before = contents(run)
    with pytest.raises(RunError, match="holds a run already"):
        make(run)
    with pytest.raises(RunError, match=r"another configuration \(capture\.outliers\.k: 20 → 5"):
        make(run, outliers=type(TOP)(k=5), resume=True)
    assert contents(run) == before


def captured(where: str) -> dict[str, bytes]:
    """Files of a run without those of analyses."""
    found = contents(where)
    return {key: data for key, data in found.items() if not key.startswith("analysis/")}


def interrupted(where: str, error: type[BaseException] = KeyboardInterrupt, steps: int = 6) -> None:
    """Record some steps, four in a segment, and stop with an error."""
    model, optimizer = fresh()

    def loop() -> None:
        with record(model, optimizer, run=where, **DATUMS, **SETTINGS) as recorder:
            train(model, optimizer, recorder, range(steps))
            raise error

    with pytest.raises(error):
        loop()


def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    interrupted(uri(tmp_path))
    assert open_run(uri(tmp_path)).steps_done == 4
    model, optimizer = fresh()
    settings = DATUMS | SETTINGS
    with record(model, optimizer, run=uri(tmp_path), resume=True, **settings) as recorder:
        assert recorder.restore() == 4
        train(model, optimizer, recorder, range(4, 8))
    assert contents(uri(tmp_path)) == captured(run)
    assert verify(Store(uri(tmp_path))) == []


def test_a_run_without_steps_is_restored_at_step_0(tmp_path):
    for _ in range(2):
        model, optimizer = fresh()
        with record(
            model, optimizer, run=uri(tmp_path), resume=True, **DATUMS | SETTINGS
        ) as recorder:
            assert recorder.restore() == 0


def resumed(folder: Path, number: int, steps: int) -> None:
    """Go on with a run for some steps, each of so many datums."""
    model, optimizer = fresh()
    with record(model, optimizer, run=uri(folder), resume=True, **DATUMS | SETTINGS) as recorder:
        recorder.restore()
        for _ in range(steps):
            recorder.datums(range(number))
            loss_of(model, tokens()[:number]).backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(("number", "steps"), [(2, 2), (4, 1)])
def test_a_run_does_not_go_on_with_other_batches(tmp_path, number, steps):
    """One smaller batch may be an epoch's last."""
    interrupted(uri(tmp_path))
    wanted = rf"^step {3 + steps}: has {number} datums \(ranks: 1\), but the steps before have 3 "
    with pytest.raises(RunError, match=wanted):
        resumed(tmp_path, number, steps)
    assert open_run(uri(tmp_path)).steps_done == 4
    resumed(tmp_path, 3, steps=1)
    resumed(tmp_path, 2, steps=1)
    assert open_run(uri(tmp_path)).steps_done == 6


def test_resuming_with_other_weights_is_refused(tmp_path):
    interrupted(uri(tmp_path))
    with pytest.raises(RunError, match=r"continues after step 3, but embedding\.weight differs"):
        make(uri(tmp_path), resume=True)
    assert open_run(uri(tmp_path)).steps_done == 4


def test_overwrite_replaces_the_run(tmp_path):
    make(uri(tmp_path), steps=3)
    make(uri(tmp_path), steps=2, overwrite=True)
    assert open_run(uri(tmp_path)).steps_done == 2


def test_a_full_segment_survives_an_error_and_an_open_one_does_not(tmp_path):
    for steps, kept in ((4, 4), (7, 4), (3, 0)):
        where = uri(tmp_path, f"run{steps}")
        interrupted(where, ZeroDivisionError, steps)
        assert open_run(where).steps_done == kept


def test_a_second_recording_of_the_same_run_is_refused(tmp_path):
    model, optimizer = fresh()
    with record(model, optimizer, run=uri(tmp_path), **SETTINGS):
        other = fresh()
        with (
            pytest.raises(RunError, match="is being captured by process"),
            record(*other, run=uri(tmp_path), overwrite=True, **SETTINGS),
        ):
            pass
    assert not Store(uri(tmp_path)).exists("lease.json")


def test_all_hooks_are_removed(tmp_path):
    model, optimizer = fresh()
    with record(model, optimizer, run=uri(tmp_path), **SETTINGS):
        pass
    hooks = itertools.chain(
        *(optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks),
        model._forward_pre_hooks,
    )
    assert list(hooks) == []
