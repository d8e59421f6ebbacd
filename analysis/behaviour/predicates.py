"""Conditions on training datums that define a behaviour.

A datum ``contains`` a token, has it as a ``target``, has text that matches a ``regex``, or is in a
list of ``datums``.

Shapes: N datum, T position.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import compute

from analysis.run.names import token_id
from analysis.run.run import Run
from capture.errors import ConfigError, RunError

CONDITIONS = ("contains", "target", "regex", "datums")


@dataclass(frozen=True, kw_only=True)
class Predicate:
    """A condition on datums. Exactly one field is given."""

    contains: str | None = None
    """A token among the window's inputs."""
    target: str | None = None
    """A token among the window's targets."""
    regex: str | None = None
    """Searched in the window's text (tokens joined by spaces). RE2 syntax: linear in time."""
    datums: tuple[int, ...] | None = None
    """Datum ids."""

    def __post_init__(self) -> None:
        given = [name for name in CONDITIONS if getattr(self, name) is not None]
        if len(given) != 1:
            problem = f"got {', '.join(given) or 'no condition'}, must be exactly one"
            raise ConfigError("behaviour", problem, f"Give one of: {', '.join(CONDITIONS)}")

    def __str__(self) -> str:
        """A phrase that completes "datums that …"."""
        if self.datums is not None:
            return f"are among the {len(set(self.datums)):,} given"
        if self.contains is not None:
            return f"contain {self.contains!r}"
        if self.target is not None:
            return f"have the target {self.target!r}"
        return f"have text that matches {self.regex!r}"


def require_known(run: Run, predicate: Predicate) -> None:
    """Raise what ``select_datums`` raises, without a look at the datums."""
    for token in (predicate.contains, predicate.target):
        if token is not None:
            token_id(run.tokens, token)
    if predicate.regex is not None:
        matches_regex(pa.array([""]), predicate.regex)
    is_listed(run, predicate.datums or ())


def select_datums(run: Run, predicate: Predicate) -> np.ndarray:
    """Whether each training datum shows the behaviour, bool [N].

    Raises ``ConfigError`` for an unknown token or an invalid pattern, ``RunError`` for an unknown
    datum.
    """
    if predicate.contains is not None:
        return (run.token_NT == token_id(run.tokens, predicate.contains)).any(1)
    if predicate.target is not None:
        return (run.recorded_target_NT == token_id(run.tokens, predicate.target)).any(1)
    if predicate.regex is not None:
        return matches_regex(run.texts, predicate.regex)
    return is_listed(run, predicate.datums or ())


def matches_regex(texts: pa.Array, pattern: str) -> np.ndarray:
    try:
        found = compute.match_substring_regex(texts, pattern)
    except pa.ArrowInvalid as error:
        reason = re.sub(r"^.*?: ", "", str(error).splitlines()[0])
        problem = f"{pattern!r} is not a regular expression ({reason})"
        raise ConfigError("behaviour.regex", problem, "Use RE2 syntax") from error
    return found.to_numpy(zero_copy_only=False)


def is_listed(run: Run, datums: Sequence[int]) -> np.ndarray:
    is_listed_N = np.zeros(run.num_datums, bool)
    for datum in datums:
        if not 0 <= datum < run.num_datums:
            problem = f"has no datum {datum}: its datums are 0 to {run.num_datums - 1}"
            raise RunError(run.uri, problem)
    is_listed_N[list(datums)] = True
    return is_listed_N


def parse_datums(text: str, where: str) -> tuple[int, ...]:
    """Parse datum ids separated by commas or white space; raises ``ConfigError`` otherwise."""
    words = text.replace(",", " ").split()
    for word in words:
        if not re.fullmatch(r"\d+", word, re.ASCII):
            remedy = "Give ids separated by commas, or a file of them"
            raise ConfigError(where, f"{word!r} is not the id of a datum", remedy)
    if not words:
        raise ConfigError(where, "names no datum", "Give ids separated by commas")
    return tuple(map(int, words))
