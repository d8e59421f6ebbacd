"""Make the datums of the configured task."""

from pathlib import Path

from capture.corpus.config import CorpusConfig
from capture.corpus.tasks.images import digits, mnist
from capture.corpus.tasks.maze import mazes
from capture.corpus.tasks.modular_addition import modular_addition
from capture.corpus.tasks.repeated import repeated_sequences
from capture.corpus.tasks.task import TaskDatums


def load_task(config: CorpusConfig) -> TaskDatums | None:
    """Return the datums of the configured task; None if the corpus is a text."""
    match config.kind:
        case "modular-addition":
            return modular_addition(config.modular)
        case "digits":
            return digits(config.images)
        case "mnist":
            assert config.path is not None
            return mnist(Path(config.path).expanduser(), config.images)
        case "repeated":
            path = None if config.path is None else Path(config.path).expanduser()
            return repeated_sequences(config.repeated, config.window, path)
        case "maze":
            return mazes(config.maze)
        case _:
            return None
