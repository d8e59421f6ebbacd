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


ANSWER_TIMEOUT_SECONDS = 5
"""How long one request to the hub may take."""


def hub_problem() -> str:
    """Return why the hub cannot be reached; empty if it answers.

    The library itself repeats a request for half a minute; this is a single one.
    """
    library = import_module("huggingface_hub")
    try:
        library.get_session().head(library.constants.ENDPOINT, timeout=ANSWER_TIMEOUT_SECONDS)
    except Exception as error:  # the library and its HTTP client share no base
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {first_line(cause)}"
    return ""


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


def pretrained_arguments(where: str, path: str, revision: str | None = None) -> dict[str, Any]:
    """Return arguments for ``from_pretrained``: ``path`` is a folder or an id on the hub.

    ``revision``: branch, tag or commit of an id; None: its default.

    Where the hub cannot be reached, only files that were fetched earlier are read. Raises
    ``ConfigError`` if it looks like a folder that does not exist.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    if path.startswith(("/", ".", "~")):
        raise ConfigError(where, f"got {path!r}, which is not a folder")
    load_transformers(where)
    chosen = {} if revision is None else {"revision": revision}
    return {
        "pretrained_model_name_or_path": path,
        "local_files_only": bool(hub_problem()),
        **chosen,
    }


def unreadable_error(where: str, path: str, error: Exception) -> ConfigError:
    """Return the error for a path that the library cannot read."""
    problem = f"got {path!r}, which cannot be read: {first_line(error)}"
    return ConfigError(where, problem, "Give a folder, or a hub id with network access")


def first_line(error: BaseException) -> str:
    """Return an error's text up to its first line that does not end in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    last = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))
    return " ".join(lines[: last + 1]).rstrip(".:") or type(error).__name__


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Suppress the libraries' progress bars unless ``shown``: they are for files to fetch."""
    library: Any = import_module("transformers.utils.logging")
    before = library.is_progress_bar_enabled()
    if not shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            library.enable_progress_bar()


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
