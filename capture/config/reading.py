"""Read a configuration from YAML and ``key=value`` overrides. Only this module uses OmegaConf.

Each part of the configuration is a frozen dataclass beside the code that it configures. This module
reads them together. Every mistake that a user can make raises one ``ConfigError`` with the key,
what was found and what is allowed.
"""

import copy
import difflib
import functools
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capture.config.keys import check_key, check_keys, describe, wanted_type
from capture.config.safe_yaml import read_texts, read_yaml
from capture.config.settings import Config, to_values
from capture.errors import ConfigError

BUNDLED = Path(__file__).parents[2] / "configs"
"""The folder of the bundled configurations, beside the installed package ``capture``. It is found
by path, not by import: a folder ``configs`` or a file ``configs.py`` of the user would come
first."""
DECIMAL = re.compile(r"[+-]?[0-9][0-9_]*")
"""A whole number as people write it; YAML 1.1 reads a leading 0 as octal."""
NOT_DECIMAL = re.compile(r"[+-]?(0[xXbBoO].*|[0-9_]+(:[0-9_.]+)+)")
"""Numbers of YAML 1.1 in another base: hexadecimal, binary, or base 60 such as 1:30."""


def read_config(source: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (None: the defaults) and apply ``key=value`` overrides.

    ``source`` is a path, or the name of a bundled configuration such as ``demo``. Raises
    ``ConfigError`` for a source that cannot be read and for wrong keys or values.

    Example:
        >>> ontogeny.read_config("demo", ["training.epochs=2"]).training.epochs
        2
    """
    text = "" if source is None else read_source(str(source))
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise ConfigError(str(source), str(error)) from error
    if isinstance(values, dict):
        check_keys(values, Config, "")
        values = typed_values(values, read_texts(text))
    return make_config(values or {}, overrides, where=str(source))


def read_source(source: str) -> str:
    """Return the text of a file, or else of the bundled configuration with this name."""
    path, bundled = Path(source), BUNDLED / f"{source}.yaml"
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
        if bundled.is_file():
            return bundled.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(source, f"cannot be read: {error}") from error
    names = sorted(entry.stem for entry in BUNDLED.glob("*.yaml"))
    beside = [str(found) for found in path.parent.glob("*.y*ml")]
    near = difflib.get_close_matches(source, [*names, *beside], n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    remedy = f"{meant}Give a YAML file or one of: {', '.join(names)}"
    raise ConfigError(source, "no such file", remedy)


def make_config(values: Any, overrides: Sequence[str] = (), *, where: str = "config") -> Config:
    """Build a configuration from nested values and overrides.

    ``where`` names the source in messages. Raises ``ConfigError`` for an unknown key, a wrong type
    or a wrong value.
    """
    if not isinstance(values, dict):
        raise ConfigError(where, f"must hold keys and values, not {type(values).__name__}")
    check_keys(values, Config, "")
    usual = default_leaves()
    # A stored configuration gives all keys; few differ.
    changed = [(key, value) for key, value in leaves(values) if usual.get(key) != repr(value)]
    return config_of(Changes(repr(changed), tuple(changed), tuple(overrides)))


@dataclass(frozen=True)
class Changes:
    """What differs from the defaults; changes with the same text are equal."""

    text: str
    changed: tuple[tuple[str, Any], ...] = field(compare=False)
    overrides: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def config_of(changes: Changes) -> Config:
    """Build a configuration; one run is opened again and again, and building takes long."""
    merged = copy.deepcopy(structured_defaults())
    for key, value in changes.changed:
        merged = with_key(merged, key, value)
    for override in changes.overrides:
        merged = with_key(merged, *read_override(override))
    try:
        return typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise config_error(error) from error


@functools.cache
def structured_defaults() -> DictConfig:
    """Return the defaults with their types, open to changes; change a copy.

    Making them takes five times as long as a copy.
    """
    made = OmegaConf.structured(Config)
    thaw(made)
    return made


def thaw(group: DictConfig) -> None:
    """Let values of a frozen dataclass and of those within be set. Modifies ``group``."""
    OmegaConf.set_readonly(group, False)
    for value in group.values():
        if isinstance(value, DictConfig):
            thaw(value)


@functools.cache
def default_leaves() -> dict[str, str]:
    """Return the ``repr`` of the default value of each dotted key."""
    return {key: repr(value) for key, value in leaves(to_values(Config()))}


def read_override(override: str) -> tuple[str, Any]:
    """Split ``key=value``. The value is parsed as YAML, unless the key takes text."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(override, "is not an override", "Write key=value, as in run.seed=1")
    check_key(key)
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise ConfigError(key, f"got {text!r}, which is not valid YAML") from error
    if isinstance(value, dict):
        raise ConfigError(key, f"got {text!r}, must be {describe(key)}")
    if wanted_type(key) is str:
        return key, text
    return key, typed_value(key, value, read_texts(text))


def typed_values(values: dict[str, Any], texts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values of known keys, each as ``typed_value`` reads it."""
    return {
        name: typed_values(value, texts.get(name, {}), f"{prefix}{name}.")
        if isinstance(value, dict)
        else typed_value(f"{prefix}{name}", value, texts.get(name))
        for name, value in values.items()
    }


def typed_value(key: str, value: Any, text: Any) -> Any:
    """Return a value as its key takes it: text as typed, and numbers in decimal.

    ``value`` is what YAML 1.1 makes of ``text``. Raises ``ConfigError`` for a number in another
    base where the key takes a number.
    """
    wanted = wanted_type(key)
    kinds = {wanted, *typing.get_args(wanted)}
    if typing.get_origin(wanted) is list:
        takes_text = str in kinds and isinstance(value, list)
        return texts_of(value, text) if takes_text else value
    if value is None or not isinstance(text, str):
        return value
    if str in kinds or any(isinstance(kind, str) for kind in kinds):
        return text
    if kinds & {int, float} and NOT_DECIMAL.fullmatch(text):
        problem = f"got {text!r}, must be {describe(key)}"
        raise ConfigError(key, problem, "Write it in decimal")
    return int(text) if kinds & {int, float} and DECIMAL.fullmatch(text) else value


def texts_of(values: list[Any], texts: list[Any]) -> list[Any]:
    """Return the texts of a list as typed; null and nested values stay as they are."""
    return [
        text if isinstance(text, str) and value is not None else value
        for value, text in zip(values, texts, strict=True)
    ]


def with_key(merged: DictConfig, key: str, value: Any) -> DictConfig:
    """Set one value, whose type the dataclass checks. Modifies ``merged`` and returns it.

    A copy for each key would take more time than all other work of reading.
    """
    if "${" in str(value):
        raise ConfigError(key, f"got {value!r}; interpolations are not supported")
    if isinstance(value, bool) and wanted_type(key) in (int, float):
        raise ConfigError(key, f"got {value}, must be {describe(key)}")
    try:
        OmegaConf.update(merged, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(key, f"got {value!r}, must be {describe(key)}") from error
    return merged


def leaves(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf of a nested dictionary."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif value is None and is_dataclass(wanted_type(f"{prefix}{name}")):
            continue
        else:
            yield f"{prefix}{name}", value


def config_error(error: OmegaConfBaseException) -> ConfigError:
    """Return the ``ConfigError`` of a dataclass that OmegaConf wrapped, or make one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return cause
        cause = cause.__cause__
    return ConfigError(str(getattr(error, "full_key", "config")), str(error).splitlines()[0])


def differences(found: Config, wanted: Config) -> list[str]:
    """List the keys whose values differ, each as ``key: found → wanted``.

    The location of the run, the number of workers and the engine are not compared, because they do
    not change what a run computes.
    """
    old, new = dict(leaves(to_values(found))), dict(leaves(to_values(wanted)))
    ignored = ("run.uri", "store.", "workers.", "engine", "deepspeed.")
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    keys = [key for key in changed if not key.startswith(ignored)]
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys]
