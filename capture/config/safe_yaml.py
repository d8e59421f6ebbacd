"""YAML as far as a configuration needs it: keys, lists and plain values, of bounded size and depth.

The text may come from a stranger. Anchors and aliases are refused, for with them a few lines can
stand for more values than memory holds; so are tags, which name types.
"""

from typing import Any

import yaml

MAX_CHARACTERS = 2**17
MAX_DEPTH = 32
OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def read_yaml(text: str) -> Any:
    """The values; raises ``ValueError`` with the reason in words for text that is not such YAML."""
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
        if str(error).startswith("has "):
            raise
        raise ValueError(f"is not valid YAML: {str(error)[:100]}") from error


def check_events(text: str) -> None:
    """Raises ``ValueError`` for what goes beyond plain values; builds none."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, OPENING) - isinstance(event, CLOSING)
        if depth > MAX_DEPTH:
            raise ValueError(f"has more than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("has an anchor or alias, which is not supported")
        if getattr(event, "tag", None):
            raise ValueError("has a tag, which is not supported")
