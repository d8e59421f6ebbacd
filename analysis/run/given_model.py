"""What the user says about a run's model: the module of a custom loop, and where its parts are."""

import copy
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from capture.errors import ConfigError, RunError
from capture.models.perceptron import Perceptron
from capture.models.transformer import LanguageModel
from capture.parts import KnownModel, ModelParts, parted

Given = nn.Module | ModelParts | tuple[nn.Module, ModelParts] | Callable[[], Any]
"""A module, its parts, both, or a function that returns one of these."""
NUM_DATUMS = 3
"""Datums on which a model's parts are found."""


@dataclass(frozen=True, eq=False)
class GivenModel:
    """A module whose weights are replaced by those of checkpoints, and what is said of its parts.

    Either may be missing: the run knows the module unless it was recorded in a custom loop, and
    parts are found by structure.
    """

    module: nn.Module | None = None
    parts: ModelParts | None = None

    @classmethod
    def of(cls, given: Given | None) -> "GivenModel":
        """Return what was given; raises ``ConfigError`` for anything else."""
        if callable(given) and not isinstance(given, nn.Module):
            given = given()
        if given is None:
            return cls()
        pair = given if isinstance(given, tuple) else (given,)
        modules = [own for own in pair if isinstance(own, nn.Module)]
        parts = [own for own in pair if isinstance(own, ModelParts)]
        if len(modules) > 1 or len(parts) > 1 or len(modules) + len(parts) != len(pair):
            problem = f"got {type(given).__name__}, must be a module, its ModelParts, or both"
            remedy = "Or give a function without arguments that returns it"
            raise ConfigError("model", problem, remedy)
        return cls(modules[0] if modules else None, parts[0] if parts else None)

    def copy(self) -> nn.Module:
        """Return a copy of the module, without the wrapper of ``torch.compile``."""
        assert self.module is not None
        return copy.deepcopy(getattr(self.module, "_orig_mod", self.module))


def known_model(
    network: nn.Module, token_NT: np.ndarray, given: GivenModel, uri: str
) -> KnownModel:
    """Return a model with its parts, found on the first datums; the study's transformer as it is.

    Raises ``RunError`` for a perceptron, and ``ConfigError`` if parts are not found, or if the
    model does not take the tokens.
    """
    if isinstance(network, LanguageModel):
        return network
    if isinstance(network, Perceptron):
        problem = "has a perceptron, which has no layers of neurons and heads"
        remedy = "These work with any model: attribute, behaviour, influence, report"
        raise RunError(uri, problem, remedy)
    token = torch.from_numpy(token_NT[:NUM_DATUMS]).long()
    try:
        return parted(network, token, given.parts)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        problem = f"fails on token ids of shape {list(token.shape)}: {str(error).splitlines()[0]}"
        remedy = "Say how to call it: ModelParts(logits=lambda model, tokens: …)"
        raise ConfigError(type(network).__name__, problem, remedy) from error


def load_function(text: str) -> Callable[[], Any]:
    """Return the function that ``MODULE:FUNCTION`` names, also of a file in the working directory.

    This runs the module's code. Raises ``ConfigError`` if it has no such function, if the function
    wants arguments, or if the module cannot be imported.
    """
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name.isidentifier():
        problem = f"got {text!r}, must be MODULE:FUNCTION"
        raise ConfigError("--model", problem, "For example mine:make_model, for mine.py here")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that no file here hides a library
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError("--model", f"cannot import {module_name}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError("--model", f"{module_name} has no function {name}")
    wanted = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    if any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in wanted):
        problem = f"{text} wants arguments"
        raise ConfigError("--model", problem, "Name a function without arguments")
    return found
