"""Look up names of units and tokens that a user gives, with suggestions for unknown ones."""

import difflib
from collections.abc import Sequence

from capture.errors import ConfigError

HINTS = 3
"""Number of suggested tokens."""


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint that names the most similar known name, however dissimilar it is."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"Did you mean {found[0]}" if found else ""


def token_id(tokens: Sequence[str], token: str) -> int:
    """Return the id of a token; raise ``ConfigError``, with similar tokens, for an unknown one."""
    if token in tokens:
        return tokens.index(token)
    spellings = dict.fromkeys((token, token.lower()))
    near = (difflib.get_close_matches(spelling, tokens, n=HINTS) for spelling in spellings)
    meant = next(filter(None, near), [])
    hint = f"Did you mean {' or '.join(meant)}" if meant else "See the run's corpus/vocab.parquet"
    raise ConfigError(f"token {token!r}", "is not in the vocabulary", hint)
