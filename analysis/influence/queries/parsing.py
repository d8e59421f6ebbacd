"""Read queries as users write them: words of a command line, JSON objects, or files of JSON lines.

A file of queries comes from anywhere, so it cannot name a user's function: only a command line or
a program can. Of a run or a file, nothing is executed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, cast

from analysis.influence.queries.effects import LEVELS, EffectQuery
from analysis.influence.queries.material import QueryMaterial
from analysis.influence.queries.query import Query, unique_names
from analysis.influence.queries.specification import SPLITS, Specification
from analysis.influence.queries.states import (
    DirectionQuery,
    FunctionQuery,
    NormQuery,
    ParameterQuery,
)
from analysis.influence.queries.texts import (
    CompletionQuery,
    DatumQuery,
    SplitQuery,
    TextQuery,
    TokenQuery,
)
from analysis.run.run import Run
from capture.errors import ConfigError

KINDS: tuple[type[Specification], ...] = (
    *(CompletionQuery, TextQuery, DatumQuery, SplitQuery, TokenQuery, EffectQuery),
    *(ParameterQuery, NormQuery, DirectionQuery, FunctionQuery),
)
BY_KIND = {kind.kind: kind for kind in KINDS}
FORMS = {
    "loss": "loss[:SPLIT]",
    "datum": "datum:[SPLIT:]N",
    "token": "token:[SPLIT:]TOKEN",
    "text": "text:FILE",
    **{level: f"{level}:UNIT:N[@TOKEN]" for level in LEVELS},
    "parameter": "parameter:UNIT:INDEX",
    "norm": "norm:UNIT:N",
    "direction": "direction:MODULE:FILE.npy",
    "function": "function:MODULE:NAME",
}
"""First word of a query on the command line → the whole form."""
Asked = str | Mapping[str, Any] | Specification | Query
"""A query as a word, as JSON, as a specification, or ready."""


def build_queries(run: Run, asked: Iterable[Asked] | Asked) -> list[Query]:
    """Return the queries for a run, with distinct names, in order; ``asked`` may be a single one.

    Raises ``ConfigError`` if there is none, and a ``CaptureError`` for a query that cannot be asked
    of the run.
    """
    material, found = QueryMaterial(run), []
    if isinstance(asked, str | Specification | Query):
        asked = [asked]
    elif isinstance(asked, Mapping):
        asked = [cast("Mapping[str, Any]", asked)]
    for one in asked:
        if isinstance(one, Query):
            found.append(one)
        else:
            found += [built(each, material) for each in specifications(one)]
    if not found:
        raise ConfigError("queries", "are empty", f"For example: {FORMS['loss']}")
    names = unique_names([query.name for query in found])
    return [
        Query(name, query.description, query.parts, query.better)
        for name, query in zip(names, found, strict=True)
    ]


def built(asked: Specification, material: QueryMaterial) -> Query:
    """Build a query; its name says that training text was taken where the run has no other."""
    query = asked.build(material)
    by_default = not asked.name and vars(asked).get("split") == ""
    if by_default and asked.kind != SplitQuery.kind and material.held_out == "train":
        return replace(query, name=f"{query.name} on train (no held-out text)")
    return query


def specifications(asked: str | Mapping[str, Any] | Specification) -> list[Specification]:
    """Return what one word, JSON object or specification asks; a file may hold many.

    Raises ``ConfigError`` for a form that is unknown.
    """
    if isinstance(asked, Specification):
        return [asked]
    if isinstance(asked, Mapping):
        return [from_json(asked, "query")]
    if asked.endswith(".jsonl"):
        return read_file(asked)
    return [from_word(asked)]


# --- JSON -----------------------------------------------------------------------------------------


def read_file(path: str) -> list[Specification]:
    """Read a file of JSON objects, one a line; a line with ``prompt`` needs no ``kind``."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ConfigError(where, "is not JSON", "Write one object a line") from error
        if not isinstance(values, dict):
            raise ConfigError(where, f"is {type(values).__name__}, wanted an object")
        if values.get("kind") == FunctionQuery.kind:
            problem = "names a function, and files do not run code"
            raise ConfigError(where, problem, f"Give it as a word: {FORMS['function']}")
        found.append(from_json(values, where))
    if not found:
        raise ConfigError(path, "holds no query", 'One a line: {"prompt": …, "completion": …}')
    return found


def from_json(values: Mapping[str, Any], where: str) -> Specification:
    """Return the specification that a JSON object describes; ``where`` names it in errors."""
    kind = values.get("kind", CompletionQuery.kind if "prompt" in values else None)
    if kind not in BY_KIND:
        raise ConfigError(where, f"has kind {kind!r}, wanted {', '.join(BY_KIND)}")
    wanted = {field.name: field for field in fields(BY_KIND[kind])}
    given = {key: value for key, value in values.items() if key != "kind"}
    for key, value in given.items():
        if key not in wanted:
            raise ConfigError(where, f"has an unknown key {key!r}", f"Known: {', '.join(wanted)}")
        # Annotations here are types such as str or str | None; a bool would pass as an int.
        if isinstance(value, bool) or not isinstance(value, wanted[key].type):  # pyright: ignore
            raise ConfigError(where, f"has {key} = {value!r}, which has the wrong type")
    for key, field in wanted.items():
        if field.default is MISSING and key not in given:
            raise ConfigError(where, f"lacks {key!r}")
    return BY_KIND[kind](**given)


def read_text(path: str) -> str:
    """Read a UTF-8 file; raise ``ConfigError`` if that is impossible."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(path, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(path, "is not UTF-8", "Convert the file to UTF-8") from error


# --- words ----------------------------------------------------------------------------------------


def from_word(word: str) -> Specification:
    """Return the specification of a command line's word; raise ``ConfigError`` for another form."""
    kind, _, rest = word.partition(":")
    if kind not in FORMS or (not rest and kind != "loss"):
        forms = ", ".join(FORMS.values())
        raise ConfigError(
            f"query {word!r}", "has an unknown form", f"Wanted a .jsonl file, {forms}"
        )
    if kind in LEVELS:
        place, at, token = rest.partition("@")
        unit, number = unit_and_number(word, place)
        return EffectQuery(level=kind, unit=unit, number=number, token=token if at else None)
    if kind == "loss":
        return SplitQuery(split=rest)
    if kind == "text":
        return TextQuery(text=read_text(rest))
    if kind == "function":
        return FunctionQuery(function=rest)
    if kind == "direction":
        module, _, vector = rest.partition(":")
        return DirectionQuery(module=module, vector=vector)
    if kind in ("parameter", "norm"):
        unit, number = unit_and_number(word, rest)
        return (
            ParameterQuery(unit=unit, index=number)
            if kind == "parameter"
            else NormQuery(unit=unit, number=number)
        )
    first, colon, last = rest.partition(":")
    split, rest = (first, last) if colon and first in SPLITS else ("", rest)
    if kind == "token":
        return TokenQuery(token=rest, split=split)
    return DatumQuery(datum=natural(word, rest), split=split or "train")


def unit_and_number(word: str, text: str) -> tuple[str, int]:
    """Split UNIT:N; raise ``ConfigError`` for another form."""
    unit, _, number = text.rpartition(":")
    return unit, natural(word, number)


def natural(word: str, text: str) -> int:
    """Return a number of digits; raise ``ConfigError`` for anything else."""
    if not (text.isascii() and text.isdigit()):
        form = FORMS[word.partition(":")[0]]
        raise ConfigError(f"query {word!r}", f"has {text!r} for a number", f"Wanted {form}")
    return int(text)
