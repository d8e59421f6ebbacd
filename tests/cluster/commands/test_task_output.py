"""Commands show the accuracy of a task where they show the perplexity of a text."""

import pandas as pd
import pytest
from rich.console import Console
from tiny_tasks import tiny_task

from analysis.run.run import Run, open_run
from capture.engine.evaluation import Evaluation
from capture.training.loop import capture_run
from cluster.commands.capture import show_summary
from cluster.terminal.progress import evaluation_line
from cluster.terminal.run_tables import MOST_EPOCHS, losses


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("sums")
    settings = ("training.epochs=40", "capture.segment_steps=40")
    config = tiny_task(folder, "modular-addition", *settings)
    capture_run(config, lambda event: None)
    return open_run(config.run.uri)


def printed(shown: object) -> str:
    console = Console(width=100, record=True)
    console.print(shown)
    return console.export_text()


def test_the_table_of_losses_has_a_bounded_number_of_epochs_and_the_accuracy(run):
    text = printed(losses(run))
    last = run.evaluations().iloc[-1]
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert f"{MOST_EPOCHS} of 40 epochs" in text
    assert len(rows) - 1 == MOST_EPOCHS
    assert "accuracy" in text
    assert "perplexity" not in text
    assert rows[0][0] == "0"
    assert [rows[-2][0], rows[-2][-1]] == ["39", f"{last['accuracy']:.1%}"]


def test_the_summary_of_a_capture_has_the_accuracy(run):
    console = Console(width=100, record=True)
    show_summary(console, run)
    last = run.evaluations().iloc[-1]
    wanted = f"test loss {last['loss']:.3f}, accuracy {last['accuracy']:.1%}"
    assert wanted in console.export_text()


def test_an_evaluation_is_reported_with_its_step_or_epoch():
    text = Evaluation(1500, 2, "test", 0.5, 1.65, 100)
    task = Evaluation(1500, 2, "test", 0.5, 1.65, 100, 0.25, 0.2)
    assert evaluation_line(text) == "epoch 3: test loss 0.500, perplexity 1.6"
    assert evaluation_line(task) == "step 1,500: test loss 0.500, accuracy 25.0%"


def test_without_evaluations_there_is_no_perplexity(run, monkeypatch):
    monkeypatch.setattr(Run, "evaluations", lambda _: pd.DataFrame({"split": [], "epoch": []}))
    text = printed(losses(run))
    assert text.split()[:3] == ["epoch", "training", "loss"]
    assert not {"perplexity", "accuracy", "…"} & set(text.split())
