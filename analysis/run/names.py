"""Names that a user gives, of units and tokens, and those that may have been meant."""

import difflib
from collections.abc import Sequence

from capture.errors import ConfigError

HINTS = 3
"""Tokens that are named as near; there may be many of them."""


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the one that may have been meant, however far it is."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"Did you mean {found[0]}" if found else ""


def token_id(tokens: Sequence[str], token: str) -> int:
    """Id of a token of the vocabulary; raises ``ConfigError`` with those near it."""
    if token in tokens:
        return tokens.index(token)
    spellings = dict.fromkeys((token, token.lower()))
    near = (difflib.get_close_matches(spelling, tokens, n=HINTS) for spelling in spellings)
    meant = next(filter(None, near), [])
    hint = f"Did you mean {' or '.join(meant)}" if meant else "See the run's corpus/vocab.parquet"
    raise ConfigError(f"token {token!r}", "is not in the vocabulary", hint)
