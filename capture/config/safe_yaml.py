"""A safe subset of YAML: keys, lists and plain values, of bounded size and depth.

The text may come from an untrusted source. Anchors and aliases are refused, because with them a few
lines can expand to more values than memory holds. Tags are refused, because they name types.
"""

from typing import Any

import yaml

MAX_CHARACTERS = 2**17
MAX_DEPTH = 32
OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def read_yaml(text: str) -> Any:
    """Return the parsed values. Raises ``ValueError`` with the reason for any other text."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS:,} characters")
    try:
        check_events(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"is not valid YAML{line}") from error
    except (ArithmeticError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("is not valid YAML") from error
    except ValueError as error:
        if str(error).startswith("has "):  # raised by check_events
            raise
        raise ValueError(f"is not valid YAML: {str(error)[:100]}") from error


def read_texts(text: str) -> Any:
    """Like ``read_yaml``, but return every plain value as the text that stands in the file.

    YAML 1.1 reads ``on`` as true, ``010`` as 8 and ``12:30`` as 750. ``text`` must be text that
    ``read_yaml`` accepts.
    """
    loader = yaml.BaseLoader(text)  # makes only text, lists and dictionaries
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def check_events(text: str) -> None:
    """Raise ``ValueError`` for tags, anchors, aliases and deep nesting, before any value is
    built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, OPENING) - isinstance(event, CLOSING)
        if depth > MAX_DEPTH:
            raise ValueError(f"has more than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("has an anchor or alias, which is not supported")
        if getattr(event, "tag", None):
            raise ValueError("has a tag, which is not supported")
