"""Access to the package transformers, and to the folders and hub ids that it reads.

Only the library's code runs, never code that comes with a model, and no pickle is read.
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
    """Return the exceptions that the libraries raise for settings or files they cannot use."""
    return (*BUILT_IN, import_module("huggingface_hub.errors").StrictDataclassError)


def load_transformers(where: str) -> Any:
    """Return the package; raises ``ConfigError`` for the setting ``where`` if not installed."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        problem = "needs transformers, which is not installed"
        raise ConfigError(where, problem, "Run: pip install 'ontogeny[hf]'") from error
    return transformers


def pretrained_arguments(where: str, path: str) -> dict[str, Any]:
    """Return arguments for ``from_pretrained``: ``path`` is a folder or an id on the hub.

    Raises ``ConfigError`` if it looks like a folder that does not exist.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    if path.startswith(("/", ".", "~")):
        raise ConfigError(where, f"got {path!r}, which is not a folder")
    return {"pretrained_model_name_or_path": path}


def unreadable_error(where: str, path: str, error: Exception) -> ConfigError:
    """Return the error for a path that the library cannot read."""
    problem = f"got {path!r}, which cannot be read: {first_line(error)}"
    return ConfigError(where, problem, "Give a folder, or a hub id with network access")


def first_line(error: Exception) -> str:
    """Return an error's text up to its first line that does not end in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    last = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))
    return " ".join(lines[: last + 1]).rstrip(".:") or type(error).__name__


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress the libraries' warnings and log lines; their errors are still raised."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
