"""The package transformers, and the places that models and tokenizers are read from.

Only the library's own code runs, never a model's, and nothing that is read may be a pickle.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from capture.errors import ConfigError

BUILT_IN = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, IndexError, KeyError),
    *(OSError, RuntimeError, TypeError, ValueError),
)


def library_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise for settings or files that they cannot use."""
    return (*BUILT_IN, import_module("huggingface_hub.errors").StrictDataclassError)


def load_transformers(where: str) -> Any:
    """The package; raises ``ConfigError`` where it is not installed."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        problem = "needs transformers, which is not installed"
        raise ConfigError(where, problem, "Run: pip install 'ontogeny[hf]'") from error
    return transformers


def pretrained_arguments(where: str, path: str) -> dict[str, Any]:
    """Arguments for the library's readers: a folder, or else an id on the hub."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    if path.startswith(("/", ".", "~")):
        raise ConfigError(where, f"got {path!r}, which is no folder")
    return {"pretrained_model_name_or_path": path}


def unreadable_error(where: str, path: str, error: Exception) -> ConfigError:
    problem = f"got {path!r}, which cannot be read: {first_line(error)}"
    return ConfigError(where, problem, "Give a folder, or a hub's id and a network")


def first_line(error: Exception) -> str:
    """What an error says, up to the end of the first line that does not announce another."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    last = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))
    return " ".join(lines[: last + 1]).rstrip(".:") or type(error).__name__


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Within: what the libraries have to say stays unsaid; their errors are ours to tell."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
