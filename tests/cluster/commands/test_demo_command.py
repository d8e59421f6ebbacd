"""``ontogeny demo`` continues its own run, and never replaces another one."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console
from tiny import contents, make_run, tiny_config

from analysis.jobs.question import Question
from analysis.jobs.tables import write_tables
from analysis.run.run import Run, open_run
from capture.config.settings import to_values
from capture.training.loop import Progress, capture_run
from cluster.cli import main
from cluster.commands import demo
from cluster.options.analysis import Analysis
from cluster.options.machines import HERE


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the demo's command line for a tiny run at ``tmp_path/run``, without its analyses."""
    for name in ("perform", "report"):
        monkeypatch.setattr(demo, name, lambda *args, **options: None)
    values = to_values(tiny_config(tmp_path))
    leaves = [
        (f"{group}.{name}", value)
        for group in ("run", "corpus", "model", "training")
        for name, value in values[group].items()
        if not isinstance(value, dict)
    ]
    leaves += [("capture.segment_steps", 8), ("capture.outliers.k", 30)]
    settings = [f"{key}={'null' if value is None else value}" for key, value in leaves]
    return ["demo", *settings, "--quiet"]


def test_the_demo_continues_its_own_run(command, tmp_path):
    config = tiny_config(tmp_path)

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.steps_done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_run(config, stop)
    begun = {path: path.read_bytes() for path in (tmp_path / "run/segments").glob("s*.json")}
    assert len(begun) == 3
    assert main(command) == 0
    assert {path: path.read_bytes() for path in begun} == begun
    make_run(tiny_config(tmp_path, name="whole"))
    assert contents(str(tmp_path / "run")) == contents(str(tmp_path / "whole"))
    assert main(command) == 0


def test_the_demo_refuses_to_replace_another_run(command, tmp_path, capsys):
    make_run(tiny_config(tmp_path, "run.seed=7"))
    before = contents(str(tmp_path / "run"))
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "was made with another configuration (run.seed: 7 → 0)" in said
    assert len(said.splitlines()) == 1
    assert contents(str(tmp_path / "run")) == before


def test_the_demo_keeps_tables_that_answer_more(tmp_path, capsys):
    make_run(tiny_config(tmp_path))
    run = open_run(tmp_path / "run")
    asked = Question("job", {"top": 5}, {})
    frames, schemas = {"t": pd.DataFrame({"n": [1]})}, {"t": pa.schema([("n", pa.int32())])}
    done = []

    def compute(*arguments: object) -> dict[str, pd.DataFrame]:
        done.append(arguments)
        return frames

    def write(run: Run, found: dict[str, pd.DataFrame], question: Question, name: str) -> None:
        write_tables(run, "job", found, schemas, question)

    analysis = Analysis(lambda run: asked, compute, write, lambda *arguments: None)
    for options, times in (({"top": 5}, 1), ({"top": 5, "confirm": 1}, 0)):
        write_tables(run, "job", frames, schemas, Question("job", options, {}))
        done.clear()
        demo.perform_once(analysis, run, Console(), quiet=False, on=HERE)
        assert len(done) == times
    assert "Kept, as they answer more: the tables in" in capsys.readouterr().out


def test_stopping_the_demo_says_how_to_continue(command, monkeypatch, capsys):
    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("capture.training.loop.capture_run", stopped)
    assert main(command) == 130
    assert "Committed segments are safe; run the command again." in capsys.readouterr().err
