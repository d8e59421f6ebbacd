"""A configuration as YAML in which comments document each setting; it can be read back."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import yaml

from capture.config.keys import describe_type
from capture.config.settings import Config

WIDTH = 100
INDENT = "  "


def config_yaml(config: Config) -> str:
    """Return all settings of a configuration, defaults included, with their documentation."""
    return "\n".join(group_lines(config, "")) + "\n"


def group_lines(group: Any, indent: str) -> Iterator[str]:
    """The lines of a dataclass: for each field its documentation, then its value."""
    documented, kinds = field_docs(type(group)), get_type_hints(type(group))
    for field in fields(group):
        value = getattr(group, field.name)
        if is_dataclass(value):
            yield from comment(inspect.getdoc(type(value)) or "", indent)
            yield f"{indent}{field.name}:"
            yield from group_lines(value, indent + INDENT)
        else:
            text = f"{documented.get(field.name, '')} ({describe_type(kinds[field.name])})"
            yield from comment(text.strip(), indent)
            yield from value_lines(field.name, value, indent)
        if not indent:
            yield ""


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, as its source has it."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for line, following in zip(made.body, made.body[1:], strict=False):
        match line, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text)
    return found


def comment(text: str, indent: str) -> list[str]:
    """Lines of a comment; reStructuredText's double backticks become plain quotes."""
    text = " ".join(text.replace("``", "`").split())
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def value_lines(name: str, value: Any, indent: str) -> list[str]:
    text = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=10**6)
    return textwrap.indent(text.rstrip("\n"), indent).split("\n")
