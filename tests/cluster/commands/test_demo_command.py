"""``ontogeny demo`` continues its own run, and never replaces another one."""

from pathlib import Path

import pytest
from tiny import contents, make_run, tiny_config

from capture.config.settings import to_values
from capture.training.loop import Progress, capture_run
from cluster.cli import main
from cluster.commands import demo


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


def test_stopping_the_demo_says_how_to_continue(command, monkeypatch, capsys):
    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("capture.training.loop.capture_run", stopped)
    assert main(command) == 130
    assert "Committed segments are safe; run the command again." in capsys.readouterr().err
