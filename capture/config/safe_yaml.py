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
# The loaders in C, which some builds of PyYAML lack, take a tenth of the time.
PLAIN_VALUES = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TEXTS_ONLY = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read_yaml(text: str) -> Any:
    """Return the parsed values. Raises ``ValueError`` with the reason for any other text."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS:,} characters")
    try:
        check_events(text)
        return load(text, PLAIN_VALUES)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        last = len(text.splitlines())  # the loader in C puts some errors after the last line
        line = f" (line {min(mark.line + 1, last)})" if mark else ""
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
    return load(text, TEXTS_ONLY)


def load(text: str, kind: Any) -> Any:
    """Return the values of a text, made by a loader of this kind; it makes no objects of types."""
    loader = kind(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def check_events(text: str) -> None:
    """Raise ``ValueError`` for tags, anchors, aliases and deep nesting, before any value is
    built."""
    depth = 0
    for event in yaml.parse(text, Loader=PLAIN_VALUES):
        depth += isinstance(event, OPENING) - isinstance(event, CLOSING)
        if depth > MAX_DEPTH:
            raise ValueError(f"has more than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("has an anchor or alias, which is not supported")
        if getattr(event, "tag", None):
            raise ValueError("has a tag, which is not supported")
