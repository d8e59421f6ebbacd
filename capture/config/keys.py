"""The keys of the configuration: which exist, and which values they take."""

import difflib
import functools
import types
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from capture.config.settings import Config
from capture.errors import ConfigError

COMMON_WORDS = {
    "max_steps": "training.epochs",
    "num_steps": "training.epochs",
    "training.steps": "training.epochs",
    "lr": "training.learning_rate",
    "batch_size": "training.batch",
    "warmup": "training.schedule.warmup_steps",
    "dim": "model.width",
    "d_model": "model.width",
    "hidden_size": "model.width",
    "n_embd": "model.width",
    "n_layer": "model.layers",
    "num_layers": "model.layers",
    "n_head": "model.heads",
}
"""Names that other trainers give to a setting → its key here."""


def check_keys(values: dict[Any, Any], kind: type, prefix: str) -> None:
    """Raise ``ConfigError`` unless every nested key is a field of the dataclass at its level."""
    for name, value in values.items():
        check_key(f"{prefix}{name}")
        wanted = wanted_type(f"{prefix}{name}")
        if isinstance(value, dict) and typing.get_origin(wanted) is dict:
            continue
        if isinstance(value, dict) and isinstance(wanted, type) and is_dataclass(wanted):
            check_keys(value, wanted, f"{prefix}{name}.")
        elif is_dataclass(wanted) and value is not None:
            problem = f"got {value!r}, must be {describe(f'{prefix}{name}')}"
            raise ConfigError(f"{prefix}{name}", problem)
        elif isinstance(value, dict):
            raise ConfigError(f"{prefix}{name}", f"got keys, must be {describe(f'{prefix}{name}')}")


def check_key(key: str) -> None:
    """Raise ``ConfigError`` for an unknown dotted key. The error lists the allowed keys."""
    kind: Any = Config
    path = ""
    for part in key.split("."):
        if typing.get_origin(kind) is dict:
            return
        names = [f.name for f in fields(kind)] if is_dataclass(kind) else []
        if part not in names:
            near = similar_keys(key)
            hint = f"Perhaps {' or '.join(near)} is meant" if near else ""
            allowed = f"allowed here: {', '.join(names)}" if names else f"{path[:-1]} has no keys"
            raise ConfigError(key, f"unknown key; {allowed}", hint)
        kind = type_hints(kind)[part]
        path += f"{part}."


def similar_keys(key: str) -> list[str]:
    """Return up to two known dotted keys that may be meant by an unknown one.

    Their last words are like its last word: a key of the same group with another name misleads.
    """
    last = key.rpartition(".")[2]
    if meant := COMMON_WORDS.get(key) or COMMON_WORDS.get(last):
        return [meant]
    known = [name for name in every_key(Config) if not key.startswith(name)]
    if same := [name for name in known if name.rpartition(".")[2] == last]:
        return difflib.get_close_matches(key, same, n=2, cutoff=0)
    words = [name.rpartition(".")[2] for name in known]
    near = difflib.get_close_matches(last, words, n=2)
    close = [name for name, word in zip(known, words, strict=True) if word in near]
    return difflib.get_close_matches(key, close, n=1, cutoff=0)


def every_key(kind: Any, prefix: str = "") -> Iterable[str]:
    """Yield the dotted names of all fields of a dataclass and of those within."""
    for name, wanted in type_hints(kind).items():
        yield f"{prefix}{name}"
        if is_dataclass(wanted):
            yield from every_key(wanted, f"{prefix}{name}.")


@functools.cache
def type_hints(kind: type) -> dict[str, Any]:
    """Return the annotated types of a dataclass's fields."""
    return typing.get_type_hints(kind)


def wanted_type(key: str) -> Any:
    """Return the annotated type of a known dotted key; ``Any`` inside a plain dictionary."""
    kind: Any = Config
    for part in key.split("."):
        if typing.get_origin(kind) is dict:
            return Any
        kind = type_hints(kind)[part]
    return kind


def describe(key: str) -> str:
    """Describe in words which values a key takes."""
    return describe_type(wanted_type(key))


def describe_type(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind in plain:
        return plain[kind]
    if is_dataclass(kind):
        return "a group of keys: " + ", ".join(f.name for f in fields(kind))
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if typing.get_origin(kind) is list:
        return f"a list, each {describe_type(arguments[0])}"
    if typing.get_origin(kind) is dict:
        return "keys and values"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe_type(a) for a in arguments)
    return str(kind)
