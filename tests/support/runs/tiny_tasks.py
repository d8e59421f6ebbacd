"""Runs on every task that take about a second each: their bundled configurations, made small."""

from pathlib import Path

from capture.config.reading import read_config
from capture.config.settings import Config

SMALL = {
    "modular-addition": (
        *("corpus.modular.modulus=7", "training.batch=20", "training.epochs=12"),
        *("model.width=16", "model.hidden=24", "training.evaluation_steps=5"),
        "training.learning_rate=0.01",
    ),
    "digits": ("model.hidden=8", "training.epochs=2", "corpus.test_share=0.9", "training.batch=6"),
    "induction": (
        *("corpus.window=15", "corpus.repeated.shortest=3", "corpus.repeated.longest=8"),
        *("corpus.repeated.datums=120", "corpus.repeated.tokens=9", "training.batch=6"),
        *("model.width=16", "training.epochs=1", "training.evaluation_steps=7"),
    ),
    "maze": (
        *("corpus.maze.size=5", "corpus.maze.moves=10", "corpus.window=35", "training.batch=6"),
        *("corpus.maze.corner=60", "corpus.maze.anywhere=60", "corpus.maze.held_out=9"),
        *("model.layers=1", "model.width=16", "model.hidden=24", "training.evaluation_steps=7"),
    ),
}
"""Bundled configuration → overrides that make it small."""
EVERYTHING = ("capture.record=shifts", "capture.factors.enabled=true", "capture.outliers.k=9")


def tiny_task(folder: Path, name: str, *overrides: str) -> Config:
    """Return the configuration of a small run on a task at ``folder/run``, in segments of 8."""
    own = ("capture.segment_steps=8", "training.device=cpu", f"run.uri={folder / 'run'}")
    return read_config(name, [*SMALL[name], *own, *overrides])
