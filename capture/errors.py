"""Errors that a user or the outside world can cause.

Each message says where the problem is, what was found, and what to do. Every class is a
``CaptureError``; the command line prints it as one line and exits with its ``exit_code``. Arguments
go positionally to ``super().__init__``, so that an error keeps its type and fields when it is
pickled between processes. Credentials are left out of every message. This module imports nothing
heavy, so that a command can import it cheaply.
"""

from capture.redaction import redact

BAD_INPUT = 2
"""Exit code: the request cannot be carried out. Nothing was changed."""
NOT_TRUSTWORTHY = 3
"""Exit code: the record, or the arithmetic behind it, is wrong."""


class CaptureError(Exception):
    """Where the problem is, what is wrong, and how to fix it."""

    exit_code = BAD_INPUT

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        where, problem, remedy = redact(where), redact(problem), redact(remedy)
        super().__init__(where, problem, remedy)
        self.where = where
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}"
        return f"{text}. {self.remedy}." if self.remedy else f"{text}."


class ConfigError(CaptureError):
    """A configuration key is unknown, has the wrong type, or has an impossible value."""


class CorpusError(CaptureError):
    """The text is missing, unreadable, or too short to train on."""


class UnitError(CaptureError):
    """A parameter cannot be captured, or the model does not have it."""


class RunError(CaptureError):
    """A run is absent, incomplete, already there, or has another configuration."""


class StoreError(CaptureError):
    """A store cannot be reached, read or written."""


class StoreAwayError(StoreError):
    """A store is unavailable now but may recover, so the request can be repeated."""


class ClusterError(CaptureError):
    """A cluster cannot be joined or used, or it lost a piece of work too often."""


class ShardError(CaptureError):
    """A file of a run is missing or differs from what its marker says."""

    exit_code = NOT_TRUSTWORTHY


class ColumnError(ShardError):
    """A table lacks a column, or has it in another type: another version wrote it."""


class SplitError(CaptureError):
    """The gradient that was captured for a datum is not that of a pass of this datum alone."""

    exit_code = NOT_TRUSTWORTHY


class ReplayError(CaptureError):
    """A replayed segment does not end at the weights that were captured."""

    exit_code = NOT_TRUSTWORTHY


class InfluenceError(CaptureError):
    """What training would have done with other data cannot be computed: numbers overflow."""

    exit_code = NOT_TRUSTWORTHY


class AuditError(CaptureError):
    """The per-datum shifts of a step do not add up to the applied change of the weights."""

    exit_code = NOT_TRUSTWORTHY


class IncompleteRunWarning(UserWarning):
    """A run holds fewer steps than it should: answers are about those that it holds."""


def at_least(name: str, found: float, least: float) -> None:
    """Raise ``ConfigError`` if ``found`` is below ``least`` or is not a number."""
    if not found >= least:  # not "found < least", which NaN would pass
        raise ConfigError(name, f"got {found}, must be at least {least}")


def at_most(name: str, found: float, most: float) -> None:
    """Raise ``ConfigError`` if ``found`` is above ``most`` or is not a number."""
    if not found <= most:  # not "found > most", which NaN would pass
        raise ConfigError(name, f"got {found}, must be at most {most}")
