"""Errors that a user or the outside world can cause: where, what was found, what to do.

Every one is a ``CaptureError``; the command line prints it as one line and leaves with its
``exit_code``. Arguments go positionally to ``super().__init__`` so that an error keeps its type and
its fields when it is pickled on the way between processes.
"""

BAD_INPUT = 2
"""Exit code: the request cannot be carried out as given; nothing was changed."""
NOT_TRUSTWORTHY = 3
"""Exit code: the record (or the arithmetic behind it) is not what it must be."""


class CaptureError(Exception):
    """A place, what is wrong there, and what to do about it."""

    exit_code = BAD_INPUT

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        super().__init__(where, problem, remedy)
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}"
        return f"{text}. {self.remedy}." if self.remedy else f"{text}."


class ConfigError(CaptureError):
    """A configuration key that is unknown, of the wrong type, or has an impossible value."""


class CorpusError(CaptureError):
    """Text that is missing, unreadable, or too short to train on."""


class UnitError(CaptureError):
    """A parameter that cannot be captured, or that the model does not have."""


class RunError(CaptureError):
    """A run that is absent, in the way, incomplete, or of another configuration."""


class StoreError(CaptureError):
    """A store that cannot be reached, read or written."""


class StoreAwayError(StoreError):
    """A store that does not serve now, and may later: what was asked can be asked again."""


class ClusterError(CaptureError):
    """A cluster that cannot be joined or used, or that lost a piece of work too often."""


class ShardError(CaptureError):
    """A file of a run that is missing or not what its marker says."""

    exit_code = NOT_TRUSTWORTHY


class ReplayError(CaptureError):
    """A replayed segment does not end where it ended when it was captured."""

    exit_code = NOT_TRUSTWORTHY


class AuditError(CaptureError):
    """The per-datum shifts of a step do not add up to the applied change of the weights."""

    exit_code = NOT_TRUSTWORTHY


def at_least(name: str, found: float, least: float) -> None:
    """Raises ``ConfigError`` for less, or what is no number."""
    if not found >= least:
        raise ConfigError(name, f"got {found}, must be at least {least}")


def at_most(name: str, found: float, most: float) -> None:
    """Raises ``ConfigError`` for more, or what is no number."""
    if not found <= most:
        raise ConfigError(name, f"got {found}, must be at most {most}")
